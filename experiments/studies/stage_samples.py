"""Simulates one world's second stage in all the ways that the report compares."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from experiments.config.second_stage_run import run_second_stage
from experiments.config.simulated_execution import SimulatedExecution
from experiments.config.stage_wiring import StageSetup
from experiments.config.wiring import Setup, compose_config, setup_from
from mosaic.runtime.second_stage import SecondStage
from scipy.stats import spearmanr

from mosaic.core.results import CallRecord, RunResult
from mosaic.core.workload import AGGREGATE
from mosaic.pipelines.final_answers import FinalAnswer
from mosaic.pipelines.gates.gate import Ballot, Gate, Majority, Never, Unanimous, plurality
from mosaic.report.metrics import makespan_s
from mosaic.runtime.run import run

CALIBRATION = Path(__file__).resolve().parents[2] / "results" / "calibration"
NUM_TAIL_PARTS = 20
"""The last twentieth of the calls is the tail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSample:
    """One seed of one benchmark; pairs are for tau = 1 and tau = 2/3."""

    round_robin_s: float
    ilp_s: float
    skip_frac: tuple[float, float]
    always_accuracy_frac: float
    change_pp: tuple[float, float]
    change_std_pp: tuple[float, float]
    """Standard deviation of one question's change."""
    bucket_tokens: tuple[float, float, float]
    spearman: float
    always_s: dict[str, float]
    """By aggregator: tp4, dp4, auto."""
    gated_s: dict[str, float]
    plain_gated_s: float
    """tp4 without the elasticity."""
    tail_frac: float
    num_gated_calls: int
    longest_tokens: int


def sample_stage(workload: str, seed: int) -> StageSample:
    """Simulate a seed: two schedulers, three gates, three aggregators."""
    setup = setup_from(compose_config([f"workload={workload}", f"seed={seed}"]))
    stage = setup.stage
    assert stage is not None
    ilp = _expert_stage(setup)
    round_robin = setup_from(compose_config([f"workload={workload}", f"seed={seed}", "scheduler=round_robin"]))
    gates: tuple[Gate, ...] = (Never(), Unanimous(), Majority())
    runs = [_second(setup, replace(stage, gate=gate), ilp) for gate in gates]
    never, majority = runs[0], runs[2]
    losses = [_differences(gated, never) for gated in runs[1:]]
    tokens, agreement = _tokens_by_question(ilp[1], never.handover.ballots)
    return StageSample(
        round_robin_s=_seconds(_expert_stage(round_robin)[1]),
        ilp_s=_seconds(ilp[1]),
        skip_frac=(runs[1].handover.skip_frac, majority.handover.skip_frac),
        always_accuracy_frac=float(np.mean([answer.correct for answer in never.answers])),
        change_pp=(100 * float(np.mean(losses[0])), 100 * float(np.mean(losses[1]))),
        change_std_pp=(100 * float(np.std(losses[0])), 100 * float(np.std(losses[1]))),
        bucket_tokens=_means_by_bucket(tokens, agreement),
        spearman=float(spearmanr(tokens, agreement).statistic),
        always_s=_by_aggregator(setup, stage, Never(), ilp) | {"tp4": _stage_s(never, ilp[1])},
        gated_s=_by_aggregator(setup, stage, Majority(), ilp) | {"tp4": _stage_s(majority, ilp[1])},
        plain_gated_s=_plain_gated_s(setup, stage, workload, ilp),
        tail_frac=_tail_frac(majority),
        num_gated_calls=len(majority.handover.calls),
        longest_tokens=max(record.output_tokens for record in _aggregated(majority)),
    )


def _expert_stage(setup: Setup) -> tuple[Any, RunResult]:
    return run(
        setup.workload,
        experts=setup.experts,
        cluster=setup.cluster,
        profile=setup.profile(),
        costs=setup.costs,
        scheduler=setup.scheduler,
        backend=setup.backend(setup.world()),
    )


def _second(setup: Setup, stage: StageSetup, first: tuple[Any, RunResult]) -> SecondStage:
    plan, proposed = first
    return run_second_stage(setup, stage, SimulatedExecution(setup), plan, proposed)


def _by_aggregator(setup: Setup, stage: StageSetup, gate: Gate, first: tuple[Any, RunResult]) -> dict[str, float]:
    choices = {"dp4": (1,), "auto": (4, 1)}
    return {
        name: _stage_s(
            _second(
                setup,
                replace(stage, gate=gate, aggregator=replace(stage.aggregator, name=name, tp_degrees=degrees)),
                first,
            ),
            first[1],
        )
        for name, degrees in choices.items()
    }


def _plain_gated_s(setup: Setup, stage: StageSetup, workload: str, first: tuple[Any, RunResult]) -> float:
    """Take the elasticity away, with the mean length that matches the published wall without it."""
    fitted = json.loads((CALIBRATION / "answers.json").read_text(encoding="utf-8"))["benchmarks"][workload]
    name = stage.aggregator.expert.name
    lengths = replace(stage.lengths[name], mean=fitted["aggregator_mean_without_elasticity"])  # type: ignore[type-var]
    model = setup.answers.model
    assert model is not None
    plain = replace(setup.answers, model=replace(model, aggregator_elasticity=0.0))
    stage = replace(stage, lengths={name: lengths}, gate=Majority())
    return _stage_s(_second(replace(setup, answers=plain, stage=stage), stage, first), first[1])


def _seconds(result: RunResult) -> float:
    seconds = makespan_s(result.sessions)
    assert seconds is not None
    return seconds


def _stage_s(second: SecondStage, first: RunResult) -> float:
    return _seconds(second.joined) - _seconds(first)


def _differences(gated: SecondStage, never: SecondStage) -> list[int]:
    """What the gate changes, question by question: -1, 0 or 1."""

    def right(answer: FinalAnswer) -> int:
        assert answer.correct is not None
        return int(answer.correct)

    return [right(one) - right(other) for one, other in zip(gated.answers, never.answers, strict=True)]


def _tokens_by_question(first: RunResult, ballots: Sequence[Ballot]) -> tuple[list[float], list[float]]:
    """Mean output tokens of each question's calls, and the share of its slots that agree."""
    tokens: dict[str, list[int]] = {}
    for record in first.calls:
        tokens.setdefault(record.key.question, []).append(record.output_tokens)
    means = [float(np.mean(tokens[ballot.question.id])) for ballot in ballots]
    return means, [max(plurality(ballot).confidence, 1 / len(ballot.votes)) for ballot in ballots]


def _means_by_bucket(tokens: Sequence[float], agreement: Sequence[float]) -> tuple[float, float, float]:
    values, shares = np.array(tokens), np.array(agreement)
    three, two = shares > 0.9, (shares > 0.5) & (shares < 0.9)
    return float(values[three].mean()), float(values[two].mean()), float(values[shares < 0.5].mean())


def _aggregated(second: SecondStage) -> list[CallRecord]:
    return [record for record in second.joined.calls if record.key.node == AGGREGATE]


def _tail_frac(second: SecondStage) -> float:
    """Share of the stage, its load included, in which only the last twentieth of its calls is left."""
    ends = sorted(record.finished_ts for record in _aggregated(second) if record.finished_ts is not None)
    sessions = [session for session in second.joined.sessions if session.node == AGGREGATE]
    start = min(session.load_start_ts for session in sessions)
    return (ends[-1] - ends[len(ends) - 1 - len(ends) // NUM_TAIL_PARTS]) / (ends[-1] - start)
