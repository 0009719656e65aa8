"""A progress bar over finished calls, where somebody is watching."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TextIO

from mosaic.results import CallRecord, Cancel, Listener


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
