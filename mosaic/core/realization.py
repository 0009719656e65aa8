"""The true outcome of a call. Only backends and sim import it: schedulers work with predictions."""

from collections.abc import Callable, Mapping
from hashlib import blake2b
from struct import Struct
from typing import TypeAlias

import msgspec
from msgspec.structs import replace

from mosaic.core.results import Inputs
from mosaic.core.workload import Call, CallKey

Outcomes: TypeAlias = Callable[[Call, Inputs], "Outcome"]
"""Maps a call, and the records of the calls in its ``after``, to its outcome.

It is pure, so that every policy meets the same world. It is called when the call is submitted.
"""


_TWO, _EIGHT = Struct("<2Q"), Struct("<8Q")
_STEP = 2.0**-52
"""Distance between two numbers that can be drawn."""


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """The true result of a call."""

    output_tokens: int
    answer: str | None = None
    visible_tokens: int | None = None
    """Tokens of the response without its thinking; None: the whole response."""
    confidence: float | None = None
    """Probability with which the expert gives this answer; None: not requested."""
    sparse_answers: Mapping[int, str] | None = None
    """Answers by KV budget in tokens, where the budget changes the answer."""

    def with_kv_budget(self, budget_tokens: int | None) -> "Outcome":
        """Return the outcome when attention reads at most a budget of tokens; None: all of them."""
        if budget_tokens is None or not self.sparse_answers or budget_tokens not in self.sparse_answers:
            return self
        return replace(self, answer=self.sparse_answers[budget_tokens])


def uniform(root_seed: int, stream: str, key: CallKey) -> float:
    """Draw a number in (0, 1) that depends only on the seed, the stream's name and the call's key.

    It is a hash and not the next number of a generator. So a policy that cancels, adds or re-routes calls does not
    change the draws of other calls.

    Examples
    --------
    >>> from mosaic.core.workload import CallKey, PROPOSE
    >>> key = CallKey("q1", PROPOSE, 0)
    >>> uniform(0, "length", key) == uniform(0, "length", key)
    True
    >>> uniform(0, "length", key) == uniform(1, "length", key)
    False
    """
    return uniform_pair(root_seed, stream, key)[0]


def uniform_pair(root_seed: int, stream: str, key: CallKey) -> tuple[float, float]:
    """Draw two independent numbers for a call; the first one equals that of ``uniform``."""
    question, node, slot = key
    digest = blake2b(f"{root_seed}|{stream}|{question}|{node}|{slot}".encode(), digest_size=32).digest()
    first, second = _TWO.unpack_from(digest)
    return ((first >> 12) + 0.5) * _STEP, ((second >> 12) + 0.5) * _STEP


def question_uniforms(root_seed: int, stream: str, question: str, count: int) -> list[float]:
    """Draw numbers in (0, 1) that all calls of a question share."""
    numbers: list[float] = []
    for block in range(-(-count // 8)):
        digest = blake2b(f"{root_seed}|{stream}|{question}|item {block}".encode()).digest()
        numbers += [((number >> 12) + 0.5) * _STEP for number in _EIGHT.unpack(digest)[: count - len(numbers)]]
    return numbers
