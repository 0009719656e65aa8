"""A request as the engine sees it."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(slots=True, eq=False)
class Request:
    """One generation, from its arrival to its last token; instants are on the engine's clock.

    A request waits, is admitted (its prompt is prefilled, which yields a token), decodes, and finishes.
    When the KV blocks run out the request admitted last is preempted: it waits again, in front of all
    others, and what it has generated so far belongs to its prompt.
    """

    id: int
    """The caller's name for it; the engine does not look at it."""
    prompt_tokens: int
    output_tokens: int
    queued_ts: float
    prefix: Hashable = None
    """What its prompt begins with, by name: requests of one prefix begin with the same tokens; None: its own."""
    prefix_tokens: int = 0
    """How much of the prompt that is."""
    admitted_ts: float | None = None
    """Start of the first iteration that computed any of it."""
    first_token_ts: float | None = None
    finished_ts: float | None = None
    num_generated: int = 0
    """Output tokens so far; brought up to date whenever it stops decoding."""
    num_preemptions: int = 0
    cached_tokens: int = 0
    """Of the prompt, found in the cache when it was first admitted."""
    wasted_tokens: int = 0
    """KV entries that were dropped by preemptions and had to be computed anew, or were dropped by an abort."""
    num_prefilled: int = 0
    """Tokens of a half-prefilled prompt, or those that the admission under way has found in the cache."""
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
