"""Computes the iteration time of data-parallel ranks of a mixture-of-experts model, which step together."""

from collections.abc import Sequence
from typing import NamedTuple

from mosaic.core.checks import require
from mosaic.core.engine_options import EngineOptions
from mosaic.core.workload import Expert
from sim.hardware.curves import Curve
from sim.hardware.hardware import Hardware
from sim.hardware.iteration_time import Chunks, IterationTime, MoeTime, graph_sizes, padded_seqs
from sim.hardware.moe_time import ExpertLayers


class DecodeBatch(NamedTuple):
    """Data of a rank's decoding sequences that the time depends on; see ``IterationTime.decode_span_s``."""

    num_seqs: int
    kv_tokens: int
    longest: int

    def after(self, num_steps: int) -> "DecodeBatch":
        """Return the batch after so many steps."""
        num_seqs, kv_tokens, longest = self
        return DecodeBatch(num_seqs, kv_tokens + num_steps * num_seqs, longest and longest + num_steps)


class RankTime(IterationTime):
    """Time of the steps that all ranks of a session make together.

    NOTE: in every layer each rank computes the attention of its own sequences, and all wait for the slowest. Then all
    ranks gather the tokens, and each computes its experts for all of them. The outputs are summed up and scattered.
    That all-gather and that reduce-scatter move as much as an all-reduce of as many tokens, in two collectives instead
    of one. Layers are equal, so the rank that is slowest in one is slowest in all. Up to the largest batch that is
    captured as a CUDA graph (vLLM: twice ``max_num_seqs``) all ranks are padded to the one with most tokens. A rank
    without requests takes part with one token.

    Used as an iteration time, it prices requests that are all on one rank.

    References
    ----------
    vLLM's ``coordinate_batch_across_dp`` (padding), ``AgRsAll2AllManager`` (exchange), ``execute_dummy_batch``.
    Thakur, Rabenseifner and Gropp, "Optimization of Collective Communication Operations in MPICH", 2005 (all-reduce).
    """

    def __init__(
        self,
        own: IterationTime,
        experts: ExpertLayers,
        *,
        all_reduce: Curve,
        bytes_per_token: int,
        captured: Sequence[int],
        num_ranks: int,
    ) -> None:
        self.own = own
        """Of one rank, without routed experts."""
        self.num_ranks = num_ranks
        self.needs_longest = own.needs_longest
        self.max_graph_tokens = own.max_graph_tokens
        self._experts_s = experts
        self._all_reduce_s = all_reduce
        self._bytes_per_token = bytes_per_token
        self._captured = captured

    def iteration_s(self, own_s: Sequence[float], num_tokens: Sequence[int]) -> float:
        """Time of one iteration, from the time of each rank with requests alone, and its tokens."""
        return max(own_s) + self._common_s(num_tokens)

    def decodes_s(self, batches: Sequence[DecodeBatch], num_steps: int) -> float:
        """Time of consecutive iterations in which all ranks with requests only decode them."""
        return self._slowest_s(batches, num_steps) + num_steps * self._common_s([batch.num_seqs for batch in batches])

    def decode_span_s(self, num_seqs: int, kv_tokens: float, num_steps: int, longest: int = 0) -> float:
        own_s = self.own.decode_span_s(num_seqs, kv_tokens, num_steps, longest)
        return own_s + num_steps * self._common_s([num_seqs])

    def mixed_s(self, chunks: Chunks, num_decodes: int, decode_kv_tokens: float, longest: int = 0) -> float:
        num_tokens = num_decodes + sum(tokens for tokens, _ in chunks)
        return self.iteration_s([self.own.mixed_s(chunks, num_decodes, decode_kv_tokens, longest)], [num_tokens])

    def _common_s(self, num_tokens: Sequence[int]) -> float:
        """Price exchange and experts by the tokens of each rank that has any."""
        most = padded_seqs(max(num_tokens), self._captured)
        if self._captured and most <= self._captured[-1]:
            in_all = self.num_ranks * most
        else:
            in_all = sum(num_tokens) + self.num_ranks - len(num_tokens)
        # Links carry both directions at once, so the largest part limits the exchange.
        exchange_s = self._all_reduce_s(self.num_ranks * most * self._bytes_per_token) + self._all_reduce_s(0.0)
        return self._experts_s(in_all) + exchange_s

    def _slowest_s(self, batches: Sequence[DecodeBatch], num_steps: int) -> float:
        """Sum the steps of the slowest rank of each, without the experts.

        A rank that is slowest in the first, the middle and the last step is assumed to be slowest in between. Times
        grow in few straight pieces.
        """
        slowest = {self._slowest(batches, step) for step in {0, (num_steps - 1) // 2, num_steps - 1}}
        if len(slowest) == 1:
            batch = batches[slowest.pop()]
            return self.own.decode_span_s(batch.num_seqs, batch.kv_tokens, num_steps, batch.longest)
        half = num_steps // 2
        later = [batch.after(half) for batch in batches]
        return self._slowest_s(batches, half) + self._slowest_s(later, num_steps - half)

    def _slowest(self, batches: Sequence[DecodeBatch], step: int) -> int:
        """Find the rank that is slowest so many steps later."""
        if len(batches) == 1:
            return 0
        later = [batch.after(step) for batch in batches]
        seconds = [self.own.decode_span_s(batch.num_seqs, batch.kv_tokens, 1, batch.longest) for batch in later]
        return seconds.index(max(seconds))


def rank_time(
    time: IterationTime, expert: Expert, num_ranks: int, hardware: Hardware, settings: EngineOptions
) -> RankTime:
    """Build the time of so many ranks from the time of one GPU that has the whole model.

    Raises
    ------
    ValueError
        If the link between so many GPUs was not measured.
    """
    assert isinstance(time, MoeTime), "ranks share a model with experts"
    known = sorted(hardware.all_reduce)
    rule, shape = f"given for {num_ranks} data-parallel ranks of expert {expert.name}", expert.known_shape
    require(num_ranks in known, f"hardware {hardware.gpu.name}: all_reduce", rule, known)
    return RankTime(
        time.own,
        ExpertLayers(hardware.table_for(shape, 1), shape, num_ranks),
        all_reduce=hardware.all_reduce[num_ranks].scaled(shape.num_layers),
        bytes_per_token=shape.hidden_size * shape.bytes_per_value,
        captured=graph_sizes(min(hardware.graph_max_seqs, 2 * settings.max_num_seqs)),
        num_ranks=num_ranks,
    )
