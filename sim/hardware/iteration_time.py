"""Computes the seconds of one engine iteration from its batch."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, inf
from typing import Protocol, TypeAlias

from mosaic.core.workload import ModelShape
from sim.hardware.curves import Curve, Grid, segment
from sim.hardware.hardware import FittedAttention, Hardware, MeasuredAttention, OperatorTable
from sim.hardware.moe_time import ExpertLayers
from sim.hardware.skew_time import AttentionSkew

Chunks: TypeAlias = Sequence[tuple[int, int]]
"""Per prefilled sequence: tokens computed now, tokens already in its KV cache."""


class IterationTime(Protocol):
    """Time of an engine's iterations for one model on one kind of GPU at one tensor-parallel degree."""

    needs_longest: bool = False
    """Whether it depends on the longest sequence."""
    max_graph_tokens: int | None = None
    """Longest sequence of a step with CUDA graphs; None: no limit."""

    def decode_span_s(self, num_seqs: int, kv_tokens: float, num_steps: int, longest: int = 0) -> float:
        """Time of consecutive pure decode iterations over an unchanged batch.

        Parameters
        ----------
        num_seqs
            Running sequences B, each of which gains one token per step.
        kv_tokens
            Tokens that the attention of the *first* step reads, summed over the sequences. The token being computed is
            included; a mean may be a fraction. Every step reads ``num_seqs`` more than the one before.
        num_steps
            Number of steps k.
        longest
            Tokens that the first step reads of the longest sequence; 0: all lengths are assumed to be equal.
        """

    def mixed_s(self, chunks: Chunks, num_decodes: int, decode_kv_tokens: float, longest: int = 0) -> float:
        """Time of one iteration that prefills chunks, with or without concurrent decodes.

        Parameters
        ----------
        chunks
            The prefilled chunks.
        num_decodes, decode_kv_tokens, longest
            Sequences that decode in the same iteration, the tokens that their attention reads, and those of the longest
            of them.
        """

    def step_s(self, num_seqs: int, read_tokens: float, kv_tokens: float, longest: float) -> float:
        """Time of a decode step whose attention reads a part of the cache; the CPU handles all of it."""
        return self.decode_span_s(num_seqs, read_tokens, 1)


def iteration_time(hardware: Hardware, shape: ModelShape, tp_degree: int) -> IterationTime:
    """Build the iteration time of any model from the reference model nearest to it.

    Operators scale with the parameters of the layers, and decode attention with KV bytes per token. Prefill attention
    scales with layers x query heads x head size, and the LM head with vocabulary x hidden size. GPUs that share a model
    with experts share these by expert parallelism.

    Raises
    ------
    ValueError
        If the hardware was not measured at this tensor-parallel degree, or with such a model.
    """
    table = hardware.table_for(shape, tp_degree)
    time = _time_without_experts(hardware, table, shape)
    if table.experts is None:
        return time
    return MoeTime(time, ExpertLayers(table, shape, tp_degree), graph_sizes(hardware.graph_max_seqs))


def _time_without_experts(hardware: Hardware, table: OperatorTable, shape: ModelShape) -> IterationTime:
    """Build the time of everything except routed experts."""
    skew = _skew(hardware, table, shape)
    attention_time = FittedTime if isinstance(table.attention, FittedAttention) else MeasuredTime
    if skew is None and hardware.max_graph_tokens is None and not hardware.cpu_per_kv_token_s:
        return attention_time(_batch_time(hardware, table, shape, hardware.cpu_s), table, shape)
    return SkewAwareIterationTime(
        attention_time(_batch_time(hardware, table, shape, lambda num_seqs: 0.0), table, shape),
        host_base_s=hardware.cpu_overhead_scale * hardware.cpu_base_s,
        host_per_seq_s=hardware.cpu_overhead_scale * hardware.cpu_per_seq_s,
        host_per_kv_token_s=hardware.cpu_overhead_scale * hardware.cpu_per_kv_token_s,
        skew=skew,
        max_graph_tokens=hardware.max_graph_tokens,
        launch_s=hardware.eager_layer_s * shape.num_layers,
    )


