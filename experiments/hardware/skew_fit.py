"""Fits how many sequences use the full bandwidth of a GPU's decode attention, from batches of unequal lengths.

skew.csv of the per-operator layout has batches of n sequences, and uniform batches of the same mean. In the former nb
sequences have kv_big tokens and the others kvs. Its times are sums of three launches, so ratios are used.

Decodes alone show how many sequences use the full bandwidth; decodes beside a prefill are the check. The model's
remaining error there has mostly one cause. The query heads of a KV head share their reads, until the keys and values of
one head exceed the L2 cache. (That is at 147,000 tokens on an RTX 4090, more than it holds of a whole model.) Unequal
batches then share nothing; equal ones continue to share as long as their heads stay in step.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.hardware.operator_tables import read_table
from mosaic.core.workload import ModelShape
from sim.hardware.hardware import MeasuredAttention
from sim.hardware.iteration_time import unsplit_seqs
from sim.hardware.skew_time import AttentionSkew

STREAMS = np.arange(8.0, 200.0, 0.5)
"""Candidates: pairs of sequence and KV head that fill the bandwidth."""


class SkewRow(NamedTuple):
    """An iteration with decodes of two lengths, and how much longer it took than with their mean."""

    chunk: int
    context: int
    num_seqs: int
    num_big: int
    small: int
    big: int
    ratio: float

    @property
    def mean_tokens(self) -> float:
        return self.small + (self.big - self.small) * self.num_big / self.num_seqs


class SkewFit(NamedTuple):
    """What was found, and its errors: without the model of skew and with it."""

    streams: float
    errors: dict[str, tuple[float, float]]


def read_skew(path: Path) -> list[SkewRow]:
    """Read skew.csv."""
    columns = ("pc", "kp", "n", "nb", "kvs", "kv_big", "t_mean_us", "t_skew_us")
    return [
        SkewRow(
            chunk=int(row["pc"]),
            context=int(row["kp"]),
            num_seqs=int(row["n"]),
            num_big=int(row["nb"]),
            small=int(row["kvs"]),
            big=int(row["kv_big"]),
            ratio=row["t_skew_us"] / row["t_mean_us"],
        )
        for row in read_table(path, columns).iter_rows(named=True)
        if row["t_mean_us"] > 0
    ]


def fit_skew(rows: Sequence[SkewRow], attention: MeasuredAttention, shape: ModelShape, num_sms: int) -> SkewFit:
    """Fit to decodes alone that are not split, least absolute error; those beside a prefill are a check.

    Parameters
    ----------
    rows, attention
        skew.csv, and what was fitted to the tables beside it.
    shape, num_sms
        The model as one GPU holds it; the GPU's multiprocessors.

    Raises
    ------
    ValueError
        If no batch is too large to be split, so that nothing shows what skew costs.
    """
    least = unsplit_seqs(num_sms, shape.num_kv_heads)
    alone = np.array([not row.chunk and row.num_seqs >= least for row in rows])
    if not alone.any():
        raise ValueError(f"skew.csv: must have decodes alone of at least {least} sequences, found none")
    skew = AttentionSkew(block_s=attention.kv_token_s / shape.num_kv_heads, min_seqs=least)
    ratios = np.array([row.ratio for row in rows])
    per_stream = np.array([_extra_s(row, skew) / _uniform_s(row, attention) for row in rows])

    def error(those: NDArray[np.bool_], streams: float) -> float:
        return float(np.abs((1 + streams * per_stream[those]) / ratios[those] - 1).mean())

    streams = min(map(float, STREAMS), key=lambda candidate: error(alone, candidate))
    groups = {
        "decodes alone, batches that are not split": alone,
        "decodes beside a prefill, not fitted": np.array([row.chunk > 0 for row in rows]),
    }
    errors = {name: (error(those, 0.0), error(those, streams)) for name, those in groups.items() if those.any()}
    return SkewFit(streams, errors)


MEASURED_STREAM_BYTES_PER_S = (1.008e12 / 56.0, 1.792e12 / 55.5)
"""What one thread block reads: bandwidth over fitted streams, of an RTX 4090 and an RTX PRO 6000."""


def derived_streams(memory_bytes_per_s: float, num_sms: int) -> tuple[float, float]:
    """Derive the streams of a GPU without skew.csv, as a range.

    A stream is one thread block that reads the keys and values of one sequence and one KV head. Its rate is limited by
    latency and not by the GPU's size: 18 to 33e9 bytes per second on the two measured GPUs. So a GPU of more bandwidth
    needs more of them, but not more than one for each multiprocessor. An A100 of 80 GB (2.039e12 bytes per second, 108
    multiprocessors) needs 63 to 108. That is 8 to 14 sequences of 8 KV heads.

    Examples
    --------
    >>> [round(streams) for streams in derived_streams(2.039e12, 108)]
    [63, 108]
    """
    slow, fast = MEASURED_STREAM_BYTES_PER_S
    return min(memory_bytes_per_s / fast, num_sms), min(memory_bytes_per_s / slow, num_sms)


def _uniform_s(row: SkewRow, attention: MeasuredAttention) -> float:
    if not row.chunk:
        return attention.decode(row.num_seqs, row.mean_tokens)
    beside_s = attention.beside(row.num_seqs, row.mean_tokens) + attention.beside_per_token_pair_s * (
        row.num_seqs * row.chunk
    )
    return attention.prefill(row.chunk, row.context) + beside_s


def _extra_s(row: SkewRow, skew: AttentionSkew) -> float:
    if row.chunk:
        return skew.beside_prefill_s(row.big, row.mean_tokens, [(row.chunk, row.context)])
    return skew.alone_s(row.big, row.mean_tokens) if row.num_seqs >= skew.min_seqs else 0.0
