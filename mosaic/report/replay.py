"""How far the times of a replayed request log are from the log's own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mosaic.core.checks import require
from mosaic.core.results import CallRecord, CallStatus
from mosaic.report.metrics import latency_s, latency_summary, quantile, tpot_s, ttft_s


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayError:
    """One metric, simulated and measured, in seconds."""

    simulated_s: float
    measured_s: float

    @property
    def error_frac(self) -> float:
        """Signed error relative to the measurement."""
        return self.simulated_s / self.measured_s - 1


def replay_errors(records: Sequence[CallRecord], measured: Sequence[CallRecord]) -> dict[str, ReplayError]:
    """Compare a replay with the log's own times, metric by metric.

    Latency counts from arrival to last token, TTFT from arrival to first token, TPOT is (last - first) / (n - 1), and
    makespan first arrival to last token.

    Raises
    ------
    ValueError
        If the two do not cover the same calls, or a metric is undefined.
    """
    simulated_keys, measured_keys = {record.key for record in records}, {record.key for record in measured}
    require(simulated_keys == measured_keys, "replay: calls", "those of the log", len(simulated_keys ^ measured_keys))
    simulated, real = replay_metrics(records), replay_metrics(measured)
    return {name: ReplayError(simulated_s=simulated[name], measured_s=real[name]) for name in simulated}


def replay_metrics(records: Sequence[CallRecord]) -> dict[str, float]:
    """Summarise records in seconds; latencies and makespan count from arrival.

    Raises
    ------
    ValueError
        If a metric is undefined.
    """
    summary: Mapping[str, float | None] = latency_summary(records)
    finished = [record for record in records if record.status is CallStatus.FINISHED]
    of_each = {"latency_s": latency_s, "tpot_s": tpot_s, "ttft_s": ttft_s}
    medians = {f"p50_{name}": quantile(map(value, finished), 0.5) for name, value in of_each.items()}
    order = (
        "mean_latency_s", "p50_latency_s", "p99_latency_s", "mean_tpot_s", "p50_tpot_s", "mean_ttft_s", "p50_ttft_s",
    )  # fmt: skip
    metrics: dict[str, float] = {}
    for name in order:
        value = {**summary, **medians}[name]
        if value is None:
            raise ValueError(f"replay: {name} must be defined, got no request that has one")
        metrics[name] = value
    ends = [record.finished_ts for record in records if record.finished_ts is not None]
    metrics["makespan_s"] = max(ends) - min(record.queued_ts for record in records)
    return metrics


def replay_table(errors: Mapping[str, ReplayError]) -> str:
    """Lay the comparison out as text.

    Examples
    --------
    >>> print(replay_table({"mean_ttft_s": ReplayError(simulated_s=1.02, measured_s=1.0)}))
    metric            simulated    measured    error
    mean_ttft_s          1.0200      1.0000    +2.0%
    """
    lines = [f"{'metric':<16} {'simulated':>10}  {'measured':>10}  {'error':>7}"]
    for name, error in errors.items():
        lines.append(
            f"{name:<16} {error.simulated_s:>10.4f}  {error.measured_s:>10.4f}  {100 * error.error_frac:>+6.1f}%"
        )
    return "\n".join(lines)
