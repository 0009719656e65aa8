"""Describes a kind of GPU for the simulator: memory, loading, measured operator times, and its machine."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mosaic.core.checks import (
    AtLeast0,
    AtLeast1,
    Name,
    NotNegative,
    Positive,
    check_fields,
    checked,
    require,
    require_count,
    require_name,
    require_number,
)  # fmt: skip
from mosaic.core.cluster import Gpu
from mosaic.core.workload import ModelShape
from sim.hardware.curves import Curve, Grid, curve_from_text, grid_from_text
from sim.hardware.operators_by_size import MeasuredRange, OperatorsBySize


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("hardware host: ")
class Host:
    """Memory of the machine of the GPUs, and seconds of loads that need no disk.

    NOTE: once an expert has been loaded on the machine, its files are in memory (the page cache). Another engine of it
    then starts without the disk. An engine that is put to sleep (vLLM's sleep mode, level 1) copies its weights to CPU
    memory and releases its KV cache. It wakes by copying them back, without a new start of the engine.
    """

    memory_gib: NotNegative
    """For weights alone."""
    load_fixed_s: NotNegative
    """To start an engine whose weights are in CPU memory, beside reading them: process, profile, graphs."""
    load_bytes_per_s: Positive
    """Rate at which a starting engine reads weights from CPU memory."""
    sleep_fixed_s: NotNegative
    """To put an engine to sleep, and to wake it, beside copying its weights over the link."""
    asleep_gpu_gib: NotNegative
    """Memory of a sleeping engine on each of its GPUs."""
    source: Name
    """Source of the numbers."""

    @property
    def memory_bytes(self) -> int:
        return int(self.memory_gib * 2**30)

    @property
    def asleep_gpu_bytes(self) -> int:
        return int(self.asleep_gpu_gib * 2**30)

    def load_s(self, shape: ModelShape) -> float:
        """Time from idle workers to a ready engine, with the weights in CPU memory."""
        return self.load_fixed_s + shape.weight_bytes / self.load_bytes_per_s

    def sleep_s(self, weight_bytes: int, link_bytes_per_s: float) -> float:
        """Time to put an engine to sleep, or to wake it; each GPU copies its bytes over its own link."""
        return self.sleep_fixed_s + weight_bytes / link_bytes_per_s


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("attention: ")
class FittedAttention:
    """Attention of one layer as coefficients: decode is linear in tokens read, prefill quadratic in length."""

    decode_fixed_s: NotNegative
    decode_per_seq_s: NotNegative
    decode_per_kv_token_s: NotNegative
    prefill_per_token_s: NotNegative
    prefill_per_token_pair_s: NotNegative
    """A chunk of c tokens after a context of p adds (p + c)^2 - p^2 of these."""

    @property
    def kv_token_s(self) -> float:
        """Seconds per token read at full bandwidth, one layer."""
        return self.decode_per_kv_token_s


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("attention: ")
class MeasuredAttention:
    """Attention of one layer as grids.

    NOTE: decodes in the same iteration as a prefill run in the kernel for prefills and take up to twice as long as
    alone. So they have a grid of their own. A further term is for the tiles that every decode skips in a launch sized
    by the longest chunk.
    """

    decode: Grid
    """Decodes alone: rows sequences, columns tokens read by each."""
    prefill: Grid
    """One chunk alone: rows its tokens, columns the tokens before it."""
    beside: Grid
    """What decodes add to an iteration with a prefill: rows and columns as in ``decode``."""
    beside_per_token_pair_s: NotNegative
    """Added for each decode and each token of the longest concurrent chunk."""

    @property
    def kv_token_s(self) -> float:
        """Seconds per token read at full bandwidth, one layer: the slope of the largest batch."""
        tokens, seconds = self.decode.columns, self.decode.values_s[-1]
        return (seconds[-1] - seconds[0]) / (self.decode.rows[-1] * (tokens[-1] - tokens[0]))


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("operator table {0.name}: ")
class OperatorTable:
    """Measured operator times of one reference model on each GPU at one tensor-parallel degree."""

    name: Name
    shape: ModelShape
    tp_degree: AtLeast1
    source: Name
    dense: Curve
    """All operators of one layer except attention, by the tokens of the iteration."""
    attention: FittedAttention | MeasuredAttention
    once: Curve | None = None
    """Embedding and final norm, by tokens; None: not measured and small."""
    head: Curve | None = None
    """LM head and sampler, by sequences; None: priced by reading the head's weights."""
    experts: Grid | None = None
    """Of a mixture of experts, the routed experts of one layer on one GPU that has them all; None: a dense model.

    Rows are tokens, columns are experts that get any.
    """
    mape: Mapping[str, float] = field(default_factory=dict)
    """Mean absolute relative error of each fitted part against its measurements."""
    measured: MeasuredRange | None = None
    """None: not known."""

    def __post_init__(self) -> None:
        rule = f"given exactly where shape.num_experts={self.shape.num_experts} is above 0"
        is_given = self.experts is not None
        require(is_given == (self.shape.num_experts > 0), f"operator table {self.name}: experts", rule, is_given)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """A kind of GPU with what is needed to price iterations and loads on it."""

    gpu: Gpu
    tables: tuple[OperatorTable, ...]
    """Of reference models."""
    load_bytes_per_s: Positive | None
    """Rate at which a session loads its weights; None: at once, as for an engine that is already up."""
    load_fixed_s: NotNegative = 0.0
    load_scale: NotNegative = 1.0
    """Factor on the time of every load: at 1 it is the time from the rate and the fixed part."""
    unload_s: NotNegative = 0.0
    """To end a session: from its last token until another expert can load on its workers."""
    cpu_base_s: NotNegative = 0.0
    """CPU time per iteration: scheduling, inputs, sampling, outputs."""
    cpu_per_seq_s: NotNegative = 0.0
    cpu_overhead_scale: NotNegative = 1.0
    """Phi: how much slower the CPU is than the one on which the two terms were measured."""
    cpu_per_kv_token_s: NotNegative = 0.0
    """CPU time per token in the cache of a decode step: vLLM V0 copies token ids and block tables every step."""
    memory_bytes_per_s: Positive | None = None
    """Memory bandwidth; prices the LM head if a table has none."""
    flops_per_s: Positive | None = None
    """For tables without LM head: a lower bound on the time of its products; None: only reading the weights counts."""
    sampler_per_logit_s: NotNegative = 0.0
    """For tables without LM head: the sampler, per sequence and word of the vocabulary."""
    graph_max_seqs: AtLeast0 = 0
    """Decode batches up to this size are padded to 1, 2, 4, 8, 16, 24 ... (CUDA graphs); 0: never."""
    max_graph_tokens: AtLeast1 | None = None
    """vLLM V0's max_seq_len_to_capture: decode batches with a longer sequence run without CUDA graphs; None: never."""
    eager_layer_s: NotNegative = 0.0
    """Least time of a layer without CUDA graphs."""
    num_sms: int = 0
    """Streaming multiprocessors; from a batch size that depends on them, decode attention is not split over them."""
    attention_streams: NotNegative = 0.0
    """Pairs of sequence and KV head that together read at the full bandwidth, one thread block each.

    See ``sim.hardware.skew_time.AttentionSkew``. 0: length skew costs nothing.
    """
    host_link_bytes_per_s: Positive | None = None
    """Between CPU memory and a GPU, in each direction; a sparse KV cache needs it."""
    all_reduce: Mapping[int, Curve] = field(default_factory=dict)
    """One all-reduce by bytes of the message, per tensor-parallel degree."""
    by_size: OperatorsBySize | None = None
    """Operators by their sizes; with them every dense model has a table of its own, and there are no others."""
    host: Host | None = None
    """Assumptions about its machine; needed for sleeping engines, and for weights that stay in memory."""
    evidence: str = ""
    """In a few words, how far its times can be trusted: the error on data outside the fit."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Source of each setting above: published, measured, fitted or assumed."""

    def __post_init__(self) -> None:
        owner = f"hardware {self.gpu.name}"
        check_fields(self, f"{owner}: ")
        rule = "at least one, and none with by_size"
        require(bool(self.tables) == (self.by_size is None), f"{owner}: tables", rule, len(self.tables))
        require_count(self.num_sms, f"{owner}: num_sms", at_least=1 if self.attention_streams else 0)
        for table in self.tables:
            if table.head is None:
                require(self.memory_bytes_per_s is not None, f"{owner}: memory_bytes_per_s", "given", None)
            if table.tp_degree > 1:
                rule = f"given for tp_degree {table.tp_degree} of table {table.name}"
                require(table.tp_degree in self.all_reduce, f"{owner}: all_reduce", rule, sorted(self.all_reduce))

    def load_s(self, shape: ModelShape, tp_degree: int) -> float:
        """Time from idle workers to a ready engine.

        The whole checkpoint counts at every degree: the workers of a session read it on one machine.
        """
        require_count(tp_degree, "tp_degree", at_least=1)
        reading_s = 0.0 if self.load_bytes_per_s is None else shape.weight_bytes / self.load_bytes_per_s
        return self.load_scale * (self.load_fixed_s + reading_s)

    def cpu_s(self, num_seqs: int) -> float:
        """CPU time of an iteration over this many sequences."""
        return self.cpu_overhead_scale * (self.cpu_base_s + self.cpu_per_seq_s * num_seqs)

    def table_for(self, shape: ModelShape, tp_degree: int) -> OperatorTable:
        """Choose the reference model of the same degree that is nearest in size; both are dense, or neither is.

        With operators by size a dense model is its own reference.

        Raises
        ------
        ValueError
            If nothing was measured at this degree, or the link between its GPUs is not known: between plausible links a
            pair of GPUs differs by 17%, so no single time can be given.
        """
        source = self.sources.get("all_reduce", "")
        if tp_degree > 1 and source.startswith("assumed"):
            rule = f"measured or published at tp_degree {tp_degree}"
            require(False, f"hardware {self.gpu.name}: all_reduce", rule, source)
        alike = [table for table in self.tables if bool(table.shape.num_experts) == bool(shape.num_experts)]
        degrees = {table.tp_degree for table in alike}
        if self.by_size is not None and not shape.num_experts:
            degrees = {1, *self.all_reduce}
        rule = f"of a model {'with' if shape.num_experts else 'without'} experts among them"
        require(bool(degrees), f"hardware {self.gpu.name}: tables", rule, [table.name for table in self.tables])
        require(tp_degree in degrees, f"hardware {self.gpu.name}: tp_degree", f"one of {sorted(degrees)}", tp_degree)
        if not alike:
            assert self.by_size is not None, "some degree was known"
            return _table_by_size(self.by_size, shape, tp_degree)
        candidates = [table for table in alike if table.tp_degree == tp_degree]
        size = shape.num_block_parameters
        return min(candidates, key=lambda table: abs(math.log(table.shape.num_block_parameters / size)))


def _table_by_size(by_size: OperatorsBySize, shape: ModelShape, tp_degree: int) -> OperatorTable:
    return OperatorTable(
        name="by_size",
        shape=shape,
        tp_degree=tp_degree,
        source=by_size.source,
        dense=by_size.dense(shape, tp_degree),
        attention=MeasuredAttention(
            decode=by_size.decode_attention(shape, tp_degree, is_alone=True),
            prefill=by_size.prefill_attention(shape, tp_degree),
            beside=by_size.decode_attention(shape, tp_degree, is_alone=False),
            beside_per_token_pair_s=0.0,
        ),
        head=by_size.head(shape, tp_degree),
        mape=by_size.mape,
        measured=by_size.measured,
    )


def hardware_from_config(
    *,
    name: str,
    memory_gib: float,
    tables: Mapping[str, Mapping[str, Any]],
    memory_utilization_frac: float = 0.9,
    all_reduce_us: Mapping[int | str, str] | None = None,
    by_size: Mapping[str, Any] | None = None,
    host: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Hardware:
    """Build a kind of GPU from the plain values of conf/hardware.

    Parameters
    ----------
    name, memory_gib, memory_utilization_frac
        The GPU's name, its memory, and the share of it that an engine may use.
    tables
        By name: shape, tp_degree, source, and the curves and grids as text in microseconds
        (see ``curve_from_text`` and ``grid_from_text``).
    all_reduce_us
        By tensor-parallel degree: microseconds by bytes, as text.
    by_size
        Operators by their sizes: the fields of ``OperatorsBySize``, grids as text in microseconds, and ``gemm_scale``,
        the ratio of the time of products in an engine to their measurement.
    host
        The fields of ``Host``.
    settings
        The other fields of ``Hardware``.

    Raises
    ------
    ValueError, TypeError
        If a value is missing, unknown or out of range.
    """
    require_name(name, "hardware.name")
    require_number(memory_gib, f"hardware {name}: memory_gib", above=0)
    gpu = Gpu(name=name, memory_bytes=int(memory_gib * 2**30), memory_utilization_frac=memory_utilization_frac)
    if not isinstance(tables, Mapping):
        raise TypeError(f"hardware {name}: tables must be a mapping, got {tables!r}")
    curves = {
        int(degree): curve_from_text(text, f"hardware {name}: all_reduce_us.{degree}")
        for degree, text in (all_reduce_us or {}).items()
    }
    built = tuple(_table(f"hardware {name}: tables.{key}", key, entry) for key, entry in tables.items())
    known = None if host is None else Host(**host)
    sizes = None if by_size is None else _by_size(f"hardware {name}: by_size", by_size)
    return Hardware(gpu=gpu, tables=built, all_reduce=curves, by_size=sizes, host=known, **settings)


_COEFFICIENTS = {
    "decode_fixed_us": "decode_fixed_s",
    "decode_per_seq_us": "decode_per_seq_s",
    "decode_per_kv_token_us": "decode_per_kv_token_s",
    "prefill_per_token_us": "prefill_per_token_s",
    "prefill_per_token_pair_us": "prefill_per_token_pair_s",
}
_GRIDS = {"decode_us": "decode", "prefill_us": "prefill", "beside_us": "beside"}


def _table(owner: str, name: str, entry: Mapping[str, Any]) -> OperatorTable:
    optional = {"once_us", "head_us", "experts_us", "mape", "measured"}
    _require_keys(owner, entry, {"shape", "tp_degree", "source", "dense_us", "attention"}, optional)
    curves = {key: curve_from_text(entry[key], f"{owner}.{key}") for key in ("once_us", "head_us") if key in entry}
    return OperatorTable(
        name=name,
        shape=ModelShape(**entry["shape"]),
        tp_degree=entry["tp_degree"],
        source=entry["source"],
        dense=curve_from_text(entry["dense_us"], f"{owner}.dense_us"),
        attention=_attention(f"{owner}.attention", entry["attention"]),
        once=curves.get("once_us"),
        head=curves.get("head_us"),
        experts=grid_from_text(entry["experts_us"], f"{owner}.experts_us") if "experts_us" in entry else None,
        mape=dict(entry.get("mape", {})),
        measured=_measured(owner, entry),
    )


def _measured(owner: str, entry: Mapping[str, Any]) -> MeasuredRange | None:
    if "measured" not in entry:
        return None
    _require_keys(f"{owner}.measured", entry["measured"], set(MeasuredRange._fields))
    for name, value in entry["measured"].items():
        require_count(value, f"{owner}.measured.{name}", at_least=1)
    return MeasuredRange(**entry["measured"])


def _by_size(owner: str, entry: Mapping[str, Any]) -> OperatorsBySize:
    times = {"small_fixed_us", "decode_head_us", "gemm_us", "decode_us", "prefill_us"}
    _require_keys(owner, entry, {"source", "head_dim", "mape", "gemm_scale"} | times, {"measured"})
    require_number(entry["gemm_scale"], f"{owner}.gemm_scale", above=0)
    return OperatorsBySize(
        source=entry["source"],
        head_dim=entry["head_dim"],
        mape=dict(entry["mape"]),
        measured=_measured(owner, entry),
        small_fixed_s=_seconds(entry["small_fixed_us"], f"{owner}.small_fixed_us"),
        decode_head_s=_seconds(entry["decode_head_us"], f"{owner}.decode_head_us"),
        gemm=grid_from_text(entry["gemm_us"], f"{owner}.gemm_us").scaled(entry["gemm_scale"]),
        decode={int(n): grid_from_text(text, f"{owner}.decode_us.{n}") for n, text in entry["decode_us"].items()},
        prefill=grid_from_text(entry["prefill_us"], f"{owner}.prefill_us"),
    )


def _attention(owner: str, entry: Mapping[str, Any]) -> FittedAttention | MeasuredAttention:
    if not isinstance(entry, Mapping) or "decode_us" not in entry:
        _require_keys(owner, entry, set(_COEFFICIENTS))
        return FittedAttention(
            **{field: _seconds(entry[key], f"{owner}.{key}") for key, field in _COEFFICIENTS.items()}
        )
    _require_keys(owner, entry, {*_GRIDS, "beside_per_token_pair_us"})
    grids = {field: grid_from_text(entry[key], f"{owner}.{key}") for key, field in _GRIDS.items()}
    pair_s = _seconds(entry["beside_per_token_pair_us"], f"{owner}.beside_per_token_pair_us")
    return MeasuredAttention(**grids, beside_per_token_pair_s=pair_s)


def _seconds(value: Any, name: str) -> float:
    require_number(value, name, at_least=0)
    return float(value) * 1e-6


def _require_keys(owner: str, entry: object, required: set[str], optional: set[str] | None = None) -> None:
    if not isinstance(entry, Mapping):
        raise TypeError(f"{owner} must be a mapping, got {entry!r}")
    missing, unknown = required - entry.keys(), entry.keys() - required - (optional or set())
    require(not missing, owner, f"complete (missing {sorted(missing)})", sorted(entry))
    require(not unknown, owner, f"free of unknown keys ({sorted(unknown)})", sorted(entry))
