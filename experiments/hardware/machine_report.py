"""The report of a measured machine: each shape's batch, predicted by the fresh file and measured."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from experiments.hardware.machine_recipe import HOST_SHAPE, Recipe
from experiments.hardware.machine_steps import MeasuredMachine, settings_of
from experiments.hardware.replayed_batch import compare_batch, draw_batch, predict_batch
from experiments.lab.tables import lay_out, markdown
from mosaic.core.cluster import Worker
from mosaic.core.kv_memory import kv_capacity_tokens
from mosaic.core.workload import Expert
from sim.hardware.hardware import Hardware

COLUMNS = {
    "metric": "{metric}",
    "predicted s": "{predicted_s:.4f}",
    "measured s": "{measured_s:.4f}",
    "error": "{error_frac:+.1%}",
    "repeats": "{repeats}",
}


class ShapeReport(NamedTuple):
    """One model's part."""

    facts: str
    """A line on the batch, the fit and the KV cache."""
    rows: Sequence[Mapping[str, Any]]
    """As ``compare_batch`` gives them; empty: the batch was not run."""


def report_shapes(
    recipe: Recipe, experts: Sequence[Expert], measured: MeasuredMachine, hardware: Hardware
) -> dict[str, ShapeReport]:
    """Predict the batch of every shape but the host's, and put it beside what was measured."""
    return {
        expert.name: _report_shape(recipe, expert, measured, hardware)
        for expert in experts
        if expert.name != HOST_SHAPE
    }


def _report_shape(recipe: Recipe, expert: Expert, measured: MeasuredMachine, hardware: Hardware) -> ShapeReport:
    runs, known_tokens = measured.replays[expert.name], measured.engines[expert.name].kv_cache_tokens
    settings = settings_of(recipe, expert, measured.engines[expert.name])
    batch = draw_batch(recipe.batch, recipe.context_tokens)
    errors = hardware.table_for(expert.known_shape, 1).mape
    shown = ", ".join(f"{name.replace('_', ' ')} {100 * error:.1f}%" for name, error in errors.items())
    facts = [f"{len(batch)} requests at once", f"mean error of the fit: {shown}"]
    if recipe.options.kv_cache_memory_bytes is not None:
        facts.append(f"KV cache of {known_tokens} tokens, as given")
    else:
        tokens = kv_capacity_tokens(expert, [Worker(0, hardware.gpu)], settings)
        error = f"{100 * (tokens / known_tokens - 1):+.1f}%"
        facts.append(f"KV cache: {tokens} tokens predicted, {known_tokens} measured ({error})")
    fracs = [run.cpu_frac for run in runs if run.cpu_frac is not None]
    if fracs and recipe.by_cpu:
        frac = f"{100 * fmean(fracs):.0f}%"
        facts.append(f"measured by processor time, which workers had for {frac} of the clock's")
    rows: list[dict[str, Any]] = []
    if runs:
        predicted = predict_batch(expert, measured.cluster, hardware, settings, batch)
        rows = compare_batch(predicted, runs, by_cpu=recipe.by_cpu)
    return ShapeReport("; ".join(facts) + ".", rows)


def report_page(
    name: str, command: str, sources: Mapping[str, str], shapes: Mapping[str, ShapeReport], missing: Sequence[str]
) -> str:
    """Write the page; the screen shows the same. ``missing`` are steps that there was no time for."""
    parts = [f"# Predicted and measured: {name}", f"    {command}"]
    parts.append("\n".join(f"- {part}: {source}" for part, source in sources.items()))
    for shape, (facts, rows) in shapes.items():
        parts += [f"## {shape}", facts, metric_table(rows) if rows else "The batch was not run: nothing is validated."]
    parts.append(
        "`ready_s` is a load with what warms the engine up; all else counts from the start of the batch, whose "
        "requests are there at once. `repeats` is how far a repeat lies from the mean of all."
    )
    if missing:
        parts.append(f"There was no time for {', '.join(missing)}: the same command goes on with them.")
    return "\n\n".join(parts) + "\n"


def metric_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Lay out predicted beside measured.

    Examples
    --------
    >>> row = {"predicted_s": 1.1, "measured_s": 1.0, "error_frac": 0.1, "repeat_frac": 0.1}
    >>> print(metric_table([{"metric": "makespan_s", **row}]))
    | metric | predicted s | measured s | error | repeats |
    | --- | --- | --- | --- | --- |
    | makespan_s | 1.1000 | 1.0000 | +10.0% | 10.0% |
    """
    repeats = ["" if row["repeat_frac"] is None else f"{row['repeat_frac']:.1%}" for row in rows]
    return markdown(lay_out([{**row, "repeats": text} for row, text in zip(rows, repeats, strict=True)], COLUMNS))
