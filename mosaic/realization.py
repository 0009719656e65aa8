"""What would really happen to a call. Imported by backends and sim only: schedulers see predictions."""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from struct import unpack
from typing import TypeAlias

from mosaic.workload import Call, CallKey

Outcomes: TypeAlias = Callable[[Call], "Outcome"]
"""Maps a call to its outcome; pure, so that every policy meets the same world."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The true result of a call."""

    output_tokens: int
    answer: str | None = None


def uniforms(root_seed: int, stream: str, key: CallKey) -> tuple[float, float, float, float]:
    """Draw four numbers in (0, 1) that depend on nothing but the seed, the stream's name and the call's key.

    Hashed and not taken from a generator, so that a policy which cancels, adds or re-routes calls
    leaves the luck of all others as it is.

    Examples
    --------
    >>> from mosaic.workload import CallKey, Role
    >>> key = CallKey("q1", Role.PROPOSE, 0)
    >>> uniforms(0, "length", key) == uniforms(0, "length", key)
    True
    >>> uniforms(0, "length", key) == uniforms(1, "length", key)
    False
    """
    message = f"{root_seed}|{stream}|{key.question}|{key.role.value}|{key.slot}".encode()
    words = unpack("<4Q", blake2b(message, digest_size=32).digest())
    return tuple(((word >> 12) + 0.5) * 2.0**-52 for word in words)
