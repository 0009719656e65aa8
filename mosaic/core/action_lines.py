"""Actions as lines of JSON: in a run's journal, and in its folder."""

import msgspec

from mosaic.core.commands import Action, Cancel, Close, Command, Cut, Move, Open, Prefill, Submit

_COMMANDS: tuple[type[Command], ...] = (Open, Submit, Cancel, Cut, Move, Close, Prefill)
_KINDS = {cls.__name__.lower(): cls for cls in _COMMANDS}


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
