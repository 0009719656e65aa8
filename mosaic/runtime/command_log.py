"""The log of commands: on the disk before any of them takes effect, and read back by who goes on with the run."""

from collections.abc import Sequence, Set
from functools import cached_property
from pathlib import Path

import msgspec

from mosaic.core.commands import Action, Cancel, Close, Command, Cut, Move, Open, Submit
from mosaic.core.workload import CallKey
from mosaic.runtime.journal import Log, frame, read_log
from mosaic.runtime.journal_records import COMMANDS, read_journal

_KINDS: dict[str, type[Command]] = {cls.__name__.lower(): cls for cls in (Open, Submit, Cancel, Cut, Move, Close)}


def encode_action(action: Action) -> bytes:
    """Write an action as a JSON text of one line: its instant, its cause, the kind of command and its fields."""
    command = action.command
    fields = msgspec.to_builtins(command)
    return msgspec.json.encode(
        {"ts": action.ts, "cause": action.cause, "kind": type(command).__name__.lower(), **fields}
    )


def decode_action(text: bytes | str) -> Action:
    """Read what ``encode_action`` wrote.

    Raises
    ------
    msgspec.ValidationError
        If it is none.
    """
    fields = msgspec.json.decode(text, type=dict[str, object])
    ts, cause, kind = (fields.pop(name, None) for name in ("ts", "cause", "kind"))
    if kind not in _KINDS:
        raise msgspec.ValidationError(f"action: kind must be one of {sorted(_KINDS)}, got {kind!r}")
    command = msgspec.convert(fields, _KINDS[str(kind)])
    return Action(msgspec.convert(ts, float), msgspec.convert(cause, str), command)


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
