"""FlexiCache's throughput on an H100: the simulator fitted to plain vLLM, then asked for the sparse KV cache.

No operators of this GPU were measured, so its times are derived from its data sheet. Two numbers are fitted, both to
the published column of plain vLLM: the share of peak arithmetic that prefill reaches, and the host's seconds per step.
The share of peak bandwidth that decode attention reaches is assumed, and the prompts' lengths are.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import product
from math import exp, inf, log
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from experiments.hardware.hardware_yaml import to_yaml
from experiments.lab.plots import Panel, draw
from experiments.lab.study import Point, Row, Study, Sweep, Tables
from experiments.lab.tables import markdown
from experiments.studies.published_sparse_kv import (
    FLEXICACHE_TOK_PER_S,
    MEMORY_SAVED_FRAC,
    OUTPUT_TOKENS,
    VLLM_TOK_PER_S,
)
from mosaic.comparison.estimate import Estimate
from mosaic.config.compose import compose_config
from mosaic.config.instantiation import make
from mosaic.core.cluster import uniform_cluster
from mosaic.core.engine_options import EngineOptions, Order
from mosaic.core.plan import Session
from mosaic.core.workload import PROPOSE, CallKey, Expert, SparseKv
from sim.cluster.expert_on_gpu import ExpertsOnGpus
from sim.hardware.hardware import Hardware, hardware_from_config
from sim.hardware.iteration_time import iteration_time

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEMORY_GIB = 93.6
MEMORY_BYTES_PER_S = 3.9e12
FLOPS_PER_S = 835e12
HOST_LINK_BYTES_PER_S = 64e9
ATTENTION_FRACS = (0.5, 0.6, 0.7, 0.8)
"""Assumed shares of peak bandwidth in decode attention."""
ORDERS = (Order.PREFILL_FIRST, Order.MIXED)
"""The authors' fork of vLLM 0.8.2 may run either engine."""
ATTENTION_FRAC = 0.7
"""Of conf/hardware: between what the measured tables of other GPUs show, and what nobody has measured here."""
PROMPT_TOKENS = (10_000, 30_000)
"""Least and most of a prompt, uniform: assumed."""
NUM_REQUESTS = 200
NUM_DRAWS = 3
"""Of the prompts' lengths."""
DATA_SHEET = "NVIDIA's data sheet, H100 NVL (94 GB)"
MICRO = 1e-6
ABSOLUTE_LIMIT_FRAC, RATIO_LIMIT_FRAC = 0.12, 0.10
SAVED_AT_TOKENS = 20_000


class Fit(NamedTuple):
    """What is fitted to the column of plain vLLM."""

    prefill_frac: float
    """Share of peak arithmetic."""
    host_s: float
    """Per step."""


@cache
def llama() -> Expert:
    """Llama-3.1-8B, as the pools know it."""
    expert = make(compose_config(["pool=llama3_8b", "workload=gpqa"])["pool"]["experts"]["llama3_8b"], "expert")
    assert isinstance(expert, Expert)
    return expert


def hardware_config(fit: Fit, attention_frac: float) -> dict[str, Any]:
    """Derive the GPU's operator times from its data sheet, as conf/hardware holds them.

    A layer takes as long as reading its weights or its products, whichever is longer; prefill attention computes
    2 x 2 x query heads x head size operations for each of L^2 / 2 pairs; decode attention reads keys and values.
    """
    shape = llama().shape
    parameters = shape.num_block_parameters / shape.num_layers
    read_us = shape.bytes_per_value * parameters / MEMORY_BYTES_PER_S / MICRO
    token_us = 2 * parameters / (fit.prefill_frac * FLOPS_PER_S) / MICRO
    turn = read_us / token_us
    pair_us = 2 * shape.num_query_heads * shape.head_dim / (fit.prefill_frac * FLOPS_PER_S) / MICRO
    kv_bytes = shape.kv_bytes_per_token() / shape.num_layers
    fitted = "fitted to plain vLLM's published throughput by the study sparse_throughput"
    names = ("num_parameters", "num_layers", "hidden_size", "ffn_size", "num_query_heads", "num_kv_heads", "head_dim")
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
                "shape": {name: getattr(shape, name) for name in (*names, "vocab_size")},
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


def throughput(hardware: Hardware, expert: Expert, order: Order, output_tokens: int) -> float:
    """Return prompt and output tokens per second of a batch of equal outputs, the mean over draws of the prompts."""
    return fmean(throughput_of_draw(hardware, expert, order, output_tokens, draw) for draw in range(NUM_DRAWS))


