"""Computes the iteration time of an expert with a sparse KV cache: reads, transfers over the link, and pauses."""

from typing import NamedTuple

from mosaic.core.checks import require
from mosaic.core.workload import Expert, SparseKv
from sim.hardware.hardware import Hardware
from sim.hardware.iteration_time import Chunks, IterationTime


class SparseBatch(NamedTuple):
    """Sequences of a decode step that its time depends on; tokens include the one being computed."""

    num_seqs: int
    num_long: int
    """Sequences that are read in part."""
    kv_tokens: float
    """Tokens of all sequences, on the GPU or not."""
    short_tokens: float
    """Tokens of the sequences that are read in full."""
    longest: float
    """Tokens of the longest sequence; 0 if no time depends on it."""

    def after(self, num_steps: float) -> "SparseBatch":
        """Return the batch after so many steps in which no sequence leaves."""
        num_seqs, num_long, kv_tokens, short_tokens, longest = self
        return SparseBatch(
            num_seqs,
            num_long,
            kv_tokens + num_steps * num_seqs,
            short_tokens + num_steps * (num_seqs - num_long),
            longest + num_steps if longest else 0,
        )


class SparseTime(IterationTime):
    """Time of the iterations of one model with a sparse KV cache on one kind of GPU.

    NOTE: rankings of stable heads are spread over the steps. A request that ranks skips the next step while its
    promoted pages are transferred, and joins the one after it. So long sequences take ``rerank_every + 1`` steps for
    ``rerank_every`` tokens. Their reads come later, and the part of a step that does not depend on the batch comes more
    often. If the link is too slow for that, it limits the pace. Pages move to CPU memory in the other direction, at the
    same time as the step; a prompt's pages move while it is read. The engine advances all sequences by one token per
    step, so a step here is the time in which each gains one.

    Reads of long sequences are nearly equal, so attention does not wait for a longest one.
    """

    def __init__(self, time: IterationTime, kv: SparseKv, *, kv_bytes: int, context_tokens: int, link_s: float) -> None:
        self._time = time
        self.needs_longest = time.needs_longest
        self._every = kv.rerank_every
        self._long_read = kv.long_read_tokens()
        self._scored = kv.scored_tokens_per_token()
        self._least_read_frac = min(1.0, (kv.budget_tokens + self._scored * context_tokens) / context_tokens)
        stable_s = (1 - kv.unstable_frac) * kv_bytes * link_s
        self._promote_s = kv.promoted * kv.budget_tokens * stable_s
        self._offload_s = stable_s
        """Of a token."""

    def read_tokens(self, batch: SparseBatch) -> float:
        """Tokens that the attention of a step reads, those of scoring included, without pauses."""
        long_tokens = batch.kv_tokens - batch.short_tokens
        return batch.short_tokens + batch.num_long * self._long_read + self._scored * long_tokens

    def promoted_s(self, batch: SparseBatch) -> float:
        """Seconds of the link per step for promoted pages."""
        return batch.num_long * self._promote_s / self._every

    def span_s(self, batch: SparseBatch, num_steps: int) -> float:
        """Time of consecutive decode steps over an unchanged batch in which no sequence becomes long.

        Reads grow evenly, so the middle step is the mean one if time is linear in them.
        """
        limit = self._time.max_graph_tokens
        if limit is not None and batch.longest <= limit < batch.longest + num_steps - 1:
            num_graphs = int(limit - batch.longest) + 1
            later = batch.after(num_graphs)
            return self._span_s(batch, num_graphs) + self._span_s(later, num_steps - num_graphs)
        return self._span_s(batch, num_steps)

    def _span_s(self, batch: SparseBatch, num_steps: int) -> float:
        return num_steps * self._step_s(batch.after((num_steps - 1) / 2)) if num_steps else 0.0

    def _step_s(self, batch: SparseBatch) -> float:
        reads = self.read_tokens(batch)
        seconds = self._time.step_s(batch.num_seqs, reads, batch.kv_tokens, batch.longest) + self._pauses_s(batch)
        return max(seconds, self.promoted_s(batch), batch.num_long * self._offload_s)

    def _pauses_s(self, batch: SparseBatch) -> float:
        """Price the effect of pauses: a pausing request reads its tokens a step later, and the rest is repeated."""
        if not batch.num_long:
            return 0.0
        step_s = self._time.step_s(1, 1.0, batch.kv_tokens, batch.longest)
        return batch.num_long / (batch.num_seqs * self._every) * step_s

    def mixed_sparse_s(self, chunks: Chunks, batch: SparseBatch) -> float:
        """Time of an iteration that reads chunks of prompts, with or without concurrent decodes."""
        num_tokens = sum(tokens for tokens, _ in chunks)
        reads = self.read_tokens(batch) if batch.num_seqs else 0.0
        seconds = self._time.mixed_s(chunks, batch.num_seqs, reads)
        seconds += self._pauses_s(batch)
        return max(seconds, self.promoted_s(batch), num_tokens * self._offload_s)

    def decode_span_s(self, num_seqs: int, kv_tokens: float, num_steps: int, longest: int = 0) -> float:
        """Bound the time of steps of which only totals are known.

        A token costs least in the longest sequence, and no step takes less than the first one.
        """
        return num_steps * self._time.decode_span_s(num_seqs, kv_tokens * self._least_read_frac, 1)

    def mixed_s(self, chunks: Chunks, num_decodes: int, decode_kv_tokens: float, longest: int = 0) -> float:
        """Bound the time of an iteration of which only totals are known."""
        return self._time.mixed_s(chunks, num_decodes, decode_kv_tokens * self._least_read_frac)


def sparse_time(time: IterationTime, expert: Expert, tp_degree: int, hardware: Hardware) -> SparseTime:
    """Build the time of an expert with a sparse KV cache from its time with a full one.

    Raises
    ------
    ValueError
        If the speed of the GPU's link to CPU memory is not known.
    """
    assert expert.kv is not None, "called where there is one"
    rule = "null in simulation, which knows how many heads are unstable and not which"
    require(expert.kv.heads is None, f"expert {expert.name}: kv.heads", rule, expert.kv.heads)
    link = hardware.host_link_bytes_per_s
    if link is None:
        rule = f"given for expert {expert.name}'s kv={expert.kv.policy}"
        raise ValueError(f"hardware {hardware.gpu.name}: host_link_bytes_per_s must be {rule}, got null")
    kv_bytes = expert.known_shape.kv_bytes_per_token(tp_degree)
    context_tokens = expert.context_limit
    return SparseTime(time, expert.kv, kv_bytes=kv_bytes, context_tokens=context_tokens, link_s=1 / link)
