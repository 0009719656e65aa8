"""The log of commands: on the disk before any of them takes effect, and read back by who goes on with the run.

Beside it, when the run began and when it went on.
"""

import time
from collections.abc import Sequence, Set
from functools import cached_property
from pathlib import Path

import msgspec

from mosaic.core.commands import Action, decode_action, encode_action
from mosaic.core.results import Resumption
from mosaic.core.workload import CallKey
from mosaic.runtime.journal import Log, decoded, frame
from mosaic.runtime.journal_records import COMMANDS, STARTS, read_journal


class Start(msgspec.Struct, frozen=True):
    """A run begins, or goes on."""

    ts: float
    """The latest instant of the run's clock that was kept; 0: it begins."""
    unix_s: float
    first_ts: float = 0.0
    """At the first start: where the run's clock stood, at the end of its pilot, which has a journal of its own."""


_START: msgspec.json.Decoder[Start] = msgspec.json.Decoder(Start)


class JournalLog:
    """Writes a run's commands beside what became of them; whoever runs the backend holds the journal meanwhile."""

    def __init__(self, folder: Path, before: Sequence[Path] = ()) -> None:
        self._folder = folder
        self._before = before
        """Journals of what came before the run: its pilot's."""
        self._log: Log | None = None

    @cached_property
    def earlier(self) -> Sequence[Action]:
        """Commands of the run that was interrupted, and now goes on."""
        return [action for action in decoded(self._folder / COMMANDS, decode_action) if action is not None]

    @cached_property
    def ended(self) -> Set[CallKey]:
        """Calls that ended then and are not run again."""
        return frozenset().union(*(read_journal(folder).done_keys for folder in (*self._before, self._folder)))

    @property
    def resumptions(self) -> tuple[Resumption, ...]:
        """When the run went on after it had stopped."""
        starts = decoded(self._folder / STARTS, _START.decode)
        return resumptions_of([start for start in starts if start is not None])

    def note_start(self, ts: float, first_ts: float = 0.0) -> None:
        """Put on the disk that the run begins, or goes on, at this instant of its clock, which began at ``first_ts``.

        Raises
        ------
        JournalError
            If it cannot be done.
        """
        with Log(self._folder / STARTS) as log:
            log.append([frame(msgspec.json.encode(Start(ts, time.time(), first_ts)))])

    def write(self, actions: Sequence[Action]) -> None:
        """Put commands on the disk, all at once.

        Raises
        ------
        JournalError
            If it cannot be done: then none of them is there.
        """
        if not actions:
            return
        if self._log is None:
            self._log = Log(self._folder / COMMANDS)
        self._log.append([frame(encode_action(action)) for action in actions])

    def close(self) -> None:
        """Close the file; another write opens it again."""
        if self._log is not None:
            self._log.close()
            self._log = None


def resumptions_of(starts: Sequence[Start]) -> tuple[Resumption, ...]:
    """Tell when a run went on. A start from where it began is a new one: of what was done before, nothing was kept.

    Examples
    --------
    >>> resumptions_of([Start(0.0, 1000.0), Start(40.0, 1100.0)])
    (Resumption(ts=40.0, pause_s=60.0),)
    """
    before = [None, *starts]
    return tuple(
        Resumption(
            ts=start.ts,
            pause_s=None if last is None else max(0.0, start.unix_s - last.unix_s - (start.ts - last.ts)),
        )
        for last, start in zip(before, starts, strict=False)
        if start.ts > starts[0].first_ts
    )
