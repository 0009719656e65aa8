"""Fits the aggregator's lengths: a mean per benchmark to its wall when it reads every question, and an elasticity."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import brentq

from experiments.config.simulated_execution import even_plan
from experiments.config.wiring import Setup, compose_config, setup_from
from experiments.studies.round_robin_fit import FIT_SEEDS
from mosaic.core.results import CallRecord, RunResult
from mosaic.core.workload import Call
from mosaic.pipelines.gates.gate import Gate, Majority, Never
from mosaic.report.metrics import makespan_s
from mosaic.runtime.second_stage import hand_over
from sim.cluster.preparation import cut_off
from sim.world.answer_model import AnswerModel
from sim.world.world import World

NUM_FIT_SEEDS = {"mmlu_pro": 16, "medmcqa": 16, "gpqa": 32}
LEAST_MEAN, MOST_MEAN_FRAC = 5.0, 0.25
"""Tokens where the aggregator is certain: the bounds of the search, the upper one as a share of the output limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageWorld:
    """One world's second stage, whose calls do not depend on how long the aggregator writes."""

    setup: Setup
    world: World
    every_call: tuple[Call, ...]
    gated_calls: tuple[Call, ...]

    def wall_s(self, calls: Sequence[Call], mean: float, model: AnswerModel) -> float:
        """Simulate the aggregator as one session over four GPUs."""
        result = self.run(calls, mean, model)
        wall_s = makespan_s(result.sessions)
        assert wall_s is not None
        return wall_s

    def run(self, calls: Sequence[Call], mean: float, model: AnswerModel) -> RunResult:
        """Simulate calls with other lengths than the configured ones."""
        stage = self.setup.stage
        assert stage is not None
        expert = stage.aggregator.shaped(4)
        lengths = {expert.name: replace(stage.lengths[expert.name], mean=mean)}  # type: ignore[type-var]
        backend = self.setup.backend(replace(self.world, answers=model, aggregator_lengths=lengths), (expert,))
        return backend.execute(even_plan(calls, expert, self.setup.cluster.num_workers), calls)


def stage_world(workload: str, seed: int, model: AnswerModel) -> StageWorld:
    """Draw the answers of a benchmark's experts and what the gate leaves."""
    setup = setup_from(compose_config([f"workload={workload}", f"seed={seed}", "gate=majority"]))
    setup = replace(setup, answers=replace(setup.answers, model=model))
    stage = setup.stage
    assert stage is not None
    world = setup.world()
    records = drawn_records(setup, world)

    def calls(gate: Gate) -> tuple[Call, ...]:
        assert stage is not None
        return hand_over(setup.workload, records, gate, stage.aggregator, stage.compare).calls

    return StageWorld(setup=setup, world=world.after(records), every_call=calls(Never()), gated_calls=calls(Majority()))


def drawn_records(setup: Setup, world: World) -> list[CallRecord]:
    """Draw what the experts' calls say, without running them: no schedule changes it."""
    pool = {expert.name: expert for expert in setup.experts}
    records = []
    for call in setup.workload.calls:
        job = cut_off(call, pool[call.expert], world.outcome(call))
        records.append(
            CallRecord(
                call.key, call.expert, 0, (0,), call.prompt_tokens, job.output_tokens, 0.0, 0.0, 0.0, 0.0,
                answer=job.answer, visible_tokens=job.visible_tokens,
            )
        )  # fmt: skip
    return records


def fit_mean(worlds: Sequence[StageWorld], model: AnswerModel, always_s: float) -> float:
    """Find the mean at which aggregating every question takes as long as published."""
    stage = worlds[0].setup.stage
    assert stage is not None
    most = MOST_MEAN_FRAC * stage.aggregator.expert.max_output_tokens

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
