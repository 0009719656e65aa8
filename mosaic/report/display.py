"""Displays a run in progress: bars on a terminal; for real runs, a few lines in a log."""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from mosaic.core.plan import Expected
from mosaic.core.safe_text import PrintableStream, printable
from mosaic.report.run_status import Row, RunStatus

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

REDRAW_S = 0.5
"""Interval of drawing on a terminal."""
LOG_EVERY_S = 10.0
"""Interval of progress lines in a log."""
SHORT_S = 1.0
"""Shorter simulated runs are not displayed."""
BAR_COLUMNS = 20


@contextmanager
def show_run(
    status: RunStatus, *, stream: TextIO | None = None, more: Callable[[], Row | None] = lambda: None
) -> Iterator[tuple[RunStatus, ...]]:
    """Display a run; yields the controllers for it, none for a simulation without a terminal.

    A terminal shows a bar for all calls and one per worker, which are removed at the end of the run. A log gets a line
    when a session starts or ends or a worker is lost. It also gets a line of progress every 10 s, which shows that the
    run is active. If a stream breaks, the display ends but the run continues.

    Parameters
    ----------
    status
        Of the run. For a simulated run a log gets nothing, and a terminal only slow runs.
    stream
        Where to write; None: stderr.
    more
        Returns additional information; None: nothing.
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
    """Display a run, or a stage before it, by its name and its expected times."""
    return show_run(RunStatus(title, expected, is_simulated=is_simulated))


class _Screen:
    """Draws a bar of all calls, and one per worker while there is room: tasks of rich."""

    def __init__(self, status: RunStatus, stream: "LastingStream", more: Callable[[], Row | None]) -> None:
        self._status = status
        self._more = more
        self._stream = stream
        self._progress: Progress | None = None
        self._tasks: list[TaskID] = []

    def draw(self) -> None:
        """Draw the current state; rich is imported when there is something to draw."""
        progress = self._open() if self._progress is None else self._progress
        workers, more = self._status.worker_rows(), self._more()
        above = [self._row_of_all(progress), *([] if more is None else [more])]
        room = max(1, progress.console.size.height - 1 - len(above))
        if len(workers) > room:
            workers = [*workers[: room - 1], Row(f"and {len(workers) - room + 1:,} more {self._status.unit}s")]
        rows = [*above, *workers]
        self._tasks += [progress.add_task("", text="", count="") for _ in rows[len(self._tasks) :]]
        for task, row in zip(self._tasks, rows, strict=False):
            progress.update(
                task,
                description=printable(row.name),
                completed=row.num_ended,
                total=row.num_all,
                count="" if row.num_all is None else f"{row.num_ended:,}/{row.num_all:,}",
                text=printable(row.text),
                visible=True,
            )
        for task in self._tasks[len(rows) :]:
            progress.update(task, visible=False)
        progress.refresh()

    def warn(self, line: str) -> None:
        """Write a permanent line above the drawing."""
        if self._progress is None:
            self._stream.write(f"{printable(line)}\n")
        else:
            self._progress.console.print(printable(line), markup=False, highlight=False)

    def close(self) -> None:
        """Erase the drawing."""
        if self._progress is not None:
            self._progress.stop()

    def _row_of_all(self, progress: "Progress") -> Row:
        row = self._status.row()
        speed = progress.tasks[0].speed if progress.tasks else None
        return row._replace(text=f"{speed:,.1f} calls/s, {row.text}") if speed else row

    def _open(self) -> "Progress":
        from rich.console import Console
        from rich.progress import BarColumn, Progress, Task, TextColumn
        from rich.table import Column
        from rich.text import Text

        class KnownBarColumn(BarColumn):
            """No bar if nothing is counted."""

            def render(self, task: Task) -> Any:
                return super().render(task) if task.fields["count"] else Text()

        cut = Column(no_wrap=True, overflow="ellipsis", ratio=1)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            KnownBarColumn(BAR_COLUMNS),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[text]}", markup=False, table_column=cut),
            console=Console(file=self._stream, force_terminal=True),  # type: ignore[arg-type]
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            expand=True,
        )
        self._progress.start()
        sys.stderr = PrintableStream(sys.stderr)  # rich replaces it until it stops
        return self._progress


@contextmanager
def repeating(act: Callable[[], object], every_s: float, *, first_s: float) -> Iterator[None]:
    """Repeat an action in a thread, since a worker that loads for minutes sends no messages."""
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
    """Writes to a stream while it works: a closed terminal, or a full disk, must not end a run."""

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
        except (OSError, ValueError):  # a closed file raises a ValueError
            self._is_broken = True
