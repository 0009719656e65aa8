"""FlexiCache's throughput on an H100: the simulator fitted to plain vLLM, then asked for the sparse KV cache.

No operators of this GPU were measured, so its times are derived from its data sheet. Two numbers are fitted, both to
the published column of plain vLLM: the share of peak arithmetic that prefill reaches, and the host's seconds per step.
The share of peak bandwidth that decode attention reaches is assumed, and the prompts' lengths are.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, inf, log
from statistics import fmean
from typing import Any, NamedTuple

from experiments.studies.published_sparse_kv import FLEXICACHE_TOK_PER_S, OUTPUT_TOKENS, VLLM_TOK_PER_S
from mosaic.config.compose import compose_config
from mosaic.config.instantiation import make
from mosaic.core.cluster import uniform_cluster
from mosaic.core.engine_options import EngineOptions, Order
from mosaic.core.plan import Session
from mosaic.core.sparse_kv import SparseKv
from mosaic.core.workload import PROPOSE, CallKey, Expert, ModelShape
from sim.cluster.expert_on_gpu import ExpertsOnGpus
from sim.hardware.hardware import Hardware, hardware_from_config
from sim.hardware.iteration_time import iteration_time

MEMORY_GIB = 93.6
MEMORY_BYTES_PER_S = 3.9e12
FLOPS_PER_S = 835e12
HOST_LINK_BYTES_PER_S = 64e9
ATTENTION_FRACS = (0.5, 0.6, 0.7, 0.8)
"""Assumed shares of peak bandwidth in decode attention."""
ATTENTION_FRAC = 0.7
"""Of the committed hardware: between what the measured tables of other GPUs show, and what nobody has measured here."""
ORDERS = (Order.PREFILL_FIRST, Order.MIXED)
"""The authors' fork of vLLM 0.8.2 may run either engine."""
PROMPT_TOKENS = (10_000, 30_000)
"""Least and most of a prompt, uniform: assumed."""
NUM_REQUESTS = 200
SEEDS = tuple(range(3))
"""Of the prompts' lengths."""
DATA_SHEET = "NVIDIA's data sheet, H100 NVL (94 GB)"
MICRO = 1e-6


class Fit(NamedTuple):
    """What is fitted to the column of plain vLLM."""

    prefill_frac: float
    """Share of peak arithmetic."""
    host_s: float
    """Per step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One output length under one choice of what is assumed."""

    order: Order
    attention_frac: float
    fit: Fit
    output_tokens: int
    vllm_tok_per_s: float
    flexicache_tok_per_s: float
    published_vllm_tok_per_s: float
    published_flexicache_tok_per_s: float

    @property
    def ratio(self) -> float:
        return self.flexicache_tok_per_s / self.vllm_tok_per_s

    @property
    def published_ratio(self) -> float:
        return self.published_flexicache_tok_per_s / self.published_vllm_tok_per_s

    @property
    def errors_frac(self) -> tuple[float, float, float]:
        """Of plain vLLM (the fit), of FlexiCache, and of their ratio."""
        return (
            self.vllm_tok_per_s / self.published_vllm_tok_per_s - 1,
            self.flexicache_tok_per_s / self.published_flexicache_tok_per_s - 1,
            self.ratio / self.published_ratio - 1,
        )


def llama() -> Expert:
    """Llama-3.1-8B, as the pools know it."""
    expert = make(compose_config(["pool=llama3_8b", "workload=gpqa"])["pool"]["experts"]["llama3_8b"], "expert")
    assert isinstance(expert, Expert)
    return expert


def hardware_config(fit: Fit, attention_frac: float, shape: ModelShape) -> dict[str, Any]:
    """Derive the GPU's operator times from its data sheet, as conf/hardware holds them.

    A layer takes as long as reading its weights or its products, whichever is longer; prefill attention computes
    2 x 2 x query heads x head size operations for each of L^2 / 2 pairs; decode attention reads keys and values.
    """
    parameters = shape.num_block_parameters / shape.num_layers
    read_us = shape.bytes_per_value * parameters / MEMORY_BYTES_PER_S / MICRO
    token_us = 2 * parameters / (fit.prefill_frac * FLOPS_PER_S) / MICRO
    turn = read_us / token_us
    pair_us = 2 * shape.num_query_heads * shape.head_dim / (fit.prefill_frac * FLOPS_PER_S) / MICRO
    kv_bytes = shape.kv_bytes_per_token() / shape.num_layers
    fitted = "fitted to plain vLLM's published throughput by experiments/flexicache.py throughput"
    return {
        "name": "flexicache_h100",
        "memory_gib": MEMORY_GIB,
        "memory_utilization_frac": 0.9,
        "load_bytes_per_s": 4e8,
        "load_scale": 1.0,
        "cpu_base_s": float(f"{fit.host_s:.4g}"),
        "memory_bytes_per_s": MEMORY_BYTES_PER_S,
        "graph_max_seqs": 256,
        "host_link_bytes_per_s": HOST_LINK_BYTES_PER_S,
        "sources": {
            "memory_gib": f"{DATA_SHEET}; the driver shows 95,830 MiB",
            "load": "assumed: as conf/hardware/a100_80gb.yaml",
            "cpu": fitted + "; what else a step takes beside reading weights and cache is in it",
            "memory_bytes_per_s": DATA_SHEET,
            "flops_per_s": f"{DATA_SHEET}, dense bf16: 835e12; prefill reaches {fit.prefill_frac:.3f} of it, {fitted}",
            "attention": f"assumed: {attention_frac:g} of the memory bandwidth in decode attention",
            "graph_max_seqs": "vLLM's captured batch sizes",
            "host_link_bytes_per_s": f"{DATA_SHEET}: PCIe 5.0 x16, 128e9 in both directions together",
        },
        "tables": {
            "llama3_8b_tp1": {
                "source": f"derived from {DATA_SHEET}; nothing measured",
                "tp_degree": 1,
                "shape": _plain(shape),
                "dense_us": f"0:{read_us:.5g} {turn:.5g}:{read_us:.5g} {2 * turn:.5g}:{2 * read_us:.5g}",
                "attention": {
                    "decode_fixed_us": 0.0,
                    "decode_per_seq_us": 0.0,
                    "decode_per_kv_token_us": float(f"{kv_bytes / (attention_frac * MEMORY_BYTES_PER_S) / MICRO:.5g}"),
                    "prefill_per_token_us": 0.0,
                    "prefill_per_token_pair_us": float(f"{pair_us:.5g}"),
                },
            }
        },
    }


