"""The report and the figure of prefill ahead of time, from the files that its runs have left."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from experiments.figures.prefill_ahead import Curve, draw_prefill_ahead
from experiments.studies.read_ahead_real import NUM_TEXTS, SHAPES
from experiments.studies.read_ahead_runs import AHEAD, AHEAD_SHORTEST, CHUNKED, MAX_TEXT_TOKENS, TWO_ENGINES, Scene
from experiments.studies.read_ahead_study import (
    LOAD_OUTPUT_TOKENS,
    LOAD_QUESTIONS,
    MORE_SEEDS,
    SEEDS,
    BatchRow,
    LayerRow,
    LoadRow,
)
from experiments.studies.rows import read_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PUBLISHED_FRAC, TOLERANCE_FRAC = 0.274, 0.05
"""Faster-MoA's largest saving from incremental prefill; its output length and fan-in are not published."""
PUBLISHED_OTHER_FRAC = 0.10
"""About, from chunked prefill or data parallelism."""
MOST_REAL_FRAC = 0.25


def report_of(folder: Path) -> str:
    """Write what was found; a part that was not run is left out."""
    layers = read_rows(folder / "layer.csv", LayerRow)
    loads, batches = read_rows(folder / "load.csv", LoadRow), read_rows(folder / "batch.csv", BatchRow)
    real = json.loads((folder / "real.json").read_text()) if (folder / "real.json").is_file() else []
    parts = [*_head(layers, real)]
    parts += [*_layer_part(layers)] if layers else []
    parts += [*_load_part(loads)] if loads else []
    parts += [*_batch_part(batches)] if batches else []
    parts += [*_real_part(real)] if real else []
    return "\n".join(parts) + "\n"


