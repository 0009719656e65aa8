"""Keeps a server below its limits of requests and tokens in a minute."""

import asyncio
import time
from collections import deque
from dataclasses import dataclass

from mosaic.engines.endpoint import Endpoint

WINDOW_S = 60.0


@dataclass(slots=True)
class Sent:
    """A request that was sent."""

    ts: float
    """On the machine's monotonic clock."""
    tokens: int
    """That it reads and writes; expected until its reply says it."""


class Pace:
    """The requests of the last minute, and when the next may follow.

    What a call will write is not known before: a reply is expected to have as many tokens as the mean of those so far,
    and the first one as many as it may.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._max_requests = endpoint.max_requests_per_min
        self._max_tokens = endpoint.max_tokens_per_min
        self._sent: deque[Sent] = deque()
        self._num_served = 0
        self._served_tokens = 0
        self._turn = asyncio.Lock()

    async def admit(self, max_tokens: int) -> Sent:
        """Wait until a request of at most so many tokens may be sent, and count it."""
        async with self._turn:
            while (wait_s := self.wait_s(time.monotonic(), max_tokens)) > 0:
                await asyncio.sleep(wait_s)
            return self.count(time.monotonic(), max_tokens)

    def count(self, now: float, max_tokens: int) -> Sent:
        """Count a request that is sent now."""
        sent = Sent(now, self._expected(max_tokens))
        if self._max_requests is not None or self._max_tokens is not None:
            self._sent.append(sent)
        return sent

    def settle(self, sent: Sent, tokens: int) -> None:
        """Take note of what a request came to."""
        sent.tokens = tokens
        self._num_served += 1
        self._served_tokens += tokens

    def wait_s(self, now: float, max_tokens: int) -> float:
        """Say how long a request of at most so many tokens has to wait; one that alone is too large waits for all."""
        while self._sent and self._sent[0].ts + WINDOW_S <= now:
            self._sent.popleft()
        num_before = 0  # requests that must have left the window
        if self._max_requests is not None:
            num_before = max(0, len(self._sent) - self._max_requests + 1)
        if self._max_tokens is not None:
            left = sum(sent.tokens for sent in list(self._sent)[num_before:]) + self._expected(max_tokens)
            while left > self._max_tokens and num_before < len(self._sent):
                left -= self._sent[num_before].tokens
                num_before += 1
        return self._sent[num_before - 1].ts + WINDOW_S - now if num_before else 0.0

    def _expected(self, max_tokens: int) -> int:
        return self._served_tokens // self._num_served if self._num_served else max_tokens
