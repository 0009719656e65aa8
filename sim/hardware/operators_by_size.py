"""Computes the time of a layer of any dense model from operators that were measured by their sizes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from mosaic.core.addition import add_in_order
from mosaic.core.checks import AtLeast1, Name, NotNegative, checked, require
from mosaic.core.workload import ModelShape
from sim.hardware.curves import Curve, Grid

SEQS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)
CHUNK_TOKENS = (1.0, 16.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0)
CONTEXT_TOKENS = (0.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32768.0)
"""Knots of a model's grids of attention."""


class MeasuredRange(NamedTuple):
    """Range of the measurements of decode attention: beyond it times are extrapolated."""

    seqs: int
    """Sequences of a batch."""
    tokens: int
    """Of one sequence."""


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("operators by size: ")
class OperatorsBySize:
    """Products of matrices by the numbers of tokens and of weights, attention by heads, of one GPU.

    NOTE: small operators (norms, rotary embedding, activation) were not measured. Their time is a fixed time, plus
    moving their inputs and outputs at the bandwidth that the largest product of one token reaches.
    """

    source: Name
    gemm: Grid
    """Rows tokens, columns millions of weights."""
    decode: Mapping[int, Grid]
    """By KV heads on the GPU. Rows sequences, columns tokens read by each."""
    prefill: Grid
    """A prompt alone: rows its tokens, columns query heads on the GPU."""
    head_dim: AtLeast1
    """Head dimension in the measurement of attention."""
    small_fixed_s: NotNegative
    """Fixed time of the small operators of one layer, beside moving their data."""
    decode_head_s: NotNegative = 0.0
    """Additional time of a decode step beyond its measured operators, per sequence, layer and query head on the GPU.

    Under CUDA graphs, combining the parts of split attention adds such a term.
    """
    mape: Mapping[str, float]
    """Mean absolute relative error of each grid against its measurements."""
    measured: MeasuredRange | None = None

    def __post_init__(self) -> None:
        require(len(self.decode) > 0, "operators by size: decode", "at least one number of KV heads", 0)

    @property
    def bytes_per_s(self) -> float:
        """Memory bandwidth, computed from the largest product of one token, in bf16."""
        millions = self.gemm.columns[-1]
        return 2e6 * millions / self.gemm(1, millions)

    def dense(self, shape: ModelShape, tp_degree: int) -> Curve:
        """Price all operators of a layer except attention, by tokens."""
        weights = list(_layer_weights(shape, tp_degree))
        byte_s = _small_bytes(shape, tp_degree) / self.bytes_per_s

        def layer_s(num_tokens: float) -> float:
            products_s = add_in_order(self.gemm(num_tokens, each) for each in weights)
            return products_s + self.small_fixed_s + byte_s * num_tokens

        return Curve(self.gemm.rows, tuple(map(layer_s, self.gemm.rows)))

    def head(self, shape: ModelShape, tp_degree: int) -> Curve:
        """Price the LM head, by sequences."""
        weights = shape.vocab_size * shape.hidden_size / tp_degree / 1e6
        return Curve(self.gemm.rows, self.gemm.column(weights))

    def decode_attention(self, shape: ModelShape, tp_degree: int, *, is_alone: bool) -> Grid:
        """Price attention of decodes in one layer, alone or with a prompt: by sequences and tokens read by each.

        A number of KV heads that was not measured is priced as the next smaller one with more sequences.
        """
        num_heads = _on_worker(shape.num_kv_heads, tp_degree)
        nearest = max((known for known in self.decode if known <= num_heads), default=min(self.decode))
        measured = self.decode[nearest].scaled(shape.head_dim / self.head_dim)
        seq_s = self.decode_head_s * _on_worker(shape.num_query_heads, tp_degree) if is_alone else 0.0
        rows = ([value + seq_s * seqs for value in measured.row(seqs * num_heads / nearest)] for seqs in SEQS)
        return Grid(SEQS, measured.columns, tuple(map(tuple, rows)))

    def prefill_attention(self, shape: ModelShape, tp_degree: int) -> Grid:
        """Price attention of a chunk in one layer: rows its tokens, columns those before it.

        The time of a chunk after others is the time of a prompt of both minus that of a prompt of the others.
        """
        num_heads = _on_worker(shape.num_query_heads, tp_degree)
        scale = shape.head_dim / self.head_dim

        def chunk_s(tokens: float, context: float) -> float:
            alone = self.prefill(tokens, num_heads)
            both = self.prefill(tokens + context, num_heads) - self.prefill(context, num_heads) if context else 0.0
            return scale * max(alone, both)

        rows = (tuple(chunk_s(tokens, context) for context in CONTEXT_TOKENS) for tokens in CHUNK_TOKENS)
        return Grid(CHUNK_TOKENS, CONTEXT_TOKENS, tuple(rows))


def _on_worker(num_heads: int, tp_degree: int) -> int:
    return max(1, -(-num_heads // tp_degree))


def _layer_weights(shape: ModelShape, tp_degree: int) -> Iterator[float]:
    """List the products of a layer on one GPU, in millions of weights: QKV, output, gate and up, down."""
    heads = _on_worker(shape.num_query_heads, tp_degree)
    qkv_heads = heads + 2 * _on_worker(shape.num_kv_heads, tp_degree)
    for width in (qkv_heads * shape.head_dim, heads * shape.head_dim):
        yield shape.hidden_size * width / 1e6
    for number in (2, 1):
        yield number * shape.hidden_size * shape.ffn_size / tp_degree / 1e6


def _small_bytes(shape: ModelShape, tp_degree: int) -> float:
    """Count the bytes that small operators of a layer read and write for a token.

    Two norms that add the residual read two vectors and write two each. Rotary embedding reads and writes queries and
    keys. The activation reads gate and up and writes their product.
    """
    qk_heads = _on_worker(shape.num_query_heads, tp_degree) + _on_worker(shape.num_kv_heads, tp_degree)
    values = 8 * shape.hidden_size + 2 * qk_heads * shape.head_dim + 3 * shape.ffn_size / tp_degree
    return shape.bytes_per_value * values
