"""The engine of an expert with a sparse KV cache."""

from mosaic.core.engine_options import EngineOptions
from sim.engine.batching import Batcher
from sim.engine.engine import Engine
from sim.engine.sparse_decoding import SparseDecodingSet
from sim.engine.sparse_kv_cache import PageSizes, SparseKvCache
from sim.hardware.sparse_time import SparseBatch, SparseTime

_NOBODY = SparseBatch(0, 0, 0, 0, 0)


class SparseEngine(Engine):
    """As every engine, but for what sequences hold, what is read of them, and hence when steps end.

    Parameters
    ----------
    iteration_time, settings, kv_tokens, context_tokens, start_ts
        As for ``Engine``; the capacity is what would hold so many tokens in full.
    sizes
        What a page takes.
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
        self._decoding = SparseDecodingSet(cache, iteration_time.num_longest)
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