def _plain(shape: ModelShape) -> dict[str, int]:
    names = (
        "num_parameters", "num_layers", "hidden_size", "ffn_size", "num_query_heads", "num_kv_heads", "head_dim",
        "vocab_size",
    )  # fmt: skip
    return {name: getattr(shape, name) for name in names}


def options_of(order: Order) -> EngineOptions:
    """Run an engine as the authors' artifact does: without prefix caching."""
    return EngineOptions(order=order, enable_prefix_caching=False)


def throughput(hardware: Hardware, expert: Expert, order: Order, output_tokens: int, seeds: Sequence[int]) -> float:
    """Prompt and output tokens per second of a batch of equal outputs, the mean over draws of the prompts."""
    return fmean(_throughput(hardware, expert, order, output_tokens, seed) for seed in seeds)


def _throughput(hardware: Hardware, expert: Expert, order: Order, output_tokens: int, seed: int) -> float:
    rng = random.Random(seed)
    prompts = [rng.randint(*PROMPT_TOKENS) for _ in range(NUM_REQUESTS)]
    cluster = uniform_cluster(name="one", num_workers=1, gpu=hardware.gpu)
    places = ExpertsOnGpus([expert], {hardware.gpu.name: hardware}, cluster, options_of(order), iteration_time)
    shard = (CallKey("batch", PROPOSE, 0),)
    session = Session(id=0, expert=expert.name, node=PROPOSE, workers=(0,), shard=shard)
    engine = places.engine(places.of_session(session), 0.0)
    for number, tokens in enumerate(prompts):
        engine.submit(number, tokens, output_tokens, 0.0)
    while engine.next_event_ts() < inf:
        engine.advance_to(engine.next_event_ts())
    return (sum(prompts) + NUM_REQUESTS * output_tokens) / engine.boundary_ts


def fit_vllm(order: Order, attention_frac: float, expert: Expert, seeds: Sequence[int] = SEEDS) -> Fit:
    """Fit both numbers to the column of plain vLLM, least squares of logarithms."""
    from scipy.optimize import minimize

    def misfit(logs: Sequence[float]) -> float:
        hardware = _hardware(Fit(exp(logs[0]), exp(logs[1])), attention_frac, expert)
        found = [throughput(hardware, expert, order, tokens, seeds) for tokens in OUTPUT_TOKENS]
        return sum(log(ours / theirs) ** 2 for ours, theirs in zip(found, VLLM_TOK_PER_S, strict=True))

    start = [(log(0.25), log(0.005)), (log(0.35), log(0.01)), (log(0.3), log(0.03))]
    options = {"xatol": 0.002, "fatol": 1e-6, "maxiter": 35, "initial_simplex": start}
    found = minimize(misfit, start[0], method="Nelder-Mead", options=options)
    return Fit(float(f"{exp(found.x[0]):.4g}"), float(f"{exp(found.x[1]):.4g}"))


def _hardware(fit: Fit, attention_frac: float, expert: Expert) -> Hardware:
    return hardware_from_config(**hardware_config(fit, attention_frac, expert.shape))


def rows_of(order: Order, attention_frac: float, expert: Expert, kv: SparseKv) -> tuple[Row, ...]:
    """Fit to plain vLLM, then predict the sparse KV cache."""
    fit = fit_vllm(order, attention_frac, expert)
    hardware = _hardware(fit, attention_frac, expert)
    sparse = replace(expert, kv=kv)
    return tuple(
        Row(
            order=order,
            attention_frac=attention_frac,
            fit=fit,
            output_tokens=tokens,
            vllm_tok_per_s=throughput(hardware, expert, order, tokens, SEEDS),
            flexicache_tok_per_s=throughput(hardware, sparse, order, tokens, SEEDS),
            published_vllm_tok_per_s=vllm,
            published_flexicache_tok_per_s=flexicache,
        )
        for tokens, vllm, flexicache in zip(OUTPUT_TOKENS, VLLM_TOK_PER_S, FLEXICACHE_TOK_PER_S, strict=True)
    )


def all_rows(kv: SparseKv | None = None) -> tuple[Row, ...]:
    """Take every order and every assumed share of the bandwidth."""
    expert = llama()
    kv = kv or SparseKv()
    return tuple(row for order in ORDERS for frac in ATTENTION_FRACS for row in rows_of(order, frac, expert, kv))


def memory_saved_frac(kv: SparseKv, num_tokens: int) -> Mapping[str, float]:
    """Share of a decoding sequence's KV memory that is not on the GPU, by what counts as memory."""
    return {
        "keys and values alone": 1 - kv.resident_tokens(num_tokens, with_summaries=False) / num_tokens,
        "with the summaries of all pages": 1 - kv.resident_tokens(num_tokens) / num_tokens,
    }
