"""The log of commands: on the disk before any of them takes effect, and read back by who goes on with the run."""

from collections.abc import Sequence, Set
from functools import cached_property
from pathlib import Path

from mosaic.core.action_lines import decode_action, encode_action
from mosaic.core.commands import Action
from mosaic.core.workload import CallKey
from mosaic.runtime.journal import Log, frame, read_log
from mosaic.runtime.journal_records import COMMANDS, read_journal


class JournalLog:
    """Writes a run's commands beside what became of them; whoever runs the backend holds the journal meanwhile."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log: Log | None = None

    @cached_property
    def earlier(self) -> Sequence[Action]:
        """Commands of the run that was interrupted, and now goes on."""
        return [decode_action(text) for text in read_log(self._folder / COMMANDS).records]

    @cached_property
    def ended(self) -> Set[CallKey]:
        """Calls that ended then and are not run again."""
        return read_journal(self._folder).done_keys

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
