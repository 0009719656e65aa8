"""What a measured machine's file predicts of a batch, beside what the batch took."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from experiments.hardware.replayed_batch import ComparedMetric


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeReport:
    """One model's part."""

    shape: str
    num_requests: int
    metrics: tuple[ComparedMetric, ...]
    """Empty: the batch was not run."""
    cpu_frac: float | None
    """Share of the batch's time for which workers had a processor, and by which it counts; None: by the clock."""
    kv_cache_tokens: int
    predicted_kv_cache_tokens: int | None
    """By the simulator's arithmetic; None: the cache was given its size."""
    fit_errors: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineReport:
    """All of it."""

    name: str
    command: str
    conditions: tuple[str, ...]
    shapes: tuple[ShapeReport, ...]
    missing: tuple[str, ...]
    """Steps that there was no time for."""


def metric_table(metrics: Sequence[ComparedMetric]) -> str:
    """Lay out predicted beside measured.

    Examples
    --------
    >>> print(metric_table([ComparedMetric(name="makespan_s", simulated_s=1.1, measured_s=(0.9, 1.1))]))
    | metric | predicted s | measured s | error | repeats |
    | --- | ---: | ---: | ---: | ---: |
    | makespan_s | 1.1000 | 1.0000 | +10.0% | 10.0% |
    """
    lines = ["| metric | predicted s | measured s | error | repeats |", "| --- | ---: | ---: | ---: | ---: |"]
    for metric in metrics:
        repeats = "" if metric.repeat_frac is None else f"{100 * metric.repeat_frac:.1f}%"
        numbers = f"{metric.simulated_s:.4f} | {metric.mean_s:.4f} | {100 * metric.error_frac:+.1f}%"
        lines.append(f"| {metric.name} | {numbers} | {repeats} |")
    return "\n".join(lines)


def report_markdown(report: MachineReport) -> str:
    """Write the report; the screen shows the same."""
    parts = [f"# Predicted and measured: {report.name}", f"    {report.command}"]
    parts.append("\n".join(f"- {line}" for line in report.conditions))
    for shape in report.shapes:
        parts += [f"## {shape.shape}", _facts(shape)]
        parts.append(metric_table(shape.metrics) if shape.metrics else "The batch was not run: nothing is validated.")
    parts.append(
        "`ready_s` is a load with what warms the engine up; all else counts from the start of the batch, whose "
        "requests are there at once. `repeats` is how far a repeat lies from the mean of all."
    )
    if report.missing:
        parts.append(f"There was no time for {', '.join(report.missing)}: the same command goes on with them.")
    return "\n\n".join(parts) + "\n"


def report_json(report: MachineReport) -> dict[str, Any]:
    """Give the numbers of the report."""
    return {
        "name": report.name,
        "command": report.command,
        "conditions": list(report.conditions),
        "missing": list(report.missing),
        "shapes": {
            shape.shape: {
                "num_requests": shape.num_requests,
                "kv_cache_tokens": shape.kv_cache_tokens,
                "predicted_kv_cache_tokens": shape.predicted_kv_cache_tokens,
                "cpu_frac": shape.cpu_frac,
                "fit_errors": shape.fit_errors,
                "metrics": {
                    metric.name: {
                        "predicted_s": metric.simulated_s,
                        "measured_s": list(metric.measured_s),
                        "error_frac": metric.error_frac,
                    }
                    for metric in shape.metrics
                },
            }
            for shape in report.shapes
        },
    }


def _facts(shape: ShapeReport) -> str:
    facts = [f"{shape.num_requests} requests at once"]
    errors = ", ".join(f"{name.replace('_', ' ')} {100 * error:.1f}%" for name, error in shape.fit_errors.items())
    facts.append(f"mean error of the fit: {errors}")
    if shape.predicted_kv_cache_tokens is None:
        facts.append(f"KV cache of {shape.kv_cache_tokens} tokens, as given")
    else:
        error = shape.predicted_kv_cache_tokens / shape.kv_cache_tokens - 1
        facts.append(
            f"KV cache: {shape.predicted_kv_cache_tokens} tokens predicted, {shape.kv_cache_tokens} measured "
            f"({100 * error:+.1f}%)"
        )
    if shape.cpu_frac is not None:
        facts.append(f"measured by processor time, which workers had for {100 * shape.cpu_frac:.0f}% of the clock's")
    return "; ".join(facts) + "."
