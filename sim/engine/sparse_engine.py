"""Simulates the engine of an expert with a sparse KV cache: memory of sequences, long ones, and ends of steps."""

from collections import Counter
from dataclasses import dataclass
from heapq import heappop, heappush

from mosaic.core.checks import require
from mosaic.core.engine_options import EngineOptions
from mosaic.core.workload import PAGE_TOKENS, SparseKv
from sim.engine.batching import Batcher
from sim.engine.decoding import DecodingSet
from sim.engine.engine import Engine
from sim.engine.kv_cache import Found, KvCache
from sim.engine.request import Request
from sim.hardware.sparse_time import SparseBatch, SparseTime


@dataclass(frozen=True, slots=True, kw_only=True)
class PageSizes:
    """Memory of a page on the GPU, in units. A unit is the key and the value of one token in one head of one layer.

    A page's summary, the smallest and the largest key, takes one unit in each head.
    """

    num_heads: int
    """KV heads of all layers, on each worker."""
    num_unstable: int
    dense_tokens: int
    """Up to so many tokens a sequence is kept in full."""

    @classmethod
    def of(cls, kv: SparseKv, num_heads: int) -> "PageSizes":
        """Compute the page sizes of a model with so many KV heads."""
        return cls(num_heads=num_heads, num_unstable=kv.num_unstable(num_heads), dense_tokens=kv.dense_tokens)

    @property
    def full(self) -> int:
        """Of a page that every head keeps, with its summaries."""
        return (PAGE_TOKENS + 1) * self.num_heads

    @property
    def lean(self) -> int:
        """Of a page that stable heads do not keep, with the summaries of all heads."""
        return PAGE_TOKENS * self.num_unstable + self.num_heads