def _head(layers: Sequence[LayerRow], real: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "# Prefill ahead of time"
    yield ""
    yield "Made by `python experiments/prefill_ahead.py simulate --out results/prefill_ahead` and `... real --out ...`."
    if layers:
        most = max(_of(layers, AHEAD.name), key=lambda row: row.saved_frac)
        hit = "within" if abs(most.saved_frac - PUBLISHED_FRAC) <= TOLERANCE_FRAC else "a MISS, outside of"
        yield ""
        yield (
            f"- The most that is saved of one layer is {_percent(most)}, with fixed_tokens = {most.output_tokens}, "
            f"{most.fan_in} texts a call and {most.num_readers} calls on the engine: {hit} the published "
            f"{PUBLISHED_FRAC:.1%} +- 5 points. That is the edge of the sweep: fewer output tokens would save more."
        )
        other = max((row for row in layers if row.method in (CHUNKED.name, TWO_ENGINES.name)), key=_saved)
        chunked = max((row for row in layers if row.method == CHUNKED.name), key=_saved)
        yield (
            f"- Published beside it: about {PUBLISHED_OTHER_FRAC:.0%} from chunked prefill or data parallelism. Here "
            f"chunked prefill saves {chunked.saved_frac:.1%} at best, and a second GPU {other.saved_frac:.1%}, which "
            "is more than published: MISS on both."
        )
    if real:
        worst = max(ratio for _, ratio in _ratios(real))
        said = "all at most a quarter" if worst <= MOST_REAL_FRAC else "a MISS: not all are at most a quarter"
        yield f"- Real vLLM, first token after overlap against cold: {_real_ratios(real)}: {said}."


def _real_ratios(real: Sequence[dict[str, Any]]) -> str:
    return ", ".join(f"{ratio:.2f} of it at {size:,} tokens" for size, ratio in _ratios(real))


def _layer_part(layers: Sequence[LayerRow]) -> Iterator[str]:
    yield from (
        "",
        "## One layer alone",
        "",
        f"Simulated. Texts of 1 to {MAX_TEXT_TOKENS:,} tokens, uniform, each written on a GPU of its own, one question "
        "at a time; calls of Llama-3-8B on one A100 read them and write `fixed_tokens`. The time of a call is from the "
        "end of the last text that it reads to its own end; saved is against whole prompts (vLLM V0) on one engine. "
        f"Means over {len(SEEDS)} seeds of {Scene().num_questions} questions, 95% intervals. `order knows nothing`: "
        "texts are read in the order of their slots, as Faster-MoA reads them. `shortest first`: as if lengths were "
        "predicted exactly, the most that any prediction could give. Not published, and so assumed: the output length, "
        "how many texts a call reads, and how many calls an engine serves; hence the sweep. Prompts of one engine "
        "share nothing.",
    )
    places = dict.fromkeys((row.fan_in, row.num_readers) for row in layers)
    for fan_in, num_readers in places:
        mine = [row for row in layers if (row.fan_in, row.num_readers) == (fan_in, num_readers)]
        methods = list(dict.fromkeys(row.method for row in mine))
        yield from ("", f"{fan_in} texts a call, {num_readers} call{'s' * (num_readers > 1)} on the engine:", "")
        yield f"| fixed_tokens | {' | '.join(methods)} |"
        yield f"| --- |{' --- |' * len(methods)}"
        for tokens in dict.fromkeys(row.output_tokens for row in mine):
            cells = [
                _percent(row)
                for method in methods
                for row in mine
                if (row.output_tokens, row.method) == (tokens, method)
            ]
            yield f"| {tokens} | {' | '.join(cells)} |"
    inside = [row for row in _of(layers, AHEAD.name) if abs(row.saved_frac - PUBLISHED_FRAC) <= TOLERANCE_FRAC]
    named = [f"{row.fan_in} texts and {row.num_readers} calls at {row.output_tokens} tokens" for row in inside]
    yield from ("", f"Within 5 points of the published maximum: {'; '.join(named) or 'none'}.")


def _load_part(loads: Sequence[LoadRow]) -> Iterator[str]:
    yield from (
        "",
        "## Where it pays, and where it only moves work",
        "",
        f"Simulated: {LOAD_QUESTIONS} questions, three texts, {LOAD_OUTPUT_TOKENS} output tokens, chunked prefill, "
        "with prefill ahead against without. Negative is faster. `alone`: one question is over before the next comes; "
        f"`batch`: all come at once. Means over {len(MORE_SEEDS)} seeds, 95% intervals; so in the next table.",
    )
    metrics = list(dict.fromkeys(row.metric for row in loads))
    for shares_engine in (False, True):
        where = "shares the engine of a writer" if shares_engine else "has a GPU of its own"
        yield from ("", f"The reader {where}:", "", f"| questions/s | {' | '.join(metrics)} |")
        yield f"| --- |{' --- |' * len(metrics)}"
        for per_s in dict.fromkeys(row.per_s for row in loads):
            mine = [row for row in loads if (row.shares_engine, row.per_s) == (shares_engine, per_s)]
            cells = [_change(row.change_frac, row.low_frac, row.high_frac) for row in mine]
            yield f"| {name_of_rate(per_s)} | {' | '.join(cells)} |"


def _batch_part(batches: Sequence[BatchRow]) -> Iterator[str]:
    yield from (
        "",
        "Whole batches: GPQA, the hybrid pool on four A100s, `pipeline.overlap=true`, with experts loaded in turn:",
        "",
        "| gate | seconds without | end to end | first token of an aggregation | tokens ahead | of them used |",
        "| --- | --- | --- | --- | --- | --- |",
    )
    for row in batches:
        first = row.first_token_change_frac, row.first_token_low_frac, row.first_token_high_frac
        changes = _change(row.change_frac, row.low_frac, row.high_frac), _change(*first)
        used = row.reused_tokens / row.computed_tokens if row.computed_tokens else 0.0
        yield f"| {row.gate} | {row.without_s:,.0f} | {' | '.join(changes)} | {row.computed_tokens:,.0f} | {used:.0%} |"


def _real_part(real: Sequence[dict[str, Any]]) -> Iterator[str]:
    reader = SHAPES["reader"]
    yield from (
        "",
        "## Real vLLM",
        "",
        f"Two cores, a Llama with random weights ({reader['num_layers']} layers of {reader['hidden_size']}) reads "
        f"{NUM_TEXTS} texts of about equal length that another expert writes one after the other. Every second "
        "question is prefilled ahead, and the one before it is not: medians, and the range of the pairs' ratios. The "
        "time is from the end of the last text to the first token. Other work shared the cores.",
        "",
        "| prompt tokens | pairs | cold, ms | after overlap, ms | ratio of medians | range of ratios | cached tokens | "
        "prefill work, ahead and after, against cold |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    )
    for size, ratio in _ratios(real):
        mine = [pair for pair in real if pair["prompt_tokens"] == size]
        each = [pair["ahead_s"] / pair["cold_s"] for pair in mine]
        cold, ahead = (1000 * median(pair[key] for pair in mine) for key in ("cold_s", "ahead_s"))
        work = median((pair["prefilled_tokens"] + size - pair["cached_tokens"]) / size for pair in mine)
        cached = median(pair["cached_tokens"] for pair in mine)
        yield (
            f"| {size:,} | {len(mine)} | {cold:,.0f} | {ahead:,.0f} | {ratio:.2f} | {min(each):.2f} to {max(each):.2f} "
            f"| {cached:,.0f} | x {work:.2f} |"
        )


def _ratios(real: Sequence[dict[str, Any]]) -> Iterator[tuple[int, float]]:
    """Give the ratio of medians by prompt length."""
    for size in sorted({pair["prompt_tokens"] for pair in real}):
        mine = [pair for pair in real if pair["prompt_tokens"] == size]
        yield size, median(pair["ahead_s"] for pair in mine) / median(pair["cold_s"] for pair in mine)


def _of(layers: Sequence[LayerRow], method: str) -> list[LayerRow]:
    return [row for row in layers if row.method == method]


def _saved(row: LayerRow) -> float:
    return row.saved_frac


def _percent(row: LayerRow) -> str:
    return f"{row.saved_frac:.1%} ({row.low_frac:.1%} to {row.high_frac:.1%})"


def _change(mean: float, low: float, high: float) -> str:
    return f"{mean:+.1%} ({low:+.1%} to {high:+.1%})"


def name_of_rate(per_s: float) -> str:
    """Name a rate of arrivals."""
    return "alone" if per_s == 0 else "batch" if per_s == float("inf") else f"{per_s:g}"


def figure_of(folder: Path) -> "Figure | None":
    """Draw one layer alone beside what a load changes; None: they were not simulated."""
    layers, loads = read_rows(folder / "layer.csv", LayerRow), read_rows(folder / "load.csv", LoadRow)
    if not layers or not loads:
        return None
    curves = []
    for fan_in, num_readers in dict.fromkeys((row.fan_in, row.num_readers) for row in layers):
        name = f"{fan_in} texts, {num_readers} call{'s' * (num_readers > 1)}"
        for method in (AHEAD.name, AHEAD_SHORTEST.name):
            mine = [row for row in _of(layers, method) if (row.fan_in, row.num_readers) == (fan_in, num_readers)]
            columns = _columns(mine, lambda row: row.output_tokens)
            curves.append(Curve(name, method == AHEAD_SHORTEST.name, *columns))
    rates = list(dict.fromkeys(row.per_s for row in loads))
    changes = []
    for metric in ("first token of the reader", "question", "makespan"):
        for shares_engine in (False, True):
            found = [row for row in loads if (row.metric, row.shares_engine) == (metric, shares_engine)]
            columns = _columns(found, lambda row: rates.index(row.per_s))
            changes.append(Curve(metric, shares_engine, *columns))
    band = PUBLISHED_FRAC - TOLERANCE_FRAC, PUBLISHED_FRAC + TOLERANCE_FRAC
    return draw_prefill_ahead(curves, band, changes, [name_of_rate(rate) for rate in rates])


def _columns(
    rows: Sequence[Any], x: Callable[[Any], float]
) -> tuple[list[float], list[float], list[float], list[float]]:
    """Give x, mean and interval, as percentages."""
    means = [100 * (row.saved_frac if isinstance(row, LayerRow) else row.change_frac) for row in rows]
    return [x(row) for row in rows], means, [100 * row.low_frac for row in rows], [100 * row.high_frac for row in rows]
