"""Shows a run while it lasts: bars on a terminal; of real runs, a few lines in a log."""

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from mosaic.core.plan import Expected
from mosaic.core.safe_text import PrintableStream, printable
from mosaic.report.run_status import Row, RunStatus

if TYPE_CHECKING:
    from rich.live import Live

REDRAW_S = 0.5
"""A terminal is drawn anew this often."""
LOG_EVERY_S = 10.0
"""A log gets a line of progress this often."""
SHORT_S = 1.0
"""Simulated runs that are shorter are not shown."""
BAR_COLUMNS = 20
PACE_S = 30.0
"""On a terminal the calls of so many seconds give their pace."""


@contextmanager
def show_run(
    status: RunStatus, *, stream: TextIO | None = None, more: Callable[[], Row | None] = lambda: None
) -> Iterator[tuple[RunStatus, ...]]:
    """Show a run; gives the controllers that do so, none of a simulation without a terminal.

    On a terminal there is a bar for all calls and one per worker, gone when the run is over. In a log there is a line
    when a session starts or ends or a worker is lost, and one of progress every 10 s, so that it shows that the run
    lives. A stream that breaks is given up, the run is not.

    Parameters
    ----------
    status
        Of the run. If it is simulated a log gets nothing, and a terminal only what takes its time.
    stream
        Where to; None: stderr.
    more
        Gives what else is known now; None: nothing.
    """
    stream = sys.stderr if stream is None else stream
    can_show = stream is not None and not stream.closed
    is_terminal = can_show and stream.isatty() and os.environ.get("TERM") != "dumb"
    if status.is_simulated and not is_terminal:
        yield ()
    elif not can_show:
        yield (status,)
    elif is_terminal:
        screen = _Screen(status, LastingStream(getattr(stream, "terminal", stream)), more)
        status.warn = screen.warn
        try:
            with repeating(screen.draw, REDRAW_S, first_s=SHORT_S if status.is_simulated else 0.0):
                yield (status,)
        finally:
            screen.close()
    else:
        lasting = LastingStream(PrintableStream(stream))

        def write(line: str) -> None:
            lasting.write(f"{line}\n")

        def write_progress() -> None:
            row = more()
            counted = "" if row is None or row.num_all is None else f" {row.num_ended:,} of {row.num_all:,}"
            parts = [status.describe(), *([] if row is None else [f"{row.name}{counted}", row.text])]
            write(", ".join(part for part in parts if part))

        status.log = status.warn = write
        with repeating(write_progress, LOG_EVERY_S, first_s=LOG_EVERY_S):
            yield (status,)


def show_stage(
    title: str, expected: Expected, *, is_simulated: bool = False
) -> AbstractContextManager[tuple[RunStatus, ...]]:
    """Show a run, or a stage before it, by its name and what is expected of it."""
    return show_run(RunStatus(title, expected, is_simulated=is_simulated))


class _Screen:
    """Draws a bar of all calls, and one per worker as far as they fit."""

    def __init__(self, status: RunStatus, stream: "LastingStream", more: Callable[[], Row | None]) -> None:
        self._status = status
        self._more = more
        self._stream = stream
        self._live: Live | None = None
        self._drawn: deque[tuple[float, int]] = deque(maxlen=round(PACE_S / REDRAW_S))
        """When it was drawn, in seconds, and the calls that had ended."""

    def draw(self) -> None:
        """Draw the run as it stands; rich is imported when there is something to draw."""
        from rich.progress_bar import ProgressBar
        from rich.table import Column, Table
        from rich.text import Text

        live = self._open() if self._live is None else self._live
        workers, more = self._status.worker_rows(), self._more()
        above = [self._row_of_all(), *([] if more is None else [more])]
        room = max(1, live.console.size.height - 1 - len(above))
        if len(workers) > room:
            workers = [*workers[: room - 1], Row(f"and {len(workers) - room + 1:,} more {self._status.unit}s")]
        cut = Column(no_wrap=True, overflow="ellipsis", ratio=1)
        table = Table.grid(Column(no_wrap=True), Column(), Column(no_wrap=True), cut, padding=(0, 1), expand=True)
        for row in (*above, *workers):
            is_counted = row.num_all is not None
            bar = ProgressBar(row.num_all, row.num_ended, width=BAR_COLUMNS) if is_counted else ""
            count = f"{row.num_ended:,}/{row.num_all:,}" if is_counted else ""
            table.add_row(Text(printable(row.name)), bar, count, Text(printable(row.text)))
        live.update(table, refresh=True)

    def warn(self, line: str) -> None:
        """Write a line that stays, above what is drawn."""
        if self._live is None:
            self._stream.write(f"{printable(line)}\n")
        else:
            self._live.console.print(printable(line), markup=False, highlight=False)

    def close(self) -> None:
        """Wipe what was drawn."""
        if self._live is not None:
            self._live.stop()

    def _row_of_all(self) -> Row:
        row, now_s = self._status.row(), self._status.clock()
        self._drawn.append((now_s, row.num_ended))
        first_s, num_before = self._drawn[0]
        if row.num_ended == num_before or now_s == first_s:
            return row
        return row._replace(text=f"{(row.num_ended - num_before) / (now_s - first_s):,.1f} calls/s, {row.text}")

    def _open(self) -> "Live":
        from rich.console import Console
        from rich.live import Live

        console = Console(file=self._stream, force_terminal=True)  # type: ignore[arg-type]
        self._live = Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False)
        self._live.start()
        sys.stderr = PrintableStream(sys.stderr)  # rich has put its own there, until it stops
        return self._live


@contextmanager
def repeating(act: Callable[[], object], every_s: float, *, first_s: float) -> Iterator[None]:
    """Do something again and again in a thread, since a worker that loads for minutes sends nothing meanwhile."""
    is_over = threading.Event()

    def repeat() -> None:
        wait_s = first_s
        while not is_over.wait(wait_s):
            act()
            wait_s = every_s

    thread = threading.Thread(target=repeat, name="display", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


class LastingStream:
    """Writes to a stream as long as it takes it: a terminal that was closed, or a full disk, must not end a run."""

    def __init__(self, stream: TextIO | PrintableStream) -> None:
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
