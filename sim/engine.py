"""A vLLM-like engine in simulated time: continuous batching, KV blocks, recompute preemption. Free of SimPy.

NOTE: between two changes of the batch nothing but the token counts changes, so the engine jumps: it asks
for the time of k decode steps at once, where k is the least number of steps to the next finish, to the
step for which KV blocks run out, to the next arrival that could be admitted, or to the caller's target.
"""

from bisect import bisect_left, bisect_right
from typing import NamedTuple

from mosaic.checks import require
from sim.decoding import DecodingSet
from sim.engine_settings import EngineSettings, Order
from sim.iteration_time import IterationTime
from sim.kv_cache import KvCache
from sim.request import Request
from sim.request_queue import RequestQueue


class Chunk(NamedTuple):
    """Part of a prompt that one iteration computes."""

    request: Request
    num_tokens: int


class Engine:
    """One expert's engine, from ``submit`` to the finished requests that ``advance_to`` returns.

    The engine's own time runs from iteration to iteration. ``advance_to(ts)`` completes all iterations
    that end by ``ts``; the one under way at ``ts`` keeps its batch: who arrives or is aborted meanwhile
    joins or leaves when it ends.
    """

    def __init__(
        self,
        *,
        iteration_time: IterationTime,
        settings: EngineSettings,
        kv_tokens: int,
        context_tokens: int,
        start_ts: float = 0.0,
    ) -> None:
        self._time = iteration_time
        self._mixed = settings.order is Order.MIXED
        self._max_num_seqs = settings.max_num_seqs
        self._max_batched_tokens = settings.batched_tokens(context_tokens)
        self._kv = KvCache(kv_tokens=kv_tokens, block_size=settings.block_size, watermark_frac=settings.watermark_frac)
        self._target_ts = start_ts
        """Up to here the caller has seen everything."""
        self._now = start_ts
        """Start of the next iteration."""
        self._queue = RequestQueue()
        self._partial: Request | None = None
        """Half-prefilled; there is at most one, and it is the request admitted last."""
        self._decoding = DecodingSet(self._kv)
        self._finished: list[Request] = []
        # The iteration that starts at _now, once its batch is fixed, and the jump that it begins.
        self._batch_fixed = False
        self._preempted = False
        self._chunks: list[Chunk] = []
        self._jump_steps = 0
        self._jump_end_ts = 0.0

    @property
    def boundary_ts(self) -> float:
        """End of the last completed iteration."""
        return self._now

    def submit(self, request_id: int, prompt_tokens: int, output_tokens: int, ready_ts: float) -> Request:
        """Queue a request, which no iteration that starts before ``ready_ts`` admits.

        Raises
        ------
        ValueError
            If it can never fit, or arrives in the engine's past.
        """
        self._check(request_id, prompt_tokens, output_tokens, ready_ts)
        request = Request(request_id, prompt_tokens, output_tokens, ready_ts)
        self._queue.add(request)
        if not self._chunks:
            self._jump_steps = 0  # The arrival may end the jump early.
        return request

    def _check(self, request_id: int, prompt_tokens: int, output_tokens: int, ready_ts: float) -> None:
        num_tokens = prompt_tokens + output_tokens - 1  # The last token is never fed back.
        limit = self._kv.max_tokens if self._mixed else min(self._kv.max_tokens, self._max_batched_tokens)
        if not (prompt_tokens >= 1 <= output_tokens and num_tokens <= limit and ready_ts >= self._target_ts):
            name = f"request {request_id}"
            require(prompt_tokens >= 1, f"{name}: prompt_tokens", "at least 1", prompt_tokens)
            require(output_tokens >= 1, f"{name}: output_tokens", "at least 1", output_tokens)
            rule = f"at most {limit} (what the KV blocks below the watermark hold, and one iteration's tokens)"
            require(num_tokens <= limit, f"{name}: prompt_tokens + output_tokens - 1", rule, num_tokens)
            require(False, f"{name}: ready_ts", f"at least {self._target_ts}, which has passed", ready_ts)

    def next_event_ts(self) -> float:
        """Next instant at which anything may change, counting on no new submission; infinite when idle.

        With this the iteration that starts now counts as under way.
        """
        if self._now > self._target_ts:
            return self._now
        if self._idle():
            if self._queue.next_arrival_ts > self._target_ts:
                return self._queue.next_arrival_ts
            self._now = self._target_ts
        self._plan_jump()
        return self._jump_end_ts

    def advance_to(self, ts: float) -> list[Request]:
        """Run up to ``ts`` and return the requests that finished since the last call, in order of finish."""
        self._run_to(ts)
        finished, self._finished = self._finished, []
        if self._now > ts:
            # An abort has completed the iteration under way: its finishes belong to a later call.
            self._finished = [request for request in finished if request.finished_ts == self._now]
            del finished[len(finished) - len(self._finished) :]
        return finished

    def abort(self, request: Request, ts: float) -> bool:
        """Drop a request at ``ts``; False if it had finished by then.

        The iteration under way at ``ts`` completes with it, as nobody can stop a running kernel.
        """
        self._run_to(ts)
        if request.finished_ts is not None and request.finished_ts <= ts:
            return False
        if self._batch_fixed or (self._now < ts and not self._idle()):
            self._plan_jump()
            self._commit(1)
        self._remove(request)
        request.finished_ts = ts
        return True

    def _remove(self, request: Request) -> None:
        if request.finished_ts is not None:
            self._finished.remove(request)
            request.wasted_tokens += request.num_tokens - 1
        elif request is self._partial:
            self._drop_partial(request)
        elif request in self._decoding:
            self._decoding.drop(request)
        else:
            self._queue.remove(request)

    def _idle(self) -> bool:
        return not (self._kv.num_growing or self._chunks or self._queue.waiting or self._partial)

    def _run_to(self, ts: float) -> None:
        require(ts >= self._target_ts, "engine: ts", f"at least {self._target_ts}, which has passed", ts)
        while self._now < ts:
            if self._idle():
                if self._queue.next_arrival_ts >= ts:
                    break
                self._now = max(self._now, self._queue.next_arrival_ts)
            self._plan_jump()
            if self._jump_end_ts > ts:
                if not self._chunks:
                    self._commit(bisect_right(range(1, self._jump_steps + 1), ts, key=self._end_of))
                break
            self._commit(self._jump_steps)
        self._target_ts = ts

    def _plan_jump(self) -> None:
        """Fix the batch of the iteration that starts now, and find out how far it goes unchanged."""
        if not self._batch_fixed:
            self._fix_batch()
        if self._jump_steps:
            return
        if self._chunks:
            self._plan_prefill()
        else:
            self._plan_decode()

    def _fix_batch(self) -> None:
        self._queue.let_arrive(self._now)
        self._preempted = False
        self._jump_steps = 0
        self._batch_fixed = True
        if self._mixed:
            self._fix_mixed_batch()
        elif self._queue.waiting and self._kv.num_growing < self._max_num_seqs:
            self._admit(self._max_batched_tokens)
        if not self._chunks:
            self._preempt_for_next_step()

    def _fix_mixed_batch(self) -> None:
        self._preempt_for_next_step()
        budget = self._max_batched_tokens - self._kv.num_growing
        # Decodes come first, so their blocks are taken before any chunk is placed.
        step_blocks = self._kv.next_step_blocks(self._decoding.counter)
        self._kv.num_free -= step_blocks
        if self._partial is not None:
            budget -= self._continue_partial(self._partial, budget)
        if self._queue.waiting and not self._preempted:
            self._admit(budget)
        if not self._chunks:
            self._kv.num_free += step_blocks

    def _continue_partial(self, request: Request, budget: int) -> int:
        num_tokens = min(request.num_tokens - request.num_prefilled, budget)
        if not self._kv.try_extend(request.num_prefilled, num_tokens):
            self._preempt_last()
            return 0
        self._chunks.append(Chunk(request, num_tokens))
        return num_tokens

    def _admit(self, budget: int) -> None:
        """Admit waiting requests, first come first served, while sequences, tokens and blocks last."""
        waiting, chunks = self._queue.waiting, self._chunks
        max_num_chunks = self._max_num_seqs - self._kv.num_growing
        while waiting and budget and len(chunks) < max_num_chunks:
            request = waiting[0]
            num_tokens = request.prompt_tokens + request.num_generated
            if num_tokens > budget:
                if not self._mixed:
                    break
                num_tokens = budget
            if not self._kv.try_admit(num_tokens):
                break
            waiting.popleft()
            budget -= num_tokens
            if request.admitted_ts is None:
                request.admitted_ts = self._now
            chunks.append(Chunk(request, num_tokens))

    def _preempt_for_next_step(self) -> None:
        while self._kv.next_step_blocks(self._decoding.counter) > self._kv.num_free:
            self._preempt_last()

    def _preempt_last(self) -> None:
        """Send the request admitted last back to the front of the queue, to be computed anew."""
        if self._partial is not None:
            request = self._partial
            self._drop_partial(request)
        else:
            request = self._decoding.pop_last()
        request.num_preemptions += 1
        self._queue.waiting.appendleft(request)
        self._preempted = True

    def _drop_partial(self, request: Request) -> None:
        self._kv.free(request.num_prefilled)
        request.wasted_tokens += request.num_prefilled
        request.num_prefilled = 0
        self._partial = None

    def _plan_prefill(self) -> None:
        chunks = [(num_tokens, request.num_prefilled) for request, num_tokens in self._chunks]
        num_decodes = self._kv.num_growing if self._mixed else 0
        kv_read = self._decoding.kv_tokens + num_decodes if num_decodes else 0
        self._jump_end_ts = self._now + self._time.mixed_s(chunks, num_decodes, kv_read)
        self._jump_steps = 1

    def _plan_decode(self) -> None:
        if self._preempted:
            steps = 1  # What was freed may admit someone in the next iteration.
        else:
            steps = self._kv.steps_that_fit(self._decoding.counter, self._decoding.steps_to_finish())
        self._jump_end_ts = self._end_of(steps)
        ready_ts = self._queue.next_arrival_ts
        if ready_ts < self._jump_end_ts and not self._queue.waiting and self._kv.num_growing < self._max_num_seqs:
            steps = bisect_left(range(1, steps + 1), ready_ts, key=self._end_of) + 1
            self._jump_end_ts = self._end_of(steps)
        self._jump_steps = steps

    def _end_of(self, steps: int) -> float:
        num_seqs = self._kv.num_growing
        return self._now + self._time.decode_span_s(num_seqs, self._decoding.kv_tokens + num_seqs, steps)

    def _commit(self, steps: int) -> None:
        """Complete the planned iteration (chunks), or that many steps of the planned jump."""
        if not steps:
            return
        if self._chunks:
            steps = 1 if self._mixed else 0
        else:
            if steps != self._jump_steps:
                self._jump_end_ts = self._end_of(steps)
            self._kv.grow(self._decoding.counter, steps)
        self._now = self._jump_end_ts
        self._batch_fixed = False
        if steps:
            self._decoding.step(steps)
            for request in self._decoding.pop_finished():
                self._finish(request)
        if self._chunks:
            for request, num_tokens in self._chunks:
                self._finish_chunk(request, num_tokens)
            self._chunks.clear()

    def _finish_chunk(self, request: Request, num_tokens: int) -> None:
        num_tokens += request.num_prefilled
        if num_tokens < request.prompt_tokens + request.num_generated:
            request.num_prefilled = num_tokens
            self._partial = request
            return
        if request is self._partial:
            self._partial = None
            request.num_prefilled = 0
        request.num_generated += 1
        if request.first_token_ts is None:
            request.first_token_ts = self._now
        if request.num_generated == request.output_tokens:
            self._kv.free(num_tokens)
            self._finish(request)
        else:
            self._decoding.join(request, num_tokens)

    def _finish(self, request: Request) -> None:
        request.finished_ts = self._now
        self._finished.append(request)
