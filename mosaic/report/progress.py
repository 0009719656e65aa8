"""How a run gets on, for whoever watches: bars on a terminal; of real runs, a few lines in a log."""

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, TextIO, TypeAlias

from mosaic.core.plan import Plan
from mosaic.core.results import CallRecord, Cancel, Listener
from mosaic.report.worker_board import WorkerBoard
from mosaic.runtime.worker_state import WorkerState

REDRAW_S = 0.5
"""Bars are drawn anew this often."""
LOG_EVERY_S = 10.0
"""A log gets a line of progress this often."""

OnState: TypeAlias = Callable[[WorkerState], None]
"""What a backend tells of its workers."""


class Bar(Protocol):
    """The part of tqdm's bar that is used."""

    def update(self, n: int) -> object: ...


class Progress:
    """Advances a bar with each finished call; never reacts."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar

    def on_finish(self, record: CallRecord) -> Sequence[Cancel]:
        self._bar.update(1)
        return ()


@contextmanager
def show_progress(num_calls: int, stream: TextIO | None = None) -> Iterator[Listener | None]:
    """Give a listener that draws a bar on stderr, or None where stderr is not a terminal.

    None and not a silent listener, so that a backend need not report each finish to nobody.
    """
    stream = sys.stderr if stream is None else stream
    if not stream.isatty():
        yield None
        return
    from tqdm import tqdm

    with tqdm(total=num_calls, desc="calls", unit="call", file=stream, leave=False) as bar:
        yield Progress(bar)


@contextmanager
def show_workers(plan: Plan, stream: TextIO | None = None) -> Iterator[tuple[Listener | None, OnState]]:
    """Show a real run: give the listener and the ``on_state`` that its backend is to have.

    On a terminal there is a line per worker below the bar of all calls, gone when the run is over. Elsewhere
    there is a line when a session starts or ends, and one of progress every 10 s, so that a log shows that the run
    lives. Where nothing can be shown the listener is None. A stream that breaks is given up, the run is not.
    """
    stream = sys.stderr if stream is None else stream
    if stream is None or stream.closed:
        yield None, lambda state: None
        return
    board, lasting = WorkerBoard(plan), LastingStream(stream)
    if not stream.isatty():

        def tell(state: WorkerState) -> None:
            for line in board.tell(state):
                lasting.write(f"{line}\n")

        with repeating(lambda: lasting.write(f"{board.describe_progress()}\n"), LOG_EVERY_S):
            yield board, tell
        return
    with drawn_bars(board, lasting) as draw, repeating(draw, REDRAW_S):

        def note(state: WorkerState) -> None:
            board.tell(state)

        yield board, note


@contextmanager
def drawn_bars(board: WorkerBoard, stream: "LastingStream") -> Iterator[Callable[[], None]]:
    """Open a bar of all calls and a line per worker; gives what draws them as the board stands."""
    from tqdm import tqdm

    with ExitStack() as opened:
        # The first that is opened is wiped last, and leaves the cursor at the start of its line.
        calls = opened.enter_context(
            tqdm(total=board.num_calls, desc="calls", unit="call", file=stream, leave=False, dynamic_ncols=True)
        )
        bars = [
            opened.enter_context(tqdm(bar_format="{desc}", position=1 + worker, file=stream, leave=False))
            for worker in range(len(board.describe_workers()))
        ]

        def draw() -> None:
            calls.update(board.num_finished - calls.n)
            calls.refresh()
            width = calls.format_dict["ncols"]  # a line that is longer would be broken, and its rest never wiped
            for bar, line in zip(bars, board.describe_workers(), strict=True):
                bar.set_description_str(line[: width - 1] if width else line)

        draw()
        yield draw


@contextmanager
def repeating(act: Callable[[], object], every_s: float) -> Iterator[None]:
    """Do something again and again in a thread, since a worker that loads for minutes tells nothing meanwhile."""
    is_over = threading.Event()

    def repeat() -> None:
        while not is_over.wait(every_s):
            act()

    thread = threading.Thread(target=repeat, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


class LastingStream:
    """Writes to a stream as long as it takes it: a terminal that was closed, or a full disk, must not end a run."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_broken = False

    def write(self, text: str) -> None:
        self._try(lambda: self._stream.write(text))
        self.flush()

    def flush(self) -> None:
        self._try(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, act: Callable[[], object]) -> None:
        if self._is_broken:
            return
        try:
            act()
        except (OSError, ValueError):  # a closed file says so with a ValueError
            self._is_broken = True
