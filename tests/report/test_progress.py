import sys
import threading
from contextlib import contextmanager
from io import StringIO

import pytest

from mosaic.report import progress
from mosaic.report.progress import LastingStream, Progress, repeating, show_progress, show_workers
from mosaic.report.worker_board import WorkerBoard
from mosaic.runtime.worker_state import WorkerState
from tests.run_records import make_record
from tests.sim.cluster_runs import make_plan, make_session, some_calls

A, B = some_calls("A", 3), some_calls("B", 2)
PLAN = make_plan(make_session(0, A), make_session(1, B, workers=(1,)))
LOADING = WorkerState((0,), "A", "loading", 0, num_calls=3, num_ended=0, output_tokens=0)
SERVING = LOADING._replace(phase="serving")
IDLE = LOADING._replace(phase="idle", session=None, num_calls=0)


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


class Broken(StringIO):
    """Takes some writes, and then no more."""

    def __init__(self, num_writes: int, error: Exception, *, is_terminal: bool) -> None:
        super().__init__()
        self.num_writes, self.error, self.is_terminal = num_writes, error, is_terminal
        self.num_refused = 0

    def isatty(self) -> bool:
        return self.is_terminal

    def write(self, text: str) -> int:
        if self.num_writes == 0:
            self.num_refused += 1
            raise self.error
        self.num_writes -= 1
        return super().write(text)


@pytest.fixture
def repeated(monkeypatch):
    """What a thread would do again and again, with its period; here only when a test does it, and time stands."""
    acts = []
    monkeypatch.setattr(progress, "WorkerBoard", lambda plan: WorkerBoard(plan, lambda: 7.0))

    @contextmanager
    def by_hand(act, every_s):
        acts.append((act, every_s))
        yield

    monkeypatch.setattr(progress, "repeating", by_hand)
    return acts


# Runs in simulated time.


def test_nobody_watching_means_no_listener_and_no_output(capsys):
    stream = StringIO()
    with show_progress(10, stream) as listener:
        assert listener is None
    with show_progress(10) as listener:  # pytest's captured stderr is no terminal
        assert listener is None
    assert stream.getvalue() == ""
    assert capsys.readouterr().err == ""


def test_terminal_shows_a_bar_that_never_reacts():
    stream = Terminal()
    with show_progress(2, stream) as listener:
        assert isinstance(listener, Progress)
        assert listener.on_finish(make_record()) == ()
    assert "calls" in stream.getvalue()
    assert "2" in stream.getvalue()


def test_bar_advances_once_for_each_call():
    class Bar:
        total = 0

        def update(self, n: int) -> None:
            self.total += n

    bar = Bar()
    for question in ("q0", "q1", "q2"):
        Progress(bar).on_finish(make_record(question))
    assert bar.total == 3


# Real runs.


def run_session(listener, on_state) -> None:
    """What a backend tells of the plan's first session."""
    on_state(LOADING)
    on_state(SERVING)
    for call in A:
        listener.on_finish(make_record()._replace(key=call.key))
    on_state(IDLE)


def test_a_log_gets_a_line_when_a_session_starts_or_ends_and_one_of_progress_now_and_then(repeated, capsys):
    with show_workers(PLAN) as (listener, on_state):
        on_state(LOADING)
        ((tell_progress, every_s),) = repeated
        tell_progress()
        run_session(listener, on_state)
        tell_progress()
    assert every_s == 10
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "worker 0: loading A (session 0, 3 calls)",
        "0 of 5 calls (0%) after 0 s, 1 loading",
        "worker 0: A (session 0): 3 of 3 calls finished in 0 s",
        "3 of 5 calls (60%) after 0 s",
    ]


def test_a_terminal_shows_all_calls_and_each_worker_and_is_clean_afterwards(repeated):
    stream = Terminal()
    with show_workers(PLAN, stream) as (listener, on_state):
        ((draw, every_s),) = repeated
        assert "worker 0: waiting" in stream.getvalue()
        on_state(LOADING)
        listener.on_finish(make_record()._replace(key=B[0].key))
        draw()
        shown = stream.getvalue()
        assert "worker 0: A loading, 0 s" in shown
        assert "worker 1: waiting" in shown
        assert "1/5 [" in shown
        run_session(listener, on_state)
        draw()
        assert "4/5 [" in stream.getvalue()
    assert every_s == 0.5
    assert screen(f"{stream.getvalue()}what follows") == ["what follows", "", ""]
    assert "session 0" not in stream.getvalue(), "lines of a log would break the bars"


def screen(written: str) -> list[str]:
    """What stands on a terminal after some output."""
    rows, row, column, i = [""], 0, 0, 0
    while i < len(written):
        if written.startswith("\x1b[A", i):
            row, i = row - 1, i + 3
            continue
        if written[i] == "\n":
            row, column = row + 1, 0
            rows += [""] * (row + 1 - len(rows))
        elif written[i] == "\r":
            column = 0
        else:
            rows[row] = f"{rows[row][:column]:<{column}}{written[i]}{rows[row][column + 1 :]}"
            column += 1
        i += 1
    return [text.rstrip() for text in rows]


@pytest.mark.parametrize("is_terminal", [True, False])
@pytest.mark.parametrize(
    "error", [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space left"), ValueError("closed")]
)
def test_a_stream_that_breaks_does_not_stop_the_run(repeated, is_terminal, error):
    stream = Broken(1, error, is_terminal=is_terminal)
    with show_workers(PLAN, stream) as (listener, on_state):
        run_session(listener, on_state)
        repeated[0][0]()
        repeated[0][0]()
    assert stream.num_refused == 1, "it is not tried again"


def test_where_nothing_can_be_shown_there_is_no_listener(monkeypatch):
    closed = StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", None)
    for stream in (closed, None):
        with show_workers(PLAN, stream) as (listener, on_state):
            assert listener is None
            on_state(LOADING)


def test_what_repeats_does_so_until_it_is_over():
    often, num_times = threading.Event(), 0

    def act() -> None:
        nonlocal num_times
        num_times += 1
        if num_times == 3:
            often.set()

    with repeating(act, 0.001):
        assert often.wait(timeout=60)
    last = num_times
    assert "progress" not in {thread.name for thread in threading.enumerate()}
    assert num_times == last


def test_a_lasting_stream_is_the_stream_as_long_as_it_lasts():
    stream = StringIO()
    lasting = LastingStream(stream)
    lasting.write("one\n")
    assert (stream.getvalue(), lasting.isatty()) == ("one\n", False)
    stream.close()
    lasting.write("two\n")
    lasting.flush()
