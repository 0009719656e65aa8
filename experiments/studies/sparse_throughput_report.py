"""The throughput of a sparse KV cache as text, as a table and as a figure."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from experiments.figures.sparse_throughput import draw_sparse_throughput, line_of
from experiments.studies.published_sparse_kv import MEMORY_SAVED_FRAC
from experiments.studies.sparse_throughput import (
    ATTENTION_FRAC,
    ATTENTION_FRACS,
    HOST_LINK_BYTES_PER_S,
    NUM_REQUESTS,
    PROMPT_TOKENS,
    SEEDS,
    Row,
    memory_saved_frac,
)
from mosaic.core.sparse_kv import SparseKv

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ABSOLUTE_LIMIT_FRAC = 0.12
RATIO_LIMIT_FRAC = 0.10
SAVED_AT_TOKENS = 20_000


def table_of(rows: Sequence[Row]) -> list[Sequence[object]]:
    """Give each row as plain values, names first."""
    table: list[Sequence[object]] = []
    for row in rows:
        values = asdict(row) | row.fit._asdict()
        del values["fit"]
        errors = dict(
            zip(("vllm_error_frac", "flexicache_error_frac", "ratio_error_frac"), row.errors_frac, strict=True)
        )
        values |= {"ratio": row.ratio, "published_ratio": row.published_ratio} | errors
        table = table or [list(values)]
        table.append([float(f"{cell:.6g}") if isinstance(cell, float) else cell for cell in values.values()])
    return table


def worst(rows: Sequence[Row]) -> dict[str, float]:
    """Find the largest errors of what is predicted."""
    return {
        "absolute": max(abs(row.errors_frac[1]) for row in rows),
        "ratio": max(abs(row.errors_frac[2]) for row in rows),
    }


def report(rows: Sequence[Row], kv: SparseKv) -> str:
    """Write what was fitted, what was assumed and what came out."""
    low, high = PROMPT_TOKENS
    made = f"""
        Made by `python experiments/flexicache.py throughput --out results/flexicache`. Simulated; no H100 ran. Two
        numbers are fitted, both to the published column of plain vLLM: the share of peak arithmetic in prefill and
        the host's time per step. Nothing is fitted to FlexiCache's column. Assumed, as unpublished: prompts uniform
        on {low:,} to {high:,} tokens ({NUM_REQUESTS} at once, means of {len(SEEDS)} draws), {kv.promoted:g} of
        the best pages promoted at a ranking (the middle of the published range), {HOST_LINK_BYTES_PER_S / 1e9:g}
        GB/s to the host, the share of peak bandwidth in decode attention, and the engine (the authors' fork may run
        vLLM's V0 or V1). Tokens per second count prompts and outputs."""
    saved = f"""
        A decoding sequence keeps all pages of the unstable heads on the GPU, and of the stable ones the budget and
        what is written between rankings. Saved is the rest, as a share of its full KV cache; the host holds it. A
        page's summary (least and largest key) stays for all pages. Published: over {MEMORY_SAVED_FRAC:.0%}; which
        of the two it counts is not said."""
    lines = [
        "# FlexiCache's throughput, Llama-3.1-8B on an H100",
        "",
        *wrapped(made),
        "",
        f"Worst error over all that is assumed: {_verdict(rows)}",
        "",
        "| order | attention | prefill | host, ms | output | vLLM (fitted) | FlexiCache | ratio |",
        f"|{' --- |' * 8}",
        *(_line(row) for row in rows),
        "",
        "`conf/hardware/flexicache_h100.yaml` holds the fit with prefill first and "
        f"{ATTENTION_FRAC:g} of the bandwidth.",
        "",
        f"## KV memory saved at {SAVED_AT_TOKENS:,} tokens",
        "",
        *wrapped(saved),
        "",
        "| budget, tokens | keys and values alone | with the summaries of all pages |",
        "| --- | --- | --- |",
        *(_saved_line(SparseKv(budget_pages=pages)) for pages in (32, 64, 128)),
        "",
    ]
    return "\n".join(lines)


def wrapped(text: str) -> list[str]:
    """Break a paragraph into lines."""
    return textwrap.wrap(" ".join(text.split()), width=120)


def _verdict(rows: Sequence[Row]) -> str:
    found = worst(rows)
    kept = found["absolute"] <= ABSOLUTE_LIMIT_FRAC and found["ratio"] <= RATIO_LIMIT_FRAC
    by_frac = ", ".join(
        f"{frac:g}: {worst([row for row in rows if row.attention_frac == frac])['absolute']:.1%}"
        for frac in ATTENTION_FRACS
    )
    return (
        f"FlexiCache's throughput {found['absolute']:.1%} (limit {ABSOLUTE_LIMIT_FRAC:.0%}; by attention's share "
        f"{by_frac}), the ratio {found['ratio']:.1%} (limit {RATIO_LIMIT_FRAC:.0%}): {'kept' if kept else 'MISSED'}."
    )


def _line(row: Row) -> str:
    vllm, flexicache, ratio = row.errors_frac
    return (
        f"| {row.order} | {row.attention_frac:g} | {row.fit.prefill_frac:.3f} | {1000 * row.fit.host_s:.1f} "
        f"| {row.output_tokens:,} | {row.published_vllm_tok_per_s:,.0f} -> {row.vllm_tok_per_s:,.0f} ({vllm:+.1%}) "
        f"| {row.published_flexicache_tok_per_s:,.0f} -> {row.flexicache_tok_per_s:,.0f} ({flexicache:+.1%}) "
        f"| {row.published_ratio:.2f} -> {row.ratio:.2f} ({ratio:+.1%}) |"
    )


def _saved_line(kv: SparseKv) -> str:
    saved = memory_saved_frac(kv, SAVED_AT_TOKENS)
    return f"| {kv.budget_tokens:,} | " + " | ".join(f"{frac:.1%}" for frac in saved.values()) + " |"


def figure(rows: Sequence[Row]) -> "Figure":
    """Draw the range over all that is assumed."""

    def by_tokens(name: str) -> Mapping[int, list[float]]:
        return {
            tokens: [getattr(row, name) for row in rows if row.output_tokens == tokens]
            for tokens in {row.output_tokens for row in rows}
        }

    def line(name: str, field: str) -> Any:
        published = {tokens: values[0] for tokens, values in by_tokens(f"published_{field}").items()}
        return line_of(name, by_tokens(field), published)

    throughputs = [line("vLLM (fitted)", "vllm_tok_per_s"), line("FlexiCache (predicted)", "flexicache_tok_per_s")]
    return draw_sparse_throughput(throughputs, line("ratio (predicted)", "ratio"))
