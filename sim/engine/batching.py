"""Chooses the requests of an engine's next iteration: admission, chunked prefill, preemption."""

from mosaic.core.checks import require
from mosaic.core.engine_options import EngineOptions, Order
from sim.engine.decoding import DecodingSet
from sim.engine.kv_cache import NOTHING, KvCache
from sim.engine.prefix_cache import PrefixKvCache
from sim.engine.request import Chunk, Request, RequestQueue


class Batcher:
    """Composes iterations from waiting and running requests; it does not use durations.

    ``compose`` fixes the batch of the iteration that starts now. It is chunks of prompts, or else a decode step of all
    decoding requests; in mixed order it is both. ``complete`` ends the iteration.
    """

    def __init__(
        self,
        *,
        settings: EngineOptions,
        kv_tokens: int,
        context_tokens: int,
        keeps_lengths: bool = False,
        decoding: DecodingSet | None = None,
    ) -> None:
        # V0 evicts by last use and by length, and runs without prefix caching by default.
        is_allowed = not settings.caches_prefixes or settings.order is Order.MIXED
        require(is_allowed, "engine.enable_prefix_caching", "false unless order is mixed", True)
        self.is_mixed = settings.order.chunks_prompts
        self.queue = RequestQueue()
        if decoding is None:
            cache = PrefixKvCache if settings.caches_prefixes else KvCache
            kv = cache(kv_tokens=kv_tokens, block_size=settings.block_size, watermark_frac=settings.watermark)
            decoding = DecodingSet(kv, keeps_lengths=keeps_lengths)
        self.decoding = decoding
        self.kv = decoding.kv
        self.chunks: list[Chunk] = []
        """Of the last composed iteration, until it is complete."""
        self.preempted = False
        """Whether that iteration began with a preemption."""
        self._max_num_seqs = settings.max_num_seqs
        self._max_batched_tokens = settings.batched_tokens(context_tokens)
        self._reserves_sequences = settings.scheduler_reserve_full_isl
        self._caches_prefixes = settings.caches_prefixes
        fits = self.kv.max_tokens
        self._most_tokens = fits if self.is_mixed else min(fits, self._max_batched_tokens)
        """Of one sequence: an iteration must be able to compute it again, in mixed order in chunks."""
        self._partial: Request | None = None
        """Partly prefilled; there is at most one, and it was admitted last."""

    @property
    def is_idle(self) -> bool:
        return not (self.kv.num_growing or self.chunks or self.queue.waiting or self._partial)

    @property
    def would_admit(self) -> bool:
        """Whether the next iteration of a jump would consider a new arrival."""
        return not self.queue.waiting and self.kv.num_growing < self._max_num_seqs

    def check(self, request: Request) -> None:
        """Refuse a request that no iteration could ever serve.

        Raises
        ------
        ValueError
            Naming the field, the rule and the value.
        """
        prompt_tokens, output_tokens = request.prompt_tokens, request.output_tokens
        num_tokens = prompt_tokens + output_tokens - 1  # The last token is never fed back.
        limit = self._most_tokens
        if prompt_tokens >= 1 <= output_tokens and num_tokens <= limit:
            return
        require(prompt_tokens >= 1, "prompt_tokens", "at least 1", prompt_tokens)
        require(output_tokens >= 1, "output_tokens", "at least 1", output_tokens)
        source = "the KV blocks below the watermark hold, see backend.kv_cache_tokens"
        if limit < self.kv.max_tokens:
            source = "one iteration computes, see backend.max_num_batched_tokens"
        require(False, "prompt_tokens + output_tokens - 1", f"at most {limit} (what {source})", num_tokens)

    def alike_steps(self) -> int:
        """Count the decode steps from now on before the batch changes, without arrivals."""
        # After a preemption one step: the freed blocks may admit a request in the next iteration.
        limit = 1 if self.preempted else self.decoding.steps_to_finish()
        return self.kv.steps_that_fit(self.decoding.counter, limit)

    def compose(self, now: float) -> None:
        """Fix the batch of the iteration that starts now."""
        queue = self.queue
        if queue.next_arrival_ts <= now:
            queue.let_arrive(now)
        self.preempted = False
        kv = self.kv
        if self.is_mixed:
            self._compose_mixed(now)
            return
        if queue.waiting and kv.num_growing < self._max_num_seqs:
            first = queue.waiting[0]
            if kv.would_fit(first.prompt_tokens + first.num_generated, 0):
                self._admit(self._max_batched_tokens, now)
        if not self.chunks and kv.next_step_blocks(self.decoding.counter) > kv.num_free:
            self._preempt_for_next_step()

    def complete(self, num_steps: int, now: float) -> list[Request]:
        """End the iteration with chunks, or that many decode steps; return the finished requests."""
        decoding, chunks = self.decoding, self.chunks
        if chunks:
            finished = decoding.step(1) if self.is_mixed else []
            for request, num_tokens in chunks:
                if self._end_chunk(request, num_tokens, now):
                    finished.append(request)
            chunks.clear()
        else:
            self.kv.grow(decoding.counter, num_steps)
            finished = decoding.step(num_steps)
        for request in finished:
            request.finished_ts = now
        return finished

    def remove(self, request: Request) -> None:
        """Drop a request, in any state, between two iterations."""
        if request is self._partial:
            self._drop_partial(request)
        elif request in self.decoding:
            self.decoding.drop(request)
        else:
            self.queue.remove(request)

    def cut(self, request: Request, output_tokens: int) -> None:
        """Lower the output of a request, to one token more than it has at the least."""
        request_tokens = max(output_tokens, self.decoding.num_generated(request) + 1)
        if request_tokens < request.output_tokens:
            self.decoding.cut(request, request_tokens)

    def _compose_mixed(self, now: float) -> None:
        step_blocks = self.kv.next_step_blocks(self.decoding.counter)
        if step_blocks > self.kv.num_free:
            step_blocks = self._preempt_for_next_step()
        admits = not self.preempted and bool(self.queue.waiting) and self._could_admit(step_blocks)
        if self._partial is None and not admits:
            return
        budget = self._max_batched_tokens - self.kv.num_growing
        # Decodes come first, so their blocks are taken before any chunk is placed.
        if step_blocks:
            self.kv.hold(step_blocks)
        if self._partial is not None:
            budget -= self._continue_partial(self._partial, budget)
        if admits and not self.preempted:
            self._admit(budget, now)
        if step_blocks and not self.chunks:
            self.kv.unhold(step_blocks)

    def _could_admit(self, step_blocks: int) -> bool:
        """Return whether the first waiting request may fit, beside decodes that take so many blocks."""
        if self.kv.num_growing >= self._max_num_seqs:
            return False
        request = self.queue.waiting[0]
        if not self._reserves_sequences or request.blocks:
            return True
        return self.kv.would_fit(request.prompt_tokens + request.num_generated, step_blocks)

    def _continue_partial(self, request: Request, budget: int) -> int:
        num_tokens = min(request.num_tokens - request.num_prefilled, budget)
        if not self.kv.try_extend(request, request.num_prefilled, num_tokens):
            self._preempt_last()
            return 0
        self.chunks.append((request, num_tokens))
        return num_tokens

    def _admit(self, budget: int, now: float) -> None:
        """Admit waiting requests, first come first served, within the limits of sequences, tokens and blocks."""
        waiting, chunks, kv = self.queue.waiting, self.chunks, self.kv
        max_num_chunks = self._max_num_seqs - kv.num_growing
        caches_prefixes, reserves_sequences = self._caches_prefixes, self._reserves_sequences
        while waiting and budget and len(chunks) < max_num_chunks:
            request = waiting[0]
            num_tokens = request.prompt_tokens + request.num_generated
            whole_tokens = num_tokens if reserves_sequences else 0
            found, num_cached = NOTHING, 0
            if caches_prefixes and (request.blocks or request.num_preemptions):
                found = kv.find(request)
                num_cached = found.num_tokens
                num_tokens -= num_cached
            if num_tokens > budget:
                if not self.is_mixed:
                    break
                num_tokens = budget
            if not kv.try_admit(request, found, num_cached + num_tokens, whole_tokens):
                break
            waiting.popleft()
            budget -= num_tokens
            if request.admitted_ts is None:
                request.admitted_ts = now
                request.cached_tokens = num_cached
            elif num_cached:
                request.wasted_tokens -= num_cached
            if num_cached:
                request.num_prefilled = num_cached
            chunks.append((request, num_tokens))

    def _preempt_for_next_step(self) -> int:
        """Preempt until the next step's blocks are free, and count them."""
        kv, counter = self.kv, self.decoding.counter
        while (step_blocks := kv.next_step_blocks(counter)) > kv.num_free:
            kv.use_up()
            self._preempt_last()
        return step_blocks

    def _preempt_last(self) -> None:
        """Move the last admitted request back to the front of the queue, to be computed again."""
        if self._partial is not None:
            request = self._partial
            self._drop_partial(request)
        else:
            request = self.decoding.pop_last()
        request.num_preemptions += 1
        self.queue.waiting.appendleft(request)
        self.preempted = True

    def _drop_partial(self, request: Request) -> None:
        self.kv.free(request, request.num_prefilled)
        request.wasted_tokens += request.num_prefilled
        request.num_prefilled = 0
        self._partial = None

    def _end_chunk(self, request: Request, num_tokens: int, now: float) -> bool:
        """Record the tokens that a chunk computed; True if the request is finished."""
        num_tokens += request.num_prefilled
        num_generated = request.num_generated
        if num_tokens < request.prompt_tokens + num_generated:
            request.num_prefilled = num_tokens
            self._partial = request
            return False
        if request is self._partial:
            self._partial = None
        request.num_prefilled = 0
        num_generated = request.num_generated = num_generated + 1
        if request.first_token_ts is None:
            request.first_token_ts = now
        if num_generated < request.output_tokens:
            self.decoding.join(request, num_tokens)
            return False
        self.kv.free(request, num_tokens)
        return True
