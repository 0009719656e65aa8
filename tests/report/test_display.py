import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from io import StringIO

import pytest

from mosaic.core.events import Ready, Redone, Started
from mosaic.core.plan import Expected, PredictedTimes
from mosaic.core.safe_text import printable_output
from mosaic.report import display
from mosaic.report.display import LastingStream, repeating, show_run
from mosaic.report.run_status import Row, RunStatus
from tests.report.sent_events import Clock, Run


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
def clock():
    return Clock()


@pytest.fixture
def repeated(monkeypatch, clock):
    """What a thread would do again and again, with its periods; here only when a test does it, and time stands."""
    acts = []
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "10")

    @contextmanager
    def by_hand(act, every_s, *, first_s):
        acts.append((act, every_s, first_s))
        yield

    monkeypatch.setattr(display, "repeating", by_hand)
    return acts


@contextmanager
def shown(stream: StringIO | None, clock: Clock, num_workers: int = 2, *, status: RunStatus | None = None, **options):
    """Show a run of one session that has started; gives it, with its calls."""
    status = status or RunStatus("calls", clock=clock)
    with show_run(status, stream=stream, **options) as (controller,):

        def receive(event, view) -> list[str]:
            assert controller.on(event, view) == ()
            return []

        run = Run(receive, clock, num_workers)
        calls = run.open(0, "A", 3)
        run.send(Started(0.0))
        yield run, calls


def serve(run: Run, calls) -> None:
    run.send(Ready(run.ts, 0))
    run.finish(0, calls)
    run.close(0)


# Runs in simulated time.


def test_a_simulation_that_is_not_watched_has_no_controller_and_no_output(capsys):
    stream = StringIO()
    for screen_of in ({"stream": stream}, {}):  # pytest's captured stderr is no terminal
        with show_run(RunStatus("calls", is_simulated=True), **screen_of) as controllers:
            assert controllers == ()
    assert stream.getvalue() == capsys.readouterr().err == ""


def test_a_terminal_shows_a_simulation_once_it_has_lasted_a_second(repeated, clock):
    stream = Terminal()
    with shown(stream, clock, status=RunStatus("calls", clock=clock, is_simulated=True)) as (run, calls):
        serve(run, calls)
        ((draw, every_s, first_s),) = repeated
        assert (every_s, first_s) == (0.5, 1.0)
        assert stream.getvalue() == "", "a short one is not shown"
        draw()
        assert "calls" in stream.getvalue()
        assert "3/3" in stream.getvalue()
    assert screen(f"{stream.getvalue()}what follows")[0] == "what follows"


# Real runs.


def test_the_display_never_reacts():
    assert not RunStatus("calls").reacts


@pytest.mark.parametrize("is_drawn", [True, False])
@pytest.mark.parametrize("stream_kind", [Terminal, StringIO])
def test_what_is_done_again_is_written_on_a_terminal_and_in_a_log(repeated, clock, stream_kind, is_drawn):
    stream = stream_kind()
    with shown(stream, clock) as (run, calls):
        if is_drawn:
            repeated[0][0]()
        run.send(Redone(0.0, 0, {"A": 3}, {}))
        serve(run, calls)
    said = "calls: A: its checkpoint or its engine's options have changed. Calls that had ended and are run again: 3"
    assert said in " ".join(screen(stream.getvalue())), "in lines of the terminal's width"


@pytest.mark.parametrize("stream_kind", [Terminal, StringIO])
def test_names_and_messages_steer_neither_a_terminal_nor_a_log(repeated, clock, monkeypatch, stream_kind):
    stream = stream_kind()
    monkeypatch.setattr(sys, "stderr", stream)
    status = RunStatus("calls\x1b[91m", clock=clock)
    with printable_output(), shown(None, clock, status=status, more=lambda: Row("more\x1b[92m")) as (run, calls):
        repeated[0][0]()
        run.send(Redone(0.0, 0, {"A\x1b[93m": 3}, {}))
        print("a server said \x1b[94m", file=sys.stderr)
        serve(run, calls)
    for number in (91, 92, 93, 94):
        assert f"\x1b[{number}m" not in stream.getvalue()
        assert f"\\x1b[{number}m" in stream.getvalue()


