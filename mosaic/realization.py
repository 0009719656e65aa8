"""What would really happen to a call. Imported by backends and sim only: schedulers see predictions."""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import TypeAlias

from mosaic.workload import Call, CallKey

Outcomes: TypeAlias = Callable[[Call], "Outcome"]
"""Maps a call to its outcome; pure, so that every policy meets the same world."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The true result of a call."""

    output_tokens: int
    answer: str | None = None


def uniform(root_seed: int, stream: str, key: CallKey) -> float:
    """Draw a number in (0, 1) that depends on nothing but the seed, the stream's name and the call's key.

    Hashed and not taken from a generator, so that a policy which cancels, adds or re-routes calls
    leaves the luck of all others as it is.

    Examples
    --------
    >>> from mosaic.workload import CallKey, Role
    >>> key = CallKey("q1", Role.PROPOSE, 0)
    >>> uniform(0, "length", key) == uniform(0, "length", key)
    True
    >>> uniform(0, "length", key) == uniform(1, "length", key)
    False
    """
    question, role, slot = key
    digest = blake2b(f"{root_seed}|{stream}|{question}|{role}|{slot}".encode(), digest_size=32).digest()
    return ((int.from_bytes(digest[:8], "little") >> 12) + 0.5) * 2.0**-52
