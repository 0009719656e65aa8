"""Fits the aggregator's lengths: a mean per benchmark to its wall when it reads every question, and an elasticity."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import brentq

from experiments.studies.drawn_answers import DrawnAnswers, draw_answers
from experiments.studies.round_robin_fit import FIT_SEEDS
from mosaic.core.lengths import ClippedLognormal
from mosaic.core.workload import Call
from mosaic.report.metrics import makespan_s
from mosaic.runtime.measuring import even_plan
from mosaic.runtime.planner import placed
from mosaic.runtime.static_plan import execute
from sim.world.answer_model import AnswerModel

NUM_FIT_SEEDS = {"mmlu_pro": 16, "medmcqa": 16, "gpqa": 32}
LEAST_MEAN, MOST_MEAN_FRAC = 5.0, 0.25
"""Tokens where the aggregator is certain: the bounds of the search, the upper one as a share of the output limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageWorld:
    """One world's second stage, whose calls do not depend on how long the aggregator writes."""

    drawn: DrawnAnswers
    every_call: tuple[Call, ...]
    gated_calls: tuple[Call, ...]

    def wall_s(self, calls: Sequence[Call], mean: float, model: AnswerModel) -> float:
        """Simulate the aggregator as one session over four GPUs, with other lengths than the configured ones."""
        site, expert = self.drawn.site, placed(self.drawn.aggregator, 4)
        lengths = site.world.aggregator_lengths[expert.name]
        assert isinstance(lengths, ClippedLognormal)
        world = replace(site.world, answers=model, aggregator_lengths={expert.name: replace(lengths, mean=mean)})
        plan = even_plan(calls, [expert], site, site.cluster.num_workers)
        wall_s = makespan_s(execute(plan, calls, site.backend_in(world, self.drawn.records)).sessions)
        assert wall_s is not None
        return wall_s


def stage_world(workload: str, seed: int, model: AnswerModel) -> StageWorld:
    """Draw the answers of a benchmark's experts and what the gate leaves."""
    drawn = draw_answers([f"workload={workload}", f"seed={seed}", "gate=majority"], model)
    every_call, gated_calls = (drawn.aggregator_calls(skipping=skipping) for skipping in (False, True))
    return StageWorld(drawn=drawn, every_call=every_call, gated_calls=gated_calls)


def fit_mean(worlds: Sequence[StageWorld], model: AnswerModel, always_s: float) -> float:
    """Find the mean at which aggregating every question takes as long as published."""
    most = MOST_MEAN_FRAC * worlds[0].drawn.aggregator.max_output_tokens

    def error_s(log_mean: float) -> float:
        mean = float(np.exp(log_mean))
        return float(np.mean([world.wall_s(world.every_call, mean, model) for world in worlds])) - always_s

    return float(np.exp(brentq(error_s, np.log(LEAST_MEAN), np.log(most), xtol=2e-3)))


def fit_elasticity(worlds: Sequence[StageWorld], model: AnswerModel, always_s: float, gated_s: float) -> AnswerModel:
    """Find the elasticity at which the gated wall is as long as published, the other wall being fitted."""

    def with_elasticity(elasticity: float) -> AnswerModel:
        return replace(model, aggregator_elasticity=elasticity)

    def error_s(elasticity: float) -> float:
        trial = with_elasticity(elasticity)
        mean = fit_mean(worlds, trial, always_s)
        return float(np.mean([world.wall_s(world.gated_calls, mean, trial) for world in worlds])) - gated_s

    return with_elasticity(round(float(brentq(error_s, 0.0, 4.0, xtol=5e-3)), 3))


def fit_worlds(workload: str, model: AnswerModel) -> list[StageWorld]:
    """Worlds that the fit sees; the reports use others."""
    return [stage_world(workload, seed, model) for seed in FIT_SEEDS[: NUM_FIT_SEEDS[workload]]]
