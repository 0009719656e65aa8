"""Simulates a session whose workers are data-parallel ranks: each has its own requests, and all step together."""

from mosaic.core.engine_options import EngineOptions
from sim.engine.batching import Batcher
from sim.engine.engine import Engine
from sim.engine.request import Request
from sim.hardware.rank_time import DecodeBatch, RankTime


class RankBatcher(Batcher):
    """Distributes requests to ranks, each of which composes its own iterations with its own KV cache.

    A new request goes to the first rank with the fewest requests, as in vLLM's front end for data-parallel engines.
    """

    def __init__(
        self, *, num_ranks: int, settings: EngineOptions, kv_tokens: int, context_tokens: int, keeps_lengths: bool
    ) -> None:
        super().__init__(settings=settings, kv_tokens=kv_tokens, context_tokens=context_tokens)
        self.ranks = [
            Batcher(settings=settings, kv_tokens=kv_tokens, context_tokens=context_tokens, keeps_lengths=keeps_lengths)
            for _ in range(num_ranks)
        ]
        self._ranks_of: dict[Request, int] = {}
        self._num_requests = [0] * num_ranks

    @property
    def is_idle(self) -> bool:
        return all(rank.is_idle for rank in self.ranks)

    @property
    def would_admit(self) -> bool:
        """Whether an arrival ends a jump: its rank depends on the ranks' requests at that time."""
        return True

    def rank_of(self, request: Request) -> Batcher:
        """Find the rank of a request; before its arrival, any rank."""
        return self.ranks[self._ranks_of.get(request, 0)]

    def alike_steps(self) -> int:
        return min(rank.alike_steps() for rank in self.ranks if rank.kv.num_growing)

    def compose(self, now: float) -> None:
        if self.queue.next_arrival_ts <= now:
            self.queue.let_arrive(now)
            for request in self.queue.waiting:
                number = min(range(len(self.ranks)), key=self._num_requests.__getitem__)
                self._ranks_of[request] = number
                self._num_requests[number] += 1
                self.ranks[number].queue.waiting.append(request)
            self.queue.waiting.clear()
        self.chunks.clear()
        for rank in self.ranks:
            rank.compose(now)
            self.chunks += rank.chunks

    def complete(self, num_steps: int, now: float) -> list[Request]:
        self.chunks.clear()
        finished = [request for rank in self.ranks for request in rank.complete(num_steps, now)]
        for request in finished:
            self._leave(request)
        return finished

    def remove(self, request: Request) -> None:
        if request in self._ranks_of:
            self.rank_of(request).remove(request)
            self._leave(request)
        else:
            self.queue.remove(request)

    def cut(self, request: Request, output_tokens: int) -> None:
        self.rank_of(request).cut(request, output_tokens)

    def _leave(self, request: Request) -> None:
        self._num_requests[self._ranks_of.pop(request)] -= 1


class RankedEngine(Engine):
    """Like ``Engine``, except for the distribution of requests, and so the ends of steps.

    Parameters
    ----------
    iteration_time
        Of the ranks together.
    settings, kv_tokens, context_tokens, start_ts
        As for ``Engine``; limits and capacity are those of each rank.
    """

    def __init__(
        self,
        *,
        iteration_time: RankTime,
        settings: EngineOptions,
        kv_tokens: int,
        context_tokens: int,
        start_ts: float = 0.0,
    ) -> None:
        super().__init__(
            iteration_time=iteration_time.own,
            settings=settings,
            kv_tokens=kv_tokens,
            context_tokens=context_tokens,
            start_ts=start_ts,
        )
        self._rank_time = iteration_time
        self._batcher = self._ranks = RankBatcher(
            num_ranks=iteration_time.num_ranks,
            settings=settings,
            kv_tokens=kv_tokens,
            context_tokens=context_tokens,
            keeps_lengths=iteration_time.needs_longest,
        )

    def num_generated(self, request: Request) -> int:
        return self._ranks.rank_of(request).decoding.num_generated(request)

    def _plan_prefill(self) -> None:
        own_s, num_tokens = [], []
        for rank in self._ranks.ranks:
            num_decodes = rank.kv.num_growing
            if rank.chunks:
                own_s.append(self._prefill_s(rank))
                num_tokens.append(sum(tokens for _, tokens in rank.chunks) + (num_decodes if rank.is_mixed else 0))
            elif num_decodes:
                batch = _decodes(rank)
                own_s.append(self._time.decode_span_s(batch.num_seqs, batch.kv_tokens, 1, batch.longest))
                num_tokens.append(num_decodes)
        self._jump_end_ts = self._now + self._pace * self._rank_time.iteration_s(own_s, num_tokens)
        self._jump_steps = 1

    def _end_of(self, steps: int) -> float:
        batches = [_decodes(rank) for rank in self._ranks.ranks if rank.kv.num_growing]
        return self._now + self._pace * self._rank_time.decodes_s(batches, steps)


def _decodes(rank: Batcher) -> DecodeBatch:
    """Describe the next step of a rank that decodes."""
    num_seqs, decoding = rank.kv.num_growing, rank.decoding
    return DecodeBatch(num_seqs, decoding.kv_tokens + num_seqs, decoding.longest())