def throughput_of_draw(hardware: Hardware, expert: Expert, order: Order, output_tokens: int, number: int) -> float:
    """Serve one draw of the prompts, without prefix caching as in the authors' artifact."""
    rng = random.Random(number)
    prompts = [rng.randint(*PROMPT_TOKENS) for _ in range(NUM_REQUESTS)]
    cluster = uniform_cluster(name="one", num_workers=1, gpu=hardware.gpu)
    options = EngineOptions(order=order, enable_prefix_caching=False)
    places = ExpertsOnGpus([expert], {hardware.gpu.name: hardware}, cluster, options, iteration_time)
    shard = (CallKey("batch", PROPOSE, 0),)
    session = Session(id=0, expert=expert.name, node=PROPOSE, workers=(0,), shard=shard)
    engine = places.engine(places.of_session(session), 0.0)
    for request, tokens in enumerate(prompts):
        engine.submit(request, tokens, output_tokens, 0.0)
    while engine.next_event_ts() < inf:
        engine.advance_to(engine.next_event_ts())
    return (sum(prompts) + NUM_REQUESTS * output_tokens) / engine.boundary_ts


@cache
def fit_vllm(order: Order, attention_frac: float) -> Fit:
    """Fit both numbers to the column of plain vLLM, least squares of logarithms."""
    from scipy.optimize import minimize

    def misfit(logs: Sequence[float]) -> float:
        hardware = hardware_from_config(**hardware_config(Fit(exp(logs[0]), exp(logs[1])), attention_frac))
        found = [throughput(hardware, llama(), order, tokens) for tokens in OUTPUT_TOKENS]
        return sum(log(ours / theirs) ** 2 for ours, theirs in zip(found, VLLM_TOK_PER_S, strict=True))

    start = [(log(0.25), log(0.005)), (log(0.35), log(0.01)), (log(0.3), log(0.03))]
    options = {"xatol": 0.002, "fatol": 1e-6, "maxiter": 35, "initial_simplex": start}
    found = minimize(misfit, start[0], method="Nelder-Mead", options=options)
    return Fit(float(f"{exp(found.x[0]):.4g}"), float(f"{exp(found.x[1]):.4g}"))


def measure(point: Point, seed: int) -> Row:
    """Fit to plain vLLM, once for all output lengths, and predict the sparse KV cache."""
    order, attention_frac = Order(str(point.labels["order"])), float(point.labels["attention_frac"])
    fit, tokens = fit_vllm(order, attention_frac), int(point.labels["output_tokens"])
    hardware = hardware_from_config(**hardware_config(fit, attention_frac))
    vllm, flexicache = (
        throughput(hardware, expert, order, tokens) for expert in (llama(), replace(llama(), kv=SparseKv()))
    )
    return {**fit._asdict(), "vllm_tok_per_s": round(vllm, 3), "flexicache_tok_per_s": round(flexicache, 3)}


def beside_published(tables: Tables) -> list[dict[str, Any]]:
    """Set throughputs and their ratio beside the published ones, and give their errors."""
    published = zip(OUTPUT_TOKENS, VLLM_TOK_PER_S, FLEXICACHE_TOK_PER_S, strict=True)
    columns = ["output_tokens", "vllm_tok_per_s_published", "flexicache_tok_per_s_published"]
    rows = tables["sparse_throughput"].join(
        pl.DataFrame(list(published), columns, orient="row"), on="output_tokens", maintain_order="left"
    )
    for end in ("", "_published"):
        ratio = pl.col(f"flexicache_tok_per_s{end}") / pl.col(f"vllm_tok_per_s{end}")
        rows = rows.with_columns(ratio.alias(f"ratio{end}"))
    errors = {f"{name}_error": pl.col(name) / pl.col(f"{name}_published") - 1 for name in PANELS}
    return rows.with_columns(host_ms=1000 * pl.col("host_s"), **errors).to_dicts()


