"""Commands of controllers to a backend: plain values, so that the log of commands can be saved and replayed."""

from typing import NamedTuple, TypeAlias

import msgspec

from mosaic.core.plan import Session
from mosaic.core.workload import Call, CallKey, ExpertName


class Open(msgspec.Struct, frozen=True):
    """Load an expert on its workers and serve calls until the session is closed.

    It waits for the earlier sessions on its workers, and for the sessions in ``after``.
    """

    session: Session


class Submit(msgspec.Struct, frozen=True):
    """Serve a call; all calls in its ``after`` have ended."""

    call: Call
    to: int | ExpertName
    """A session that is open, or an expert: then any of its sessions that has room.

    An expert's queue is first in, first out.
    """


class Cancel(msgspec.Struct, frozen=True):
    """Stop a call that waits or runs; a call that has ended is not changed."""

    key: CallKey


class Cut(msgspec.Struct, frozen=True):
    """Limit the tokens that a call writes in all; a call that reaches the limit is cut there, without an answer."""

    key: CallKey
    tokens: int


class Move(msgspec.Struct, frozen=True):
    """Continue a call in another session of its expert, with the tokens written so far where the engine knows them."""

    key: CallKey
    session: int


class Close(msgspec.Struct, frozen=True):
    """End a session when its calls have ended; it takes no more calls."""

    session: int


class Prefill(msgspec.Struct, frozen=True):
    """Compute the beginning of a call's prompt ahead of the call, so that the call starts at its end.

    It replaces an earlier one of the same call, and the call itself replaces it. It has no effect if the session is not
    up, or takes no more calls.
    """

    call: Call
    """With the tokens of the beginning; its ``after`` holds all calls that it will read, in the order of its prompt."""
    session: int
    num_read: int
    """The number of these calls, the first ones, that have ended and are part of the beginning."""


Command: TypeAlias = Open | Submit | Cancel | Cut | Move | Close | Prefill


class Action(NamedTuple):
    """A command of a run with its cause: enough to replay the run."""

    ts: float
    """When the command was sent."""
    cause: str
    """The event that it replies to, named as by ``cause_of``."""
    command: Command


_COMMANDS: tuple[type[Command], ...] = (Open, Submit, Cancel, Cut, Move, Close, Prefill)
_KINDS = {cls.__name__.lower(): cls for cls in _COMMANDS}


def encode_action(action: Action) -> bytes:
    """Write an action as one line of JSON: its instant, its cause, the kind of command and its fields."""
    command = action.command
    fields = msgspec.to_builtins(command)
    if isinstance(command, (Submit, Prefill)) and command.call.prefix is None:
        del fields["call"]["prefix"]  # nearly all calls have none, and a journal has a line for each call
    return msgspec.json.encode(
        {"ts": action.ts, "cause": action.cause, "kind": type(command).__name__.lower(), **fields}
    )


def decode_action(text: bytes | str) -> Action:
    """Read what ``encode_action`` wrote.

    Raises
    ------
    msgspec.ValidationError
        If the text is no such line.
    """
    fields = msgspec.json.decode(text, type=dict[str, object])
    ts, cause, kind = (fields.pop(name, None) for name in ("ts", "cause", "kind"))
    if kind not in _KINDS:
        raise msgspec.ValidationError(f"action: kind must be one of {sorted(_KINDS)}, got {kind!r}")
    command = msgspec.convert(fields, _KINDS[str(kind)])
    return Action(msgspec.convert(ts, float), msgspec.convert(cause, str), command)
