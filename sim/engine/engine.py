"""Simulates a vLLM-like engine: continuous batching, KV blocks, recompute preemption. Does not use SimPy.

NOTE: between two changes of the batch only the token counts change. So the engine jumps: it computes the time of k
decode steps at once. Here k is the number of steps to the first of four events. These are the next finish, the step for
which KV blocks run out, the next arrival that could be admitted, and the caller's target.
"""

from bisect import bisect_left, bisect_right

from mosaic.core.checks import require
from mosaic.core.engine_options import EngineOptions
from mosaic.core.workload import Prefix
from sim.engine.batching import Batcher
from sim.engine.request import Request
from sim.hardware.iteration_time import IterationTime


class Engine:
    """One expert's engine, from ``submit`` to the finished requests that ``advance_to`` returns.

    The engine's own time runs from iteration to iteration. ``advance_to(ts)`` completes all iterations that end by
    ``ts``. The iteration that runs at ``ts`` keeps its batch: requests that arrive or are aborted in the meantime join
    or leave at its end.

    Parameters
    ----------
    iteration_time
        Seconds of an iteration, given its batch.
    settings
        Order and limits.
    kv_tokens
        Capacity of the KV cache.
    context_tokens
        The model's context length; the default token budget depends on it.
    start_ts
        The instant at which the engine is up.
    """

    def __init__(
        self,
        *,
        iteration_time: IterationTime,
        settings: EngineOptions,
        kv_tokens: int,
        context_tokens: int,
        start_ts: float = 0.0,
    ) -> None:
        self._time = iteration_time
        self._longest = 0
        """Length of the longest sequence in the iteration that starts at _now, if it matters."""
        self._batcher = Batcher(
            settings=settings,
            kv_tokens=kv_tokens,
            context_tokens=context_tokens,
            keeps_lengths=iteration_time.needs_longest,
        )
        self.target_ts = start_ts
        """The caller knows all events up to here."""
        self._now = start_ts
        """Start of the next iteration."""
        self._finished: list[Request] = []
        # The iteration that starts at _now, once its batch is fixed, and the jump that it begins.
        self._batch_fixed = False
        self._jump_steps = 0
        """0: not planned."""
        self._jump_end_ts = 0.0
        self._pace = 1

    @property
    def boundary_ts(self) -> float:
        """End of the last completed iteration."""
        return self._now

    def submit(
        self,
        request_id: int,
        prompt_tokens: int,
        output_tokens: int,
        ready_ts: float,
        num_generated: int = 0,
        *,
        prefix: Prefix | None = None,
    ) -> Request:
        """Queue a request, which no iteration that starts before ``ready_ts`` admits.

        Parameters
        ----------
        request_id, prompt_tokens, output_tokens, ready_ts
            Its name for the caller, its lengths and its arrival.
        num_generated
            Output tokens that were written elsewhere before: they are read like the prompt.
        prefix
            The beginning of its prompt: requests share its blocks if the engine caches them.

        Raises
        ------
        ValueError
            If it can never fit, or arrives in the engine's past.
        """
        batcher = self._batcher
        blocks = () if prefix is None else batcher.kv.named_blocks(prefix, prompt_tokens)
        request = Request(request_id, prompt_tokens, output_tokens, ready_ts, blocks, num_generated=num_generated)
        batcher.check(request)
        if not ready_ts >= self.target_ts:
            rule = f"at least {self.target_ts}, which has passed"
            require(False, "ready_ts", rule, ready_ts)
        batcher.queue.add(request)
        if not batcher.chunks:
            self._jump_steps = 0  # The arrival may end the jump early.
        return request

    def next_event_ts(self) -> float:
        """Next instant at which anything may change without a new submission; infinite if nothing is left.

        After this call the iteration that starts now counts as running.
        """
        if self._now > self.target_ts:
            return self._now
        if not self._batcher.kv.num_growing and self._batcher.is_idle:
            arrival_ts = self._batcher.queue.next_arrival_ts
            if arrival_ts > self.target_ts:
                return arrival_ts
            self._now = self.target_ts
        self._plan_jump()
        return self._jump_end_ts

    def advance_to(self, ts: float) -> list[Request]:
        """Run up to ``ts`` and return the requests that finished since the last call, in order of finish."""
        self._run_to(ts)
        finished, self._finished = self._finished, []
        if self._now > ts:
            # An abort has completed the running iteration: its finishes belong to a later call.
            self._finished = [request for request in finished if request.finished_ts == self._now]
            del finished[len(finished) - len(self._finished) :]
        return finished

    def abort(self, request: Request, ts: float) -> bool:
        """Drop a request at ``ts``; False if it had finished by then.

        The iteration that runs at ``ts`` completes with it, since a running kernel cannot be stopped. Its token counts
        as written, unless it is the first or the last one, which come after ``ts``.
        """
        self._run_to(ts)
        if request.finished_ts is not None and request.finished_ts <= ts:
            return False
        if self._batch_fixed or (self._now < ts and not self._batcher.is_idle):
            self._plan_jump()
            self._commit(1)
        if request.finished_ts is None:
            self._batcher.remove(request)
        else:
            self._finished.remove(request)
            request.wasted_tokens += request.num_tokens - 1
        is_first = request.first_token_ts is not None and request.first_token_ts > ts
        if is_first:
            request.first_token_ts = None
        if is_first or request.finished_ts is not None:
            request.num_generated -= 1
        request.finished_ts = ts
        return True

    def cut(self, request: Request, output_tokens: int, ts: float) -> bool:
        """Limit a request's tokens, to one more than it has at ``ts`` at the least; False if it had finished."""
        self._run_to(ts)
        if request.finished_ts is not None:
            return False
        self._batcher.cut(request, output_tokens)
        if not self._batcher.chunks:
            self._jump_steps = 0  # It may finish before the jump ends.
        return True

    def set_pace(self, pace: int, ts: float) -> None:
        """Let every iteration take so many times as long from ``ts`` on, except the running one."""
        self._run_to(ts)
        if self._now < ts and (self._batch_fixed or not self._batcher.is_idle):
            self._plan_jump()
            self._commit(1)
        self._jump_steps = 0
        self._pace = pace

    def num_generated(self, request: Request) -> int:
        """Count the tokens that a request has written."""
        return self._batcher.decoding.num_generated(request)

    def _run_to(self, ts: float) -> None:
        require(ts >= self.target_ts, "engine: ts", f"at least {self.target_ts}, which has passed", ts)
        batcher, kv = self._batcher, self._batcher.kv
        while self._now < ts:
            if not kv.num_growing and batcher.is_idle:
                arrival_ts = batcher.queue.next_arrival_ts
                if arrival_ts >= ts:
                    break
                self._now = max(self._now, arrival_ts)
            self._plan_jump()
            if self._jump_end_ts > ts:
                if not batcher.chunks:
                    self._commit(bisect_right(range(1, self._jump_steps + 1), ts, key=self._end_of))
                break
            self._commit(self._jump_steps)
        self.target_ts = ts

    def _plan_jump(self) -> None:
        """Fix the batch of the iteration that starts now, and count the steps for which it stays unchanged."""
        if not self._batch_fixed:
            self._batcher.compose(self._now)
            self._batch_fixed = True
            self._jump_steps = 0
        if self._jump_steps:
            return
        if self._batcher.chunks:
            self._plan_prefill()
        else:
            self._plan_decode()

    def _plan_prefill(self) -> None:
        self._jump_end_ts = self._now + self._pace * self._prefill_s(self._batcher)
        self._jump_steps = 1

    def _prefill_s(self, batcher: Batcher) -> float:
        """Price the composed iteration with chunks."""
        chunks = [(num_tokens, request.num_prefilled) for request, num_tokens in batcher.chunks]
        num_decodes = batcher.kv.num_growing if batcher.is_mixed else 0
        kv_read = batcher.decoding.kv_tokens + num_decodes if num_decodes else 0
        longest = batcher.decoding.longest() if num_decodes else 0
        return self._time.mixed_s(chunks, num_decodes, kv_read, longest)

    def _plan_decode(self) -> None:
        batcher, decoding = self._batcher, self._batcher.decoding
        steps = batcher.alike_steps()
        self._longest = decoding.longest()
        end_ts = self._end_of(steps)
        arrival_ts = batcher.queue.next_arrival_ts
        if arrival_ts < end_ts and batcher.would_admit:
            steps = bisect_left(range(1, steps + 1), arrival_ts, key=self._end_of) + 1
            end_ts = self._end_of(steps)
        self._jump_end_ts = end_ts
        self._jump_steps = steps

    def _end_of(self, steps: int) -> float:
        decoding = self._batcher.decoding
        num_seqs = decoding.kv.num_growing
        kv_tokens = decoding.kv_tokens + num_seqs
        return self._now + self._pace * self._time.decode_span_s(num_seqs, kv_tokens, steps, self._longest)

    def _commit(self, steps: int) -> None:
        """Complete the planned iteration, or that many steps of the planned jump."""
        if not steps:
            return
        self._now = self._jump_end_ts if steps == self._jump_steps else self._end_of(steps)
        self._batch_fixed = False
        finished = self._batcher.complete(steps, self._now)
        if finished:
            self._finished += finished
