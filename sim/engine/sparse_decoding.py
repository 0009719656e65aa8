"""The requests that decode together where long sequences are read in part."""

from collections import Counter
from heapq import heappop, heappush

from sim.engine.decoding import DecodingSet
from sim.engine.request import Request
from sim.engine.sparse_kv_cache import SparseKvCache
from sim.hardware.sparse_time import SparseBatch


class SparseDecodingSet(DecodingSet):
    """Knows beside the tokens in the cache how many sequences are short, and the tokens of those.

    A sequence turns long at a step that is known when it joins, so such steps are kept like finishes, and a jump ends
    at the next one.
    """

    __slots__ = ("_dense_tokens", "_num_turning", "_sparse_kv", "_turns", "num_short", "short_tokens")

    def __init__(self, kv: SparseKvCache, num_longest: int = 0) -> None:
        super().__init__(kv, num_longest)
        self.num_short = 0
        self.short_tokens = 0
        self._sparse_kv = kv
        self._dense_tokens = kv.sizes.dense_tokens
        self._num_turning: Counter[int] = Counter()
        """Sequences by the step after which they are long."""
        self._turns: list[int] = []
        """Those steps, a heap."""

    def batch(self) -> SparseBatch:
        """Describe the next step."""
        num_seqs, num_short = self.kv.num_growing, self.num_short
        return SparseBatch(
            num_seqs=num_seqs,
            num_long=num_seqs - num_short,
            kv_tokens=self.kv_tokens + num_seqs,
            short_tokens=self.short_tokens + num_short,
            longest=self._starts[-1] + self.counter + 1 if self._starts else 0,
        )

    def join(self, request: Request, num_tokens: int) -> None:
        super().join(request, num_tokens)
        self._sparse_kv.offload(num_tokens)
        turn = self.counter - num_tokens + self._dense_tokens
        if turn > self.counter:
            self.num_short += 1
            self.short_tokens += num_tokens
            self._sparse_kv.count_short(turn, 1)
            if turn not in self._num_turning:
                heappush(self._turns, turn)
            self._num_turning[turn] += 1

    def steps_to_finish(self) -> int:
        """Count the steps to the next finish, or to the next sequence that turns long."""
        steps = super().steps_to_finish()
        return min(steps, self._turns[0] - self.counter) if self._turns else steps

    def step(self, num_steps: int) -> list[Request]:
        self.short_tokens += num_steps * self.num_short
        end = self.counter + num_steps
        while self._turns and self._turns[0] <= end:
            turn = heappop(self._turns)
            self._forget(turn, self._num_turning.pop(turn), self._dense_tokens + end - turn)
        return super().step(num_steps)

    def _leave(self, request: Request, num_generated: int) -> None:
        num_tokens = request.prompt_tokens + num_generated - 1
        turn = self.counter - num_tokens + self._dense_tokens
        if turn > self.counter:
            self._num_turning[turn] -= 1
            self._forget(turn, 1, num_tokens)
        super()._leave(request, num_generated)

    def _forget(self, turn: int, number: int, num_tokens: int) -> None:
        """Count sequences that are short no more."""
        self.num_short -= number
        self.short_tokens -= number * num_tokens
        self._sparse_kv.count_short(turn, -number)
