"""Fits the aggregator's lengths: a mean per benchmark, to its wall when it reads every question."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import brentq

from experiments.studies.drawn_answers import DrawnAnswers, draw_answers
from mosaic.core.lengths import ClippedLognormal
from mosaic.core.workload import Call
from mosaic.report.metrics import makespan_s
from mosaic.runtime.even_plan import even_plan
from mosaic.runtime.planner import placed
from mosaic.runtime.static_plan import execute

LEAST_MEAN, MOST_MEAN_FRAC = 5.0, 0.4
"""Tokens: the bounds of the search, the upper one as a share of the output limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageWorld:
    """One seed's second stage, whose calls do not depend on how long the aggregator writes."""

    drawn: DrawnAnswers
    calls: tuple[Call, ...]
    """When every question is aggregated."""

    def wall_s(self, mean: float) -> float:
        """Simulate the aggregator as one session over four GPUs, after the experts have been unloaded."""
        calls, site, expert = self.calls, self.drawn.site, placed(self.drawn.aggregator, 4)
        lengths = site.world.aggregator_lengths[expert.name]
        assert isinstance(lengths, ClippedLognormal)
        world = replace(site.world, aggregator_lengths={expert.name: replace(lengths, mean=mean)})
        plan = even_plan(calls, [expert], site, site.cluster.num_workers)
        wall_s = makespan_s(execute(plan, calls, site.backend_in(world, self.drawn.records)).sessions)
        assert wall_s is not None
        return wall_s + site.hardware.unload_s


def stage_world(workload: str, seed: int, overrides: Sequence[str] = ()) -> StageWorld:
    """Draw the answers of a benchmark's experts."""
    drawn = draw_answers([f"workload={workload}", f"seed={seed}", "gate=never", *overrides])
    return StageWorld(drawn=drawn, calls=drawn.aggregator_calls())


def fit_mean(worlds: Sequence[StageWorld], always_s: float) -> float:
    """Find the mean at which aggregating every question takes as long as published."""
    most = MOST_MEAN_FRAC * worlds[0].drawn.aggregator.max_output_tokens

    def error_s(log_mean: float) -> float:
        mean = float(np.exp(log_mean))
        return float(np.mean([world.wall_s(mean) for world in worlds])) - always_s

    return round(float(np.exp(brentq(error_s, np.log(LEAST_MEAN), np.log(most), xtol=2e-3))), 1)
