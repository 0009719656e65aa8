"""Commands of controllers to a backend: plain values, so that the log of commands can be written down and replayed."""

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import msgspec

from mosaic.core.plan import Session
from mosaic.core.workload import Call, CallKey, ExpertName


@dataclass(frozen=True, slots=True)
class Open:
    """Load an expert on its workers and serve calls until the session is closed.

    It waits for the sessions before it on its workers, and for those that it follows.
    """

    session: Session


@dataclass(frozen=True, slots=True)
class Submit:
    """Serve a call; all that it comes after has ended."""

    call: Call
    to: int | ExpertName
    """A session, which must have been opened and not closed, or an expert: then whichever of its sessions has room.

    In an expert's queue the one that was submitted first goes first.
    """


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop a call wherever it waits or runs; one that has ended stays as it is."""

    key: CallKey


@dataclass(frozen=True, slots=True)
class Cut:
    """Let a call write at most so many tokens in all; one that would write more is cut there, without an answer."""

    key: CallKey
    tokens: int


@dataclass(frozen=True, slots=True)
class Move:
    """Go on with a call in another session of its expert, with what it has written where the engine knows it."""

    key: CallKey
    session: int


@dataclass(frozen=True, slots=True)
class Close:
    """End a session when its calls have ended; it gets no more."""

    session: int


@dataclass(frozen=True, slots=True)
class Prefill:
    """Compute the beginning of a call's prompt ahead of the call, so that it starts where that ends.

    It takes the place of an earlier one of the same call, and the call itself takes its place. Without effect where
    the session is not up, or gets no more calls.
    """

    call: Call
    """With the tokens of the beginning, and after all calls that it is going to read, in the order of its prompt."""
    session: int
    num_read: int
    """So many of them, the first ones, have ended and stand in the beginning."""


Command: TypeAlias = Open | Submit | Cancel | Cut | Move | Close | Prefill


class Action(NamedTuple):
    """A command of a run, with its cause: enough to replay the run."""

    ts: float
    """When it was given."""
    cause: str
    """The event that it answers, as ``cause_of`` names it."""
    command: Command


_COMMANDS: tuple[type[Command], ...] = (Open, Submit, Cancel, Cut, Move, Close, Prefill)
_KINDS = {cls.__name__.lower(): cls for cls in _COMMANDS}


def encode_action(action: Action) -> bytes:
    """Write an action as a JSON text of one line: its instant, its cause, the kind of command and its fields."""
    command = action.command
    fields = msgspec.to_builtins(command)
    if isinstance(command, (Submit, Prefill)) and command.call.prefix is None:
        del fields["call"]["prefix"]  # nearly all calls: a journal has a line for each
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
