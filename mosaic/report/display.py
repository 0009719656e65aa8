"""Shows a run while it lasts: bars on a terminal; of real runs, a few lines in a log."""

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from mosaic.core.commands import Command
from mosaic.core.events import Event, Redone
from mosaic.core.plan import PredictedTimes
from mosaic.core.safe_text import PrintableStream, printable
from mosaic.report.redone import describe_redone
from mosaic.report.run_status import RunStatus, RunView

if TYPE_CHECKING:
    from rich.live import Live

REDRAW_S = 0.5
"""A terminal is drawn anew this often."""
LOG_EVERY_S = 10.0
"""A log gets a line of progress this often."""
SHORT_S = 1.0
"""Simulated runs that are shorter are not shown."""


class Display:
    """A controller that shows and answers nothing; it stands last, so that it sees what the others did.

    Parameters
    ----------
    status
        Told of every event.
    tell
        Told lines for a log.
    warn
        Told what a user is to see on a terminal too.
    """

    reacts = False

    def __init__(
        self,
        status: RunStatus,
        *,
        tell: Callable[[str], object] = lambda line: None,
        warn: Callable[[str], object] = lambda line: None,
    ) -> None:
        self._status = status
        self._tell = tell
        self._warn = warn

    def on(self, event: Event, view: RunView) -> tuple[Command, ...]:
        """Take an event in."""
        for line in self._status.hear(event, view):
            self._tell(line)
        if isinstance(event, Redone):
            for line in describe_redone(event):
                self._warn(f"{self._status.title}: {line}")
        return ()


@contextmanager
def show_run(
    title: str,
    *,
    predicted: Mapping[int, PredictedTimes] | None = None,
    is_simulated: bool = False,
    stream: TextIO | None = None,
    more: Callable[[], str] = lambda: "",
) -> Iterator[tuple[Display, ...]]:
    """Show a run; gives the controllers that do so, none where nothing can be shown or a log would only be noise.

    On a terminal there is a line per worker below that of all calls, gone when the run is over. In a log there
    is a line when a session starts or ends or a worker is lost, and one of progress every 10 s, so that it shows that
    the run lives. A stream that breaks is given up, the run is not.

    Parameters
    ----------
    title
        What the run is for: "profiling", "calls".
    predicted
        What the plan expects of sessions, by their number in the run; may grow while it lasts.
    is_simulated
        Whether the run's clock is simulated; then a log gets nothing, and a terminal only what takes its time.
    stream
        Where to; None: stderr.
    more
        Says what else is known now, in a line; empty: nothing.
    """
    stream = sys.stderr if stream is None else stream
    if stream is None or stream.closed:
        yield ()
        return
    is_terminal = stream.isatty() and os.environ.get("TERM") != "dumb"
    if is_simulated and not is_terminal:
        yield ()
        return
    status = RunStatus(title, predicted=predicted, is_simulated=is_simulated)
    if is_terminal:
        screen = _Screen(status, LastingStream(getattr(stream, "terminal", stream)), more)
        try:
            with repeating(screen.draw, REDRAW_S, first_s=SHORT_S if is_simulated else 0.0):
                yield (Display(status, warn=screen.warn),)
        finally:
            screen.close()
        return

    def describe() -> str:
        return ", ".join(part for part in (status.describe_calls(), more()) if part)

    lasting = LastingStream(PrintableStream(stream))
    with repeating(lambda: lasting.write(f"{describe()}\n"), LOG_EVERY_S, first_s=LOG_EVERY_S):
        write = lambda line: lasting.write(f"{line}\n")  # noqa: E731
        yield (Display(status, tell=write, warn=write),)


class _Screen:
    """Draws a bar of all calls, and a line per worker as far as they fit."""

    def __init__(self, status: RunStatus, stream: "LastingStream", more: Callable[[], str]) -> None:
        self._status = status
        self._more = more
        self._stream = stream
        self._live: Live | None = None

    def draw(self) -> None:
        """Draw the run as it stands; rich is imported when there is something to draw."""
        from rich.console import Group
        from rich.text import Text

        if self._live is None:
            self._open()
        assert self._live is not None, "just opened"
        status = self._status
        speed = self._bar.tasks[0].speed
        rate = f"{speed:,.1f} calls/s" if speed else ""
        self._bar.update(self._task, completed=status.num_ended, total=status.num_calls or None, rate=rate)
        lines = [*([line] if (line := self._more()) else []), *status.describe_workers()]
        room = max(1, self._live.console.size.height - 2)
        if len(lines) > room:
            lines = [*lines[: room - 1], f"and {len(lines) - room + 1:,} more workers"]
        rows = [Text(printable(line), no_wrap=True, overflow="ellipsis") for line in lines]
        self._live.update(Group(self._bar, *rows), refresh=True)

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

    def _open(self) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        console = Console(file=self._stream, force_terminal=True)  # type: ignore[arg-type]
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left", markup=False),
            TimeRemainingColumn(),
            console=console,
            auto_refresh=False,
        )
        self._task = self._bar.add_task(printable(self._status.title), total=None, rate="")
        self._live = Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False)
        self._live.start()
        sys.stderr = PrintableStream(sys.stderr)  # rich has put its own there, until it stops


@contextmanager
def repeating(act: Callable[[], object], every_s: float, *, first_s: float) -> Iterator[None]:
    """Do something again and again in a thread, since a worker that loads for minutes tells nothing meanwhile."""
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