class SparseKvCache(KvCache):
    """Counts units instead of blocks: a prompt takes all of its pages, and stable heads return theirs after it.

    NOTE: a decoding sequence is short or long. In a short one every new page counts in full. In a long one a new page
    of a stable head replaces one that moves to CPU memory. Both kinds grow in lockstep, so there is a second histogram
    of phases, for the short ones. The decoding set knows when a sequence becomes long.
    """

    __slots__ = ("_short_phases", "sizes")

    def __init__(self, *, kv_tokens: int, watermark_frac: float, sizes: PageSizes) -> None:
        super().__init__(kv_tokens=kv_tokens, block_size=PAGE_TOKENS, watermark_frac=watermark_frac)
        self.sizes = sizes
        self.num_blocks *= PAGE_TOKENS * sizes.num_heads
        require(self.num_blocks >= sizes.full, "backend.kv_cache_tokens", "a page with its summaries", kv_tokens)
        self.watermark_blocks = int(watermark_frac * self.num_blocks)
        self.num_free = self.num_blocks
        self._short_phases = [0] * (2 * PAGE_TOKENS)

    @property
    def max_tokens(self) -> int:
        return (self.num_blocks - self.watermark_blocks) // self.sizes.full * PAGE_TOKENS

    def blocks(self, num_tokens: int) -> int:
        """Units of a prompt of this many tokens, all of them on the GPU."""
        return -(-num_tokens // PAGE_TOKENS) * self.sizes.full

    def held(self, num_tokens: int) -> int:
        """Units of a decoding sequence of this many tokens."""
        sizes, num_pages = self.sizes, -(-num_tokens // PAGE_TOKENS)
        num_full = min(num_pages, sizes.dense_tokens // PAGE_TOKENS)
        return num_pages * sizes.lean + num_full * (sizes.full - sizes.lean)

    def would_fit(self, num_tokens: int, num_blocks: int) -> bool:
        return self.num_free - num_blocks - self.blocks(num_tokens) >= self.watermark_blocks

    def try_admit(self, request: Request, found: Found, num_tokens: int, whole_tokens: int) -> bool:
        if self.num_free - self.blocks(max(num_tokens, whole_tokens)) < self.watermark_blocks:
            return False
        self.num_free -= self.blocks(num_tokens)
        return True

    def free(self, request: Request, num_tokens: int) -> None:
        self.num_free += self.blocks(num_tokens)

    def offload(self, num_tokens: int) -> None:
        """Return the units that a sequence no longer holds once its prompt of this many tokens has been read."""
        self.num_free += self.blocks(num_tokens) - self.held(num_tokens)

    def count_short(self, phase: int, change: int) -> None:
        """Add a sequence of this phase to the short ones, or remove it."""
        phase %= PAGE_TOKENS
        self._short_phases[phase] += change
        self._short_phases[phase + PAGE_TOKENS] += change

    def leave(self, request: Request, phase: int, num_tokens: int) -> None:
        super().leave(request, phase, num_tokens)  # returns all pages of a prompt, of which some were offloaded
        self.num_free -= self.blocks(num_tokens) - self.held(num_tokens)

    def next_step_blocks(self, counter: int) -> int:
        return self._needed(counter % PAGE_TOKENS)

    def steps_that_fit(self, counter: int, limit: int) -> int:
        cycle = sum(self._needed(phase) for phase in range(PAGE_TOKENS))
        cycles, spare = divmod(self.num_free, cycle)
        steps = cycles * PAGE_TOKENS
        for place in range(counter, counter + PAGE_TOKENS):
            needed = self._needed(place % PAGE_TOKENS)
            if needed > spare:
                break
            spare -= needed
            steps += 1
        return min(steps, limit)

    def grow(self, counter: int, num_steps: int) -> None:
        cycles, rest = divmod(num_steps, PAGE_TOKENS)
        needed = [self._needed((counter + place) % PAGE_TOKENS) for place in range(PAGE_TOKENS)]
        self.num_free -= cycles * sum(needed) + sum(needed[:rest])

    def _needed(self, phase: int) -> int:
        """Units of the step of a phase."""
        sizes = self.sizes
        return self._phases[phase] * sizes.lean + self._short_phases[phase] * (sizes.full - sizes.lean)


class SparseDecodingSet(DecodingSet):
    """Also counts short sequences, and their tokens.

    The step at which a sequence becomes long is known when it joins. So such steps are kept like finishes, and a jump
    ends at the next one.
    """

    __slots__ = ("_dense_tokens", "_num_turning", "_sparse_kv", "_turns", "num_short", "short_tokens")

    def __init__(self, kv: SparseKvCache, *, keeps_lengths: bool = False) -> None:
        super().__init__(kv, keeps_lengths=keeps_lengths)
        self.num_short = 0
        self.short_tokens = 0
        self._sparse_kv = kv
        self._dense_tokens = kv.sizes.dense_tokens
        self._num_turning: Counter[int] = Counter()
        """Sequences by the step after which they are long."""
        self._turns: list[int] = []
        """These steps, as a heap."""

    def batch(self) -> SparseBatch:
        """Describe the next step."""
        num_seqs, num_short = self.kv.num_growing, self.num_short
        return SparseBatch(
            num_seqs=num_seqs,
            num_long=num_seqs - num_short,
            kv_tokens=self.kv_tokens + num_seqs,
            short_tokens=self.short_tokens + num_short,
            longest=self.longest(),
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
        """Count the steps to the next finish, or to the next sequence that becomes long."""
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
        """Remove sequences from the short ones."""
        self.num_short -= number
        self.short_tokens -= number * num_tokens
        self._sparse_kv.count_short(turn, -number)


_NOBODY = SparseBatch(0, 0, 0, 0, 0)


class SparseEngine(Engine):
    """Like ``Engine``, except for the memory of sequences, the tokens read, and so the ends of steps.

    Parameters
    ----------
    iteration_time, settings, kv_tokens, context_tokens, start_ts
        As for ``Engine``; the capacity is the memory for so many tokens in full.
    sizes
        Memory of a page.
    """

    def __init__(
        self,
        *,
        iteration_time: SparseTime,
        settings: EngineOptions,
        kv_tokens: int,
        context_tokens: int,
        sizes: PageSizes,
        start_ts: float = 0.0,
    ) -> None:
        super().__init__(
            iteration_time=iteration_time,
            settings=settings,
            kv_tokens=kv_tokens,
            context_tokens=context_tokens,
            start_ts=start_ts,
        )
        self._sparse_time = iteration_time
        cache = SparseKvCache(kv_tokens=kv_tokens, watermark_frac=settings.watermark, sizes=sizes)
        self._decoding = SparseDecodingSet(cache, keeps_lengths=iteration_time.needs_longest)
        self._batcher = Batcher(
            settings=settings, kv_tokens=kv_tokens, context_tokens=context_tokens, decoding=self._decoding
        )

    def _plan_prefill(self) -> None:
        chunks = [(num_tokens, request.num_prefilled) for request, num_tokens in self._batcher.chunks]
        beside = self._decoding.batch() if self._batcher.is_mixed else _NOBODY
        self._jump_end_ts = self._now + self._pace * self._sparse_time.mixed_sparse_s(chunks, beside)
        self._jump_steps = 1

    def _end_of(self, steps: int) -> float:
        return self._now + self._pace * self._sparse_time.span_s(self._decoding.batch(), steps)
