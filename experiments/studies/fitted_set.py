"""A parameter set with all that follows from it: the other benchmarks' scales, the aggregators' means, predictions."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, NamedTuple

import mosaic
from experiments.studies.aggregator_fit import fit_mean, stage_world
from experiments.studies.paper_runs import BENCHMARKS
from experiments.studies.parameters import ParameterSet
from experiments.studies.published import AGGREGATORS, ALWAYS_AGGREGATE_S, ROUND_ROBIN_WALL_S
from experiments.studies.round_robin_fit import FIT_SEEDS, BaselineSessions, fit_mmlu_pro
from mosaic.config.job import simulated
from mosaic.report.metrics import expert_sessions, makespan_s

NUM_SEEDS_FACTOR = {"mmlu_pro": 1, "medmcqa": 1, "gpqa": 2}
"""GPQA's wall is one session of 429 heavy-tailed calls: it takes twice the luck for the same certainty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedSet:
    """Parameters that match every published number that may be fitted."""

    parameters: ParameterSet
    scales: Mapping[str, tuple[float, ...]]
    """Length scales by benchmark, the committed order's first; the others are of other orders of the experts."""
    merged_means: Mapping[str, float]
    """What the aggregator writes, by benchmark."""

    def overrides(self, workload: str, scale: float | None = None) -> list[str]:
        """Write the set as overrides of a benchmark's runs."""
        merged = (AGGREGATORS[workload], self.merged_means[workload])
        return self.parameters.overrides(self.scales[workload][0] if scale is None else scale, merged)

    def ends(self, workload: str) -> tuple[float, ...]:
        """List the committed order's scale and the ends of all: a makespan grows with the scale."""
        scales = self.scales[workload]
        return tuple(dict.fromkeys((scales[0], min(scales), max(scales))))

    def to_json(self) -> dict[str, Any]:
        """Write the set as plain values."""
        return asdict(self)

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> "FittedSet":
        """Read a set."""
        scales = {name: tuple(found) for name, found in row["scales"].items()}
        return FittedSet(
            parameters=ParameterSet(**row["parameters"]), scales=scales, merged_means=dict(row["merged_means"])
        )


class Walls(NamedTuple):
    """Seconds of the two stages."""

    expert_s: float
    aggregator_s: float
    """After the expert stage, where the gate leaves anything."""


def fit_set(
    start: ParameterSet,
    *,
    num_seeds: int,
    host: str = "cpu_per_kv_token_s",
    glm_is_open: bool = True,
    all_orders: bool = True,
) -> FittedSet:
    """Fit a set to MMLU-Pro's workers, and carry it to the other benchmarks.

    Parameters
    ----------
    start
        What is fixed, and where the search begins.
    num_seeds
        Luck that each fit sees.
    host, glm_is_open
        As for ``fit_mmlu_pro``.
    all_orders
        Whether the scales of all orders of the experts are found, or the committed order's alone.
    """
    seeds = FIT_SEEDS[:num_seeds]
    found = fit_mmlu_pro(BaselineSessions("mmlu_pro", seeds), start, host=host, glm_is_open=glm_is_open)
    scales: dict[str, tuple[float, ...]] = {"mmlu_pro": (1.0,)}
    for workload in BENCHMARKS[1:]:
        first = FIT_SEEDS[0]
        sessions = BaselineSessions(workload, range(first, first + NUM_SEEDS_FACTOR[workload] * num_seeds))
        wall_s = ROUND_ROBIN_WALL_S[workload]
        fits = sessions.fit_scales(found, wall_s).values() if all_orders else [sessions.fit_scale(found, wall_s)]
        scales[workload] = tuple(round(scale, 4) for scale in fits)
    means = {name: fit_merged(name, found, scales[name][0], num_seeds) for name in BENCHMARKS}
    return FittedSet(parameters=found, scales=scales, merged_means=means)


def fit_merged(workload: str, parameters: ParameterSet, scale: float, num_seeds: int) -> float:
    """Fit what a benchmark's aggregator writes to its wall when it reads every question."""
    worlds = [
        stage_world(workload, seed, [*parameters.overrides(scale), *parameters.seeds(seed)])
        for seed in FIT_SEEDS[: max(4, NUM_SEEDS_FACTOR[workload] * num_seeds // 2)]
    ]
    return fit_mean(worlds, ALWAYS_AGGREGATE_S[workload])


def predict(workload: str, policy: Sequence[str], seed: int, fitted: FittedSet, scale: float | None = None) -> Walls:
    """Simulate a policy, both stages, under a set."""
    luck = fitted.parameters.seeds(seed)
    job, _ = simulated([f"workload={workload}", *policy, *fitted.overrides(workload, scale), *luck])
    result = mosaic.run(job).result
    expert_s, whole_s = makespan_s(expert_sessions(result)), makespan_s(result.sessions)
    assert expert_s is not None
    assert whole_s is not None
    return Walls(expert_s, whole_s - expert_s)


def mean_walls(walls: Sequence[Walls]) -> Walls:
    """Average over seeds."""
    return Walls(*(fmean(part) for part in zip(*walls, strict=True)))