def test_a_terminal_is_drawn_on_where_one_command_runs_inside_another(repeated, clock, monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with printable_output(), printable_output(), shown(None, clock):
        repeated[0][0]()
        assert rows(stream)[0] == "calls 0/3 0 s, 1 loading"
    assert "\\x1b" not in stream.getvalue()


def test_a_log_gets_a_line_when_a_session_starts_or_ends_and_one_of_progress_now_and_then(repeated, clock, capsys):
    with shown(None, clock, more=lambda: Row("questions", "cost $2", 1, 9)) as (run, calls):
        ((log_progress, every_s, first_s),) = repeated
        log_progress()
        serve(run, calls)
        log_progress()
    assert (every_s, first_s) == (10.0, 10.0)
    assert capsys.readouterr().err.splitlines() == [
        "calls: 3 calls on 2 workers",
        "worker 0: loading A (session 0, 3 calls)",
        "calls: 0 of 3 calls (0%) after 0 s, 1 loading, questions 1 of 9, cost $2",
        "worker 0: A (session 0): 3 calls ended in 0 s",
        "calls: 3 of 3 calls (100%) after 0 s, questions 1 of 9, cost $2",
    ]


def test_a_terminal_shows_all_calls_and_each_worker_and_is_clean_afterwards(repeated, clock):
    stream = Terminal()
    expected = Expected(num_calls=9, times={0: PredictedTimes(0.0, 30.0, 60.0)})
    status = RunStatus("calls", expected, clock=clock)
    questions = Row("questions", "cost $2", 1, 5)
    with show_run(status, stream=stream, more=lambda: questions):
        repeated[0][0]()
        assert rows(stream) == ["calls 0/9 0 s", "questions 1/5 cost $2"], "before anything has started"
    stream = Terminal()
    with shown(stream, clock, status=status, more=lambda: questions) as (run, calls):
        draw, every_s, first_s = repeated[1]
        draw()
        assert rows(stream) == [
            "calls 0/9 0 s, 1 loading", "questions 1/5 cost $2",
            "worker 0 0/3 A loading, 0 s of 30 s planned", "worker 1 idle",
        ]  # fmt: skip
        run.send(Ready(0.0, 0))
        run.finish(0, calls[:1])
        draw()
        assert rows(stream)[2] == "worker 0 1/3 A serving, 20 s left"
        later = run.open(1, "B", 8, workers=(1,))
        run.finish(0, calls[1:])
        draw()
        assert rows(stream)[0].startswith("calls 3/11 "), "more calls than were known beforehand"
        assert len(later) == 8
    assert (every_s, first_s) == (0.5, 0.0)
    cleaned = screen(f"{stream.getvalue()}what follows")
    assert cleaned[0] == "what follows"
    assert not any(cleaned[1:])
    assert "session 0" not in stream.getvalue(), "lines of a log would break the bars"


def test_no_more_workers_are_shown_than_fit(repeated, clock):
    stream = Terminal()
    with shown(stream, clock, num_workers=30):
        repeated[0][0]()
        lines = [line for line in rows(stream) if line]
    assert len(lines) == 9
    assert lines[-2:] == ["worker 6 idle", "and 23 more workers"]


def test_a_line_that_is_too_long_is_cut(repeated, clock):
    stream = Terminal()
    with shown(stream, clock) as (run, _):
        run.open(1, "B" * 200, 1, workers=(1,))
        run.send(Ready(0.0, 0))
        repeated[0][0]()
        lines = [line for line in screen(stream.getvalue()) if line]
    assert len(lines) == 3
    assert max(map(len, lines)) <= 100


def test_a_dumb_terminal_is_a_log(repeated, clock, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with shown(stream, clock):
        pass
    assert stream.getvalue().splitlines() == ["calls: 3 calls on 2 workers", "worker 0: loading A (session 0, 3 calls)"]


def rows(stream: StringIO) -> list[str]:
    """What stands on a terminal, without its bars."""
    return [
        " ".join(line.translate(dict.fromkeys(map(ord, "\u2501\u2578\u257a"), " ")).split())
        for line in screen(stream.getvalue())
    ]


def screen(written: str) -> list[str]:
    """What stands on a terminal after some output."""
    rows, row, column, i = [""], 0, 0, 0
    while i < len(written):
        if written.startswith("\x1b[", i):
            end = next(j for j in range(i + 2, len(written)) if written[j].isalpha())
            number, what, i = written[i + 2 : end], written[end], end + 1
            if what == "A":
                row -= int(number or 1)
            elif what == "K":
                rows[row] = ""
            else:
                assert what in "mhl", "colours, and whether the cursor is seen"
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
def test_a_stream_that_breaks_does_not_stop_the_run(repeated, clock, is_terminal, error):
    stream = Broken(1, error, is_terminal=is_terminal)
    with shown(stream, clock) as (run, calls):
        repeated[0][0]()
        serve(run, calls)
        repeated[0][0]()
    assert stream.num_refused == 1, "it is not tried again"


def test_a_run_is_followed_where_nothing_can_be_shown(monkeypatch, clock):
    closed = StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", None)
    for stream in (closed, None):
        status = RunStatus("calls", clock=clock)
        with shown(stream, clock, status=status) as (run, calls):
            serve(run, calls)
        assert status.num_ended == 3, "metrics read it"
        with show_run(RunStatus("calls", is_simulated=True), stream=stream) as controllers:
            assert controllers == ()


def test_what_is_shown_is_wiped_when_the_run_fails(repeated, clock):
    stream = Terminal()
    with pytest.raises(KeyboardInterrupt), shown(stream, clock):  # noqa: PT012
        repeated[0][0]()
        raise KeyboardInterrupt
    assert not any(screen(stream.getvalue()))


def test_a_run_is_drawn_by_a_thread_while_it_changes(monkeypatch, clock):
    failures: list = []
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(display, "REDRAW_S", 0.001)
    monkeypatch.setattr(threading, "excepthook", failures.append)
    stream, deadline_s = Terminal(), time.monotonic() + 60
    with shown(stream, clock) as (run, _):
        run.send(Ready(0.0, 0))
        while stream.getvalue().count("B serving") < 10 and time.monotonic() < deadline_s:
            number = run.view.next_session()
            calls = run.open(number, "B", 3, workers=(1,))
            run.send(Ready(0.0, number))
            run.finish(number, calls)
    assert failures == []
    assert stream.getvalue().count("B serving") >= 10


def test_what_repeats_does_so_until_it_is_over():
    often, num_times = threading.Event(), 0

    def act() -> None:
        nonlocal num_times
        num_times += 1
        if num_times == 3:
            often.set()

    with repeating(act, 0.001, first_s=0.0):
        assert often.wait(timeout=60)
    last = num_times
    assert "display" not in {thread.name for thread in threading.enumerate()}
    assert num_times == last


def test_what_repeats_waits_before_the_first_time():
    acts = []
    with repeating(lambda: acts.append(1), 0.001, first_s=3600.0):
        pass
    assert acts == []


def test_a_lasting_stream_is_the_stream_as_long_as_it_lasts():
    stream = StringIO()
    lasting = LastingStream(stream)
    lasting.write("one\n")
    assert (stream.getvalue(), lasting.isatty()) == ("one\n", False)
    stream.close()
    lasting.write("two\n")
    lasting.flush()


def test_rich_is_imported_only_when_something_is_drawn():
    code = (
        "import sys\nfrom mosaic.report.display import show_run\nfrom mosaic.report.run_status import RunStatus\n"
        "with show_run(RunStatus('calls', is_simulated=True)) as none: assert none == ()\n"
        "with show_run(RunStatus('calls')) as one: assert len(one) == 1\n"
        "assert 'rich' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
