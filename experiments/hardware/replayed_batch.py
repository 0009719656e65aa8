"""One batch of known lengths, on real engines and on the simulator: what validates a machine's fresh file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import numpy as np
from msgspec.structs import replace

from experiments.hardware.sweep import WARM_UP, Batch, MakeBackend, is_undisturbed, ready_s, round_of
from mosaic.core.checks import AtLeast1, checked, require
from mosaic.core.cluster import Cluster
from mosaic.core.engine_options import EngineOptions
from mosaic.core.errors import BackendError
from mosaic.core.results import CallRecord, CallStatus, RunResult
from mosaic.core.workload import Expert
from mosaic.figures.replay import replay_metrics
from mosaic.runtime.static_plan import execute
from sim.cluster.backend import SimBackend
from sim.hardware.hardware import Hardware

SPREAD = 0.8
"""Standard deviation of the logarithm of lengths: the longest tenth has three times the median."""


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("batch: ")
class BatchSize:
    """Lengths of a batch."""

    num_requests: AtLeast1
    prompt_tokens: AtLeast1
    """Mean."""
    output_tokens: AtLeast1
    """Mean."""


def draw_batch(size: BatchSize, context_tokens: int, seed: int = 0) -> Batch:
    """Draw lengths, lognormal; a prompt has half of the context at most, and the response what is left."""
    rng = np.random.default_rng(seed)
    draws = rng.lognormal(-(SPREAD**2) / 2, SPREAD, (size.num_requests, 2))
    prompts = np.clip(np.round(size.prompt_tokens * draws[:, 0]), 1, context_tokens // 2).astype(int)
    outputs = np.clip(np.round(size.output_tokens * draws[:, 1]), 1, context_tokens // 2 - 1).astype(int)
    return tuple(zip(prompts.tolist(), outputs.tolist(), strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRun:
    """What a batch took; instants are seconds since its session began."""

    records: tuple[CallRecord, ...]
    ready_s: float
    """From the start of the load until the engine was warm; the median of the workers."""
    cpu_frac: float | None
    """Share of the batch's time for which the workers had a processor; None: not known."""

    def metrics(self, share: float = 1.0) -> dict[str, float]:
        """Summarise all workers together, each of which served the batch; ``share`` multiplies what serving took."""
        served = {name: share * seconds for name, seconds in replay_metrics(self.records).items()}
        return {"ready_s": self.ready_s, **served}


def run_batch(expert: Expert, cluster: Cluster, make_backend: MakeBackend, batch: Batch, run: str) -> BatchRun:
    """Serve the batch on every worker at once, by an engine that was loaded and warmed up for it.

    Raises
    ------
    BackendError
        If a call failed, or the run was disturbed.
    """
    content = round_of(expert, cluster.num_workers, [batch], 0, run)
    result = execute(content.plan, content.calls, make_backend(content.outcome, run))
    if not is_undisturbed(result, by_cpu=False):
        raise BackendError("replayed batch: a session was interrupted, so that no time can be taken")
    return _of_batch(result, content.batches)


def predict_batch(
    expert: Expert, cluster: Cluster, hardware: Hardware, settings: EngineOptions, batch: Batch
) -> BatchRun:
    """Serve it on the simulator, on engines that schedule like the real ones."""
    return run_batch(
        expert,
        cluster,
        lambda outcomes, name: SimBackend(
            experts=[expert],
            cluster=cluster,
            hardware={cluster.workers[0].gpu.name: hardware},
            settings=settings,
            outcomes=outcomes,
        ),
        batch,
        "predicted",
    )


def _of_batch(result: RunResult, batches: Mapping[int, Batch]) -> BatchRun:
    sessions = {session.session: session for session in result.sessions if batches[session.session] != WARM_UP}
    records = []
    for record in result.calls:
        if record.session not in sessions:
            continue
        start_ts = sessions[record.session].start_ts
        if record.status is not CallStatus.FINISHED or record.first_token_ts is None or record.finished_ts is None:
            raise BackendError(f"replayed batch: every call must finish, {record.key} did not")
        records.append(
            replace(
                record,
                queued_ts=0.0,
                admitted_ts=None if record.admitted_ts is None else record.admitted_ts - start_ts,
                first_token_ts=record.first_token_ts - start_ts,
                finished_ts=record.finished_ts - start_ts,
                response=None,
            )
        )
    served_s = sum(session.end_ts - session.start_ts for session in sessions.values())
    known = [session.cpu_s for session in sessions.values() if session.cpu_s is not None]
    return BatchRun(
        records=tuple(records),
        ready_s=median(ready_s(result, batches)),
        cpu_frac=sum(known) / served_s if len(known) == len(sessions) else None,
    )


def compare_batch(predicted: BatchRun, measured: Sequence[BatchRun], *, by_cpu: bool) -> list[dict[str, Any]]:
    """Compare every metric of a predicted batch with the mean of the measured ones, one row per metric.

    ``by_cpu``: if workers are cores a batch counts by processor time, divided in proportion to the clock, like the data
    of the fit. Otherwise it counts by the clock. ``repeat_frac`` is the largest distance of a repeat from the mean of
    all; smaller errors have no meaning. None: only one run.
    """
    require(len(measured) > 0, "replayed batch: measured runs", "at least one", 0)
    real = [run.metrics(run.cpu_frac if by_cpu and run.cpu_frac is not None else 1.0) for run in measured]
    rows = []
    for name, predicted_s in predicted.metrics().items():
        mean_s = fmean(each[name] for each in real)
        repeat_frac = max(abs(each[name] / mean_s - 1) for each in real) if len(real) > 1 else None
        error_frac = predicted_s / mean_s - 1
        seconds = {"predicted_s": predicted_s, "measured_s": mean_s}
        rows.append({"metric": name, **seconds, "error_frac": error_frac, "repeat_frac": repeat_frac})
    return rows