def _skew(hardware: Hardware, table: OperatorTable, shape: ModelShape) -> AttentionSkew | None:
    if not hardware.attention_streams:
        return None
    num_kv_heads = max(1, -(-shape.num_kv_heads // table.tp_degree))
    return AttentionSkew(
        block_s=table.attention.kv_token_s * _decode_scale(table, shape) * hardware.attention_streams / num_kv_heads,
        min_seqs=unsplit_seqs(hardware.num_sms, num_kv_heads, graph_sizes(hardware.graph_max_seqs)),
    )


def unsplit_seqs(num_sms: int, num_kv_heads: int, captured: Sequence[int] = ()) -> int:
    """Find the least decode batch that FlashAttention does not split along its tokens.

    That is from the size at which sequences (padded as captured) x KV heads reach 0.8 of two thread blocks per
    multiprocessor.

    Examples
    --------
    >>> unsplit_seqs(128, 8), unsplit_seqs(128, 8, (16, 24, 32))
    (26, 25)
    """
    needed = ceil(0.8 * 2 * num_sms / num_kv_heads)
    place = bisect_left(captured, needed)
    if place == len(captured):
        return needed
    return captured[place - 1] + 1 if place else 1


def _decode_scale(table: OperatorTable, shape: ModelShape) -> float:
    """Ratio of decode attention of all layers of a model to that of one layer of the reference model."""
    kv_bytes = table.shape.kv_bytes_per_token(table.tp_degree) / table.shape.num_layers
    return shape.kv_bytes_per_token(table.tp_degree) / kv_bytes


def _prefill_scale(table: OperatorTable, shape: ModelShape) -> float:
    """Ratio of prefill attention of all layers of a model to that of one layer of the reference model."""
    reference_width = table.shape.num_query_heads * table.shape.head_dim
    return shape.num_layers * (shape.num_query_heads * shape.head_dim) / reference_width


def _derived_head(hardware: Hardware, shape: ModelShape, tp_degree: int) -> Curve:
    """Price the LM head by its weights, read once, or by its products if they take longer; then the sampler."""
    assert hardware.memory_bytes_per_s is not None, "checked by Hardware"
    num_weights = shape.vocab_size * shape.hidden_size / tp_degree
    reading_s = shape.bytes_per_value * num_weights / hardware.memory_bytes_per_s
    per_seq_s = hardware.sampler_per_logit_s * shape.vocab_size
    if hardware.flops_per_s is None:
        return Curve((0.0, 1.0), (reading_s, reading_s + per_seq_s)) if per_seq_s else Curve((1.0,), (reading_s,))
    product_s = 2 * num_weights / hardware.flops_per_s
    turn = reading_s / product_s
    knots = (0.0, turn, 2 * turn)
    return Curve(knots, tuple(max(reading_s, n * product_s) + n * per_seq_s for n in knots))


def graph_sizes(max_seqs: int) -> tuple[int, ...]:
    """Batch sizes that vLLM captures."""
    return tuple(size for size in (1, 2, 4, *range(8, max_seqs + 1, 8)) if size <= max_seqs)


def padded_seqs(num_seqs: int, captured: Sequence[int]) -> int:
    """Pad a decode batch to a captured size; a batch beyond the largest size is not padded.

    Examples
    --------
    >>> padded_seqs(9, (1, 2, 4, 8, 16)), padded_seqs(17, (1, 2, 4, 8, 16))
    (16, 17)
    """
    return captured[bisect_left(captured, num_seqs)] if captured and num_seqs <= captured[-1] else num_seqs


@dataclass(frozen=True, slots=True, kw_only=True)
class _BatchTime:
    """Time of an iteration without attention: it depends only on the numbers of tokens and of sequences."""

    dense: Curve
    once: Curve | None
    head: Curve
    all_reduce: Curve | None
    num_all_reduces: int
    bytes_per_token: int
    cpu_s: Callable[[int], float]
    captured: tuple[int, ...]

    def __call__(self, num_tokens: int, num_seqs: int) -> float:
        seconds = self.dense(num_tokens) + self.head(num_seqs) + self.cpu_s(num_seqs)
        if self.once is not None:
            seconds += self.once(num_tokens)
        if self.all_reduce is not None:
            seconds += self.num_all_reduces * self.all_reduce(num_tokens * self.bytes_per_token)
        return seconds

    def decode(self, num_seqs: int) -> float:
        """One decode step, whose batch is padded to a captured size."""
        return self(padded_seqs(num_seqs, self.captured), num_seqs)


def _batch_time(
    hardware: Hardware, table: OperatorTable, shape: ModelShape, cpu_s: Callable[[int], float]
) -> _BatchTime:
    """Scale the time of an iteration without attention from the reference model to another."""
    reference, tp_degree = table.shape, table.tp_degree
    dense_scale = reference.num_layers * shape.num_block_parameters / reference.num_block_parameters
    head_scale = shape.vocab_size * shape.hidden_size / (reference.vocab_size * reference.hidden_size)
    return _BatchTime(
        dense=table.dense.scaled(dense_scale),
        once=table.once.scaled(shape.hidden_size / reference.hidden_size) if table.once else None,
        head=table.head.scaled(head_scale) if table.head else _derived_head(hardware, shape, tp_degree),
        all_reduce=hardware.all_reduce[tp_degree] if tp_degree > 1 else None,
        num_all_reduces=2 * shape.num_layers,
        bytes_per_token=shape.hidden_size * shape.bytes_per_value,
        cpu_s=cpu_s,
        captured=graph_sizes(hardware.graph_max_seqs),
    )


class FittedTime(IterationTime):
    """Iteration time with attention linear in the tokens read: a + b KV, so a span is an arithmetic sum."""

    def __init__(self, batch: _BatchTime, table: OperatorTable, shape: ModelShape) -> None:
        attention, num_layers = table.attention, shape.num_layers
        assert isinstance(attention, FittedAttention)
        self._batch = batch
        self._attention = attention
        self._kv_token_s = attention.decode_per_kv_token_s * _decode_scale(table, shape)
        self._decode_fixed_s = (attention.decode_fixed_s * num_layers, attention.decode_per_seq_s * num_layers)
        self._prefill_scale = _prefill_scale(table, shape)
        self._step_s: list[float] = [0.0]

    def decode_span_s(self, num_seqs: int, kv_tokens: float, num_steps: int, longest: int = 0) -> float:
        try:
            step_s = self._step_s[num_seqs]
        except IndexError:
            step_s = self._extend(num_seqs)
        kv_sum = num_steps * kv_tokens + num_seqs * num_steps * (num_steps - 1) // 2
        return num_steps * step_s + self._kv_token_s * kv_sum

    def _extend(self, num_seqs: int) -> float:
        """Tabulate the part of a step that depends only on the batch size."""
        fixed_s, per_seq_s = self._decode_fixed_s
        for size in range(len(self._step_s), num_seqs + 1):
            self._step_s.append(self._batch.decode(size) + fixed_s + per_seq_s * size)
        return self._step_s[num_seqs]

    def mixed_s(self, chunks: Chunks, num_decodes: int, decode_kv_tokens: float, longest: int = 0) -> float:
        num_tokens, prefill_s = num_decodes, 0.0
        per_token_s, per_pair_s = self._attention.prefill_per_token_s, self._attention.prefill_per_token_pair_s
        for tokens, context in chunks:
            num_tokens += tokens
            prefill_s += tokens * (per_token_s + per_pair_s * (tokens + 2 * context))
        seconds = self._batch(num_tokens, num_decodes + len(chunks)) + self._prefill_scale * prefill_s
        if num_decodes:
            fixed_s, per_seq_s = self._decode_fixed_s
            seconds += fixed_s + per_seq_s * num_decodes + self._kv_token_s * decode_kv_tokens
        return seconds


class MeasuredTime(IterationTime):
    """Iteration time with attention as a grid: a span is a sum of arithmetic sums, one per crossed segment."""

    def __init__(self, batch: _BatchTime, table: OperatorTable, shape: ModelShape) -> None:
        attention, decode_scale = table.attention, _decode_scale(table, shape)
        assert isinstance(attention, MeasuredAttention)
        prefill_scale = _prefill_scale(table, shape)
        self._batch = batch
        self._decode: Grid = attention.decode.scaled(decode_scale)
        self._beside = attention.beside.scaled(decode_scale)
        self._prefill = attention.prefill.scaled(prefill_scale)
        self._pair_s = attention.beside_per_token_pair_s * prefill_scale
        self._launch_s = self._prefill.values_s[0][0]
        self._rows: dict[int, tuple[float, tuple[float, ...], tuple[float, ...]]] = {}

    def decode_span_s(self, num_seqs: int, kv_tokens: float, num_steps: int, longest: int = 0) -> float:
        step_s, values_s, slopes_s = self._rows.get(num_seqs) or self._add_row(num_seqs)
        knots = self._decode.columns
        last = len(slopes_s) - 1
        # NOTE: a step reads as many tokens as equal sequences of the mean length, which grows by one per step.
        mean_tokens = kv_tokens / num_seqs
        place = segment(knots, mean_tokens)
        seconds, left = num_steps * step_s, num_steps
        while place < last and left > knots[place + 1] - mean_tokens:
            steps = max(0, ceil(knots[place + 1] - mean_tokens))
            middle_s = values_s[place] + slopes_s[place] * (mean_tokens - knots[place] + (steps - 1) / 2)
            seconds += steps * middle_s
            left -= steps
            mean_tokens += steps
            place += 1
        return seconds + left * (values_s[place] + slopes_s[place] * (mean_tokens - knots[place] + (left - 1) / 2))

    def _add_row(self, num_seqs: int) -> tuple[float, tuple[float, ...], tuple[float, ...]]:
        """Interpolate the decode grid at a batch size, once."""
        knots = self._decode.columns
        values_s = self._decode.row(num_seqs)
        slopes_s = tuple((values_s[i + 1] - values_s[i]) / (knots[i + 1] - knots[i]) for i in range(len(knots) - 1))
        self._rows[num_seqs] = (self._batch.decode(num_seqs), values_s, slopes_s)
        return self._rows[num_seqs]

    def mixed_s(self, chunks: Chunks, num_decodes: int, decode_kv_tokens: float, longest: int = 0) -> float:
        num_tokens, longest_chunk, attention_s = num_decodes, 0, 0.0
        for tokens, context in chunks:
            num_tokens += tokens
            longest_chunk = max(longest_chunk, tokens)
            # One launch serves all chunks, so its fixed time counts once.
            attention_s += self._prefill(tokens, context) - self._launch_s
        if num_decodes:
            attention_s += self._beside(num_decodes, decode_kv_tokens / num_decodes)
            attention_s += self._pair_s * num_decodes * longest_chunk
        return self._batch(num_tokens, num_decodes + len(chunks)) + max(0.0, attention_s + self._launch_s)


class SkewAwareIterationTime(IterationTime):
    """GPU time by totals, with additional time for length skew and for the CPU's work per token.

    Without lengths all are assumed to be equal. Sequences longer than ``max_graph_tokens`` (vLLM V0's
    max_seq_len_to_capture) are not captured in CUDA graphs. A decode batch with such a sequence runs completely without
    graphs. Each such step takes at least ``launch_s`` on the GPU.
    """

    def __init__(
        self,
        gpu: IterationTime,
        *,
        host_base_s: float = 0.0,
        host_per_seq_s: float = 0.0,
        host_per_kv_token_s: float = 0.0,
        skew: AttentionSkew | None = None,
        max_graph_tokens: int | None = None,
        launch_s: float = 0.0,
    ) -> None:
        self._gpu = gpu
        self._base_s = host_base_s
        self._per_seq_s = host_per_seq_s
        self._per_kv_token_s = host_per_kv_token_s
        self._skew = skew
        self._unsplit_seqs = skew.min_seqs if skew else inf
        self._idle_s = skew.alone_s(1, 0.0) if skew else 0.0
        self._launch_s = launch_s
        self._graph_tokens = inf if max_graph_tokens is None else max_graph_tokens + 1
        """Steps that read a sequence of so many tokens run without CUDA graphs."""
        self._busy_tokens: dict[int, float] = {}
        """Per batch size, a number of tokens whose reading is known to take longer than the launches."""
        self.max_graph_tokens = max_graph_tokens
        self.needs_longest = skew is not None or max_graph_tokens is not None

    def decode_span_s(self, num_seqs: int, kv_tokens: float, num_steps: int, longest: int = 0) -> float:
        step_s = self._base_s + self._per_seq_s * num_seqs
        step_s += self._per_kv_token_s * (kv_tokens + num_seqs * (num_steps - 1) / 2)
        launches_s = 0.0
        if longest:
            skew_s = 0.0
            if num_seqs >= self._unsplit_seqs:
                skew_s = self._idle_s * (longest - kv_tokens / num_seqs)
                step_s += skew_s
            if longest + num_steps > self._graph_tokens and kv_tokens < self._busy_tokens.get(num_seqs, inf):
                launches_s = self._launches_s(num_seqs, kv_tokens, num_steps, longest, skew_s)
        return self._gpu.decode_span_s(num_seqs, kv_tokens, num_steps) + num_steps * step_s + launches_s

    def _launches_s(self, num_seqs: int, kv_tokens: float, num_steps: int, longest: int, skew_s: float) -> float:
        """Price the waits of a span for launches: steps get slower, so only the first ones without graphs wait."""
        assert self.max_graph_tokens is not None, "called where there is a limit"
        gpu_s, launch_s = self._gpu.decode_span_s, self._launch_s - skew_s
        num_graphs = max(0, self.max_graph_tokens - longest + 1)
        kv_tokens += num_graphs * num_seqs
        first_s = gpu_s(num_seqs, kv_tokens, 1)
        if first_s >= launch_s:
            if first_s >= self._launch_s:
                self._busy_tokens[num_seqs] = kv_tokens
            return 0.0
        num_eager = num_steps - num_graphs
        steps = range(num_eager)
        waits = bisect_left(steps, launch_s, key=lambda step: gpu_s(num_seqs, kv_tokens + step * num_seqs, 1))
        return waits * launch_s - gpu_s(num_seqs, kv_tokens, waits)

    def step_s(self, num_seqs: int, read_tokens: float, kv_tokens: float, longest: float) -> float:
        """Time of a decode step whose attention reads a part of the cache; the host handles all of it."""
        gpu_s = self._gpu.decode_span_s(num_seqs, read_tokens, 1)
        if self.max_graph_tokens is not None and longest > self.max_graph_tokens:
            gpu_s = max(gpu_s, self._launch_s)
        return gpu_s + self._base_s + self._per_seq_s * num_seqs + self._per_kv_token_s * kv_tokens

    def mixed_s(self, chunks: Chunks, num_decodes: int, decode_kv_tokens: float, longest: int = 0) -> float:
        """Time of an iteration that prefills chunks; the kernel for prefills never splits concurrent decodes."""
        seconds = self._gpu.mixed_s(chunks, num_decodes, decode_kv_tokens)
        if self._skew is not None and longest:
            seconds += self._skew.beside_prefill_s(longest, decode_kv_tokens / num_decodes, chunks)
        host_s = self._base_s + self._per_seq_s * (num_decodes + len(chunks))
        return seconds + host_s + self._per_kv_token_s * decode_kv_tokens


class MoeTime(IterationTime):
    """The time of a model with experts: that of everything else, and that of the experts.

    A decode step computes the experts for a batch that is padded like the rest of the step.
    """

    def __init__(self, own: IterationTime, experts: ExpertLayers, captured: Sequence[int]) -> None:
        self.own = own
        """Without routed experts."""
        self._experts_s = experts
        self._captured = captured
        self.needs_longest = own.needs_longest
        self.max_graph_tokens = own.max_graph_tokens

    def decode_span_s(self, num_seqs: int, kv_tokens: float, num_steps: int, longest: int = 0) -> float:
        experts_s = self._experts_s(padded_seqs(num_seqs, self._captured))
        return self.own.decode_span_s(num_seqs, kv_tokens, num_steps, longest) + num_steps * experts_s

    def step_s(self, num_seqs: int, read_tokens: float, kv_tokens: float, longest: float) -> float:
        """Time of a decode step whose attention reads a part of the cache; the host handles all of it."""
        experts_s = self._experts_s(padded_seqs(num_seqs, self._captured))
        return self.own.step_s(num_seqs, read_tokens, kv_tokens, longest) + experts_s

    def mixed_s(self, chunks: Chunks, num_decodes: int, decode_kv_tokens: float, longest: int = 0) -> float:
        experts_s = self._experts_s(num_decodes + sum(tokens for tokens, _ in chunks))
        return self.own.mixed_s(chunks, num_decodes, decode_kv_tokens, longest) + experts_s
