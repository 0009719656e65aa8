"""Defines a request to the engine, and the queue of requests that are not admitted yet."""

from bisect import bisect_right, insort
from collections import deque
from collections.abc import Hashable, Sequence
from math import inf
from typing import TypeAlias

import msgspec


class Request(msgspec.Struct, eq=False, gc=False):
    """One generation, from its arrival to its last token; instants are on the engine's clock.

    A request waits, is admitted (its prompt is prefilled, which yields a token), decodes, and finishes. When the KV
    blocks run out, the last admitted request is preempted. It waits again, before all others, and its generated tokens
    become part of its prompt.
    """

    id: int
    """The caller's name for it; the engine does not use it."""
    prompt_tokens: int
    output_tokens: int
    queued_ts: float
    blocks: Sequence[Hashable] = ()
    """Names of the first full blocks of its prompt: requests that share one have the same tokens up to its end."""
    admitted_ts: float | None = None
    """Start of the first iteration that computed any of it."""
    first_token_ts: float | None = None
    finished_ts: float | None = None
    num_generated: int = 0
    """Output tokens so far; updated whenever it stops decoding."""
    num_preemptions: int = 0
    cached_tokens: int = 0
    """Prompt tokens found in the cache at its first admission."""
    wasted_tokens: int = 0
    """KV entries that were dropped by preemptions and computed again, or were dropped by an abort."""
    num_prefilled: int = 0
    """Tokens of a partly prefilled prompt, or those that the current admission has found in the cache."""
    finish_step: int = 0
    """While decoding: the engine's step counter after its last token."""
    ticket: int = -1
    """While decoding: its number in the order of admission."""

    @property
    def num_tokens(self) -> int:
        """Tokens that a prefill has to compute."""
        return self.prompt_tokens + self.num_generated


Chunk: TypeAlias = tuple[Request, int]
"""Part of a prompt that one iteration computes, in tokens."""


def _arrival_ts(request: Request) -> float:
    return request.queued_ts


class RequestQueue:
    """First come, first served; a preempted request returns to the front."""

    __slots__ = ("_arriving", "next_arrival_ts", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[Request] = deque()
        self.next_arrival_ts = inf
        """When the next request arrives; infinite if there is none."""
        self._arriving: list[Request] = []
        """In the order of arrival."""

    def add(self, request: Request) -> None:
        """Add a request that arrives at its ``queued_ts``; of two at the same instant the one added first is first."""
        arriving = self._arriving
        if arriving and request.queued_ts < arriving[-1].queued_ts:
            insort(arriving, request, key=_arrival_ts)
        else:
            arriving.append(request)
        self.next_arrival_ts = arriving[0].queued_ts

    def let_arrive(self, now: float) -> None:
        """Move arrived requests to the queue."""
        arriving = self._arriving
        num_here = bisect_right(arriving, now, key=_arrival_ts)
        self.waiting += arriving[:num_here]
        del arriving[:num_here]
        self.next_arrival_ts = arriving[0].queued_ts if arriving else inf

    def remove(self, request: Request) -> None:
        """Remove a request, before or after its arrival."""
        if request in self.waiting:
            self.waiting.remove(request)
        else:
            self._arriving.remove(request)
            self.next_arrival_ts = self._arriving[0].queued_ts if self._arriving else inf