def worst_frac(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    """Find the largest error of a column."""
    return max(abs(float(row[f"{name}_error"])) for row in rows)


def report(tables: Tables) -> str:
    """Write what was fitted, what was assumed and what came out."""
    rows = beside_published(tables)
    absolute, ratio = (worst_frac(rows, name) for name in ("flexicache_tok_per_s", "ratio"))
    by_frac = {frac: [row for row in rows if row["attention_frac"] == frac] for frac in ATTENTION_FRACS}
    return PAGE.format(
        absolute=absolute,
        by_frac=", ".join(f"{frac:g}: {worst_frac(own, 'flexicache_tok_per_s'):.1%}" for frac, own in by_frac.items()),
        ratio=ratio,
        verdict="kept" if absolute <= ABSOLUTE_LIMIT_FRAC and ratio <= RATIO_LIMIT_FRAC else "MISSED",
        table=markdown([{head: cell.format(**row) for head, cell in CELLS.items()} for row in rows]),
        hardware=hardware_yaml(committed_fit(tables)),
        saved=markdown([saved_cells(SparseKv(budget_pages=pages)) for pages in (32, 64, 128)]),
    )


def saved_cells(kv: SparseKv) -> dict[str, str]:
    """Write the share of a decoding sequence's KV memory that is not on the GPU, by what counts as memory."""
    alone, whole = (
        1 - kv.resident_tokens(SAVED_AT_TOKENS, with_summaries=summaries) / SAVED_AT_TOKENS
        for summaries in (False, True)
    )
    cells = {"keys and values alone": f"{alone:.1%}", "with the summaries of all pages": f"{whole:.1%}"}
    return {"budget, tokens": f"{kv.budget_tokens:,}", **cells}


def committed_fit(tables: Tables) -> Fit:
    """Return the fit that conf/hardware holds: with prefill first."""
    chosen = tables["sparse_throughput"].filter(order=str(Order.PREFILL_FIRST), attention_frac=ATTENTION_FRAC)
    return Fit(*chosen.select(Fit._fields).row(0))


def hardware_yaml(fit: Fit) -> str:
    """Write the fitted GPU as conf/hardware holds it."""
    config = hardware_config(fit, ATTENTION_FRAC)
    return to_yaml({"_target_": "sim.hardware.hardware_from_config"} | config)


def figure(tables: Tables) -> "Figure":
    """Draw published values beside the range over all that is assumed."""
    published, simulated = lines = ("published", "simulated: mean and range over what is assumed")
    drawn = []
    for name, tokens in product(PANELS, OUTPUT_TOKENS):
        rows = [row for row in beside_published(tables) if row["output_tokens"] == tokens]
        ours = [row[name] for row in rows]
        range_ = Estimate(fmean(ours), min(ours), max(ours), len(ours))
        place = {"panel": name, "tokens": f"{tokens:,}"}
        drawn.append({**place, "line": published, "value": Estimate(rows[0][f"{name}_published"])})
        drawn.append({**place, "line": simulated, "value": range_})
    label = "output tokens of a request"
    return draw(drawn, "tokens", "value", "line", "panel", x_label=label, panels=PANELS, lines=lines, stacked=True)


PANELS = {
    "vllm_tok_per_s": Panel(label="vLLM (tokens/s)"),
    "flexicache_tok_per_s": Panel(label="FlexiCache (tokens/s)"),
    "ratio": Panel(label="FlexiCache / vLLM"),
}
"""By column."""
BESIDE = "{{{0}_published:{1}}} -> {{{0}:{1}}} ({{{0}_error:+.1%}})"
CELLS = {
    "order": "{order}",
    "attention": "{attention_frac:g}",
    "prefill": "{prefill_frac:.3f}",
    "host, ms": "{host_ms:.1f}",
    "output": "{output_tokens:,}",
    "vLLM (fitted)": BESIDE.format("vllm_tok_per_s", ",.0f"),
    "FlexiCache": BESIDE.format("flexicache_tok_per_s", ",.0f"),
    "ratio": BESIDE.format("ratio", ".2f"),
}
"""Of the table: published -> simulated (error)."""
PAGE = f"""\
Simulated; no H100 ran. Two numbers are fitted, both to the published column of plain vLLM: the share of peak arithmetic
in prefill and the host's time per step. Nothing is fitted to FlexiCache's column. Assumed, as unpublished: prompts
uniform on {PROMPT_TOKENS[0]:,} to {PROMPT_TOKENS[1]:,} tokens ({NUM_REQUESTS} at once, means of {NUM_DRAWS} draws),
{SparseKv().promoted:g} of the best pages promoted at a ranking (the middle of the published range),
{HOST_LINK_BYTES_PER_S / 1e9:g} GB/s to the host, the share of peak bandwidth in decode attention, and the engine (the
authors' fork may run vLLM's V0 or V1). Tokens per second count prompts and outputs.

Worst error over all that is assumed: FlexiCache's throughput {{absolute:.1%}} (limit {ABSOLUTE_LIMIT_FRAC:.0%}; by
attention's share {{by_frac}}), the ratio {{ratio:.1%}} (limit {RATIO_LIMIT_FRAC:.0%}): {{verdict}}.

![throughput](sparse_throughput.png)

Published -> simulated:

{{table}}

`conf/hardware/flexicache_h100.yaml` holds the fit with prefill first and {ATTENTION_FRAC:g} of the bandwidth:

```yaml
{{hardware}}```

## KV memory saved at {SAVED_AT_TOKENS:,} tokens

A decoding sequence keeps all pages of the unstable heads on the GPU, and of the stable ones the budget and what is
written between rankings. Saved is the rest, as a share of its full KV cache; the host holds it. A page's summary (least
and largest key) stays for all pages. Published: over {MEMORY_SAVED_FRAC:.0%}; which of the two it counts is not said.

{{saved}}
"""

STUDY = Study(
    name="sparse_throughput",
    about="A sparse KV cache on an H100, beside what FlexiCache published.",
    title="FlexiCache's throughput, Llama-3.1-8B on an H100",
    tables={
        "sparse_throughput": Sweep(
            points=[
                Point(labels={"order": str(order), "attention_frac": frac, "output_tokens": tokens})
                for order, frac, tokens in product(ORDERS, ATTENTION_FRACS, OUTPUT_TOKENS)
            ],
            measure=measure,
        )
    },
    report=report,
    figures={"sparse_throughput": figure},
)
