"""Runs the second stage of a simulated run: gate, profile, plan, execute; and what aggregating everything gives."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeAlias

from experiments.stage_wiring import SecondStage
from experiments.wiring import Setup
from mosaic.aggregator_sweep import aggregator_places, sweep_aggregator
from mosaic.calibrated_gate import Calibrated
from mosaic.calibration_answers import CalibrationQuestion, encode_calibration_answers, grade_ballot
from mosaic.final_answers import FinalAnswer, accuracy_frac, final_answers
from mosaic.gate import Never
from mosaic.metrics import StageSummary, makespan_s
from mosaic.plan import Plan, unpriced_plan
from mosaic.profiles import Profile, load_profile
from mosaic.progress import show_progress
from mosaic.results import CallStatus, RunResult
from mosaic.schedulers.shards import replica_sessions, split_evenly
from mosaic.second_stage import AggregatorPlan, Handover, hand_over, join_stages, plan_aggregator
from mosaic.workload import Call, Expert
from sim.world import World

Step: TypeAlias = Callable[[str], AbstractContextManager[None]]
"""Times a step of a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlwaysAggregate:
    """What the same world gives when every question is aggregated; known to a simulation only."""

    aggregator_s: float
    accuracy_frac: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondRun:
    """The second stage of a run."""

    handover: Handover
    planned: AggregatorPlan | None
    """None: no question was left to aggregate."""
    joined: RunResult
    """Both stages on one clock."""
    answers: tuple[FinalAnswer, ...]
    always: AlwaysAggregate
    calibration: tuple[CalibrationQuestion, ...]
    """Graded answers, where the gate skipped nothing: what the gates that learn are calibrated on."""

    def summary(self, setup: Setup) -> StageSummary:
        """What summary.json says of the stage."""
        assert setup.stage is not None
        aggregator, gate = setup.stage.aggregator, setup.stage.gate
        model = setup.answers.model
        return StageSummary(
            aggregator=aggregator.name,
            aggregator_expert=aggregator.expert.name,
            aggregator_tp_degree=self.planned.expert.tp_degree if self.planned else None,
            num_aggregator_calls=len(self.handover.calls),
            predicted_aggregator_s=self.planned.plan.predicted_makespan_s if self.planned else 0.0,
            skip_frac=self.handover.skip_frac,
            skip_frac_source=model.source if model else "assumed",
            accuracy_frac=accuracy_frac(self.answers),
            always_aggregate_s=self.always.aggregator_s,
            always_aggregate_accuracy_frac=self.always.accuracy_frac,
            gate_report=gate.report() if isinstance(gate, Calibrated) else None,
        )

    def files(self) -> dict[str, bytes]:
        """What the stage leaves beside the tables of every run."""
        if not self.calibration:
            return {}
        return {"calibration_answers.parquet": encode_calibration_answers(self.calibration)}


def run_second_stage(setup: Setup, stage: SecondStage, plan: Plan, first: RunResult, step: Step) -> SecondRun:
    """Gate the answers of the first stage and aggregate what is left."""
    with step("gate"):
        handover = hand_over(setup.workload, first.calls, stage.gate, stage.aggregator, stage.compare)
    world = setup.world().after(first.calls)
    planned, second = None, RunResult(calls=(), sessions=(), num_workers=first.num_workers)
    if handover.calls:
        with step("profile_aggregator"):
            profile = aggregator_profile(setup, stage, plan)
        with step("plan_aggregator"):
            planned = plan_aggregator(
                handover.calls,
                stage.aggregator,
                pool=setup.experts,
                cluster=setup.cluster,
                profile=profile,
                costs=setup.costs,
                scheduler=setup.scheduler,
            )
        with step("aggregate"), show_progress(len(handover.calls)) as listener:
            backend = setup.backend(world, (planned.expert,))
            second = backend.execute(planned.plan, handover.calls, listener)
    with step("always_aggregate"):
        always = always_aggregate(setup, stage, world, first, planned.expert if planned else None)
    return SecondRun(
        handover=handover,
        planned=planned,
        joined=join_stages(first, second),
        answers=_final_answers(handover, second, stage),
        always=always,
        calibration=_graded(handover, second, stage) if isinstance(stage.gate, Never) else (),
    )


def aggregator_profile(setup: Setup, stage: SecondStage, plan: Plan) -> Profile:
    """Read the aggregator's profile, or measure it on what calibration questions leave to the aggregator.

    The calibration questions are the batch's own with other luck: they run through the expert stage's plan and the
    gate, so that the lengths which the gate selects for are those that are measured.
    """
    if setup.aggregator_profile_path is not None:
        return load_profile(setup.aggregator_profile_path)
    world = setup.calibration_world()
    records = setup.backend(world).execute(plan, setup.workload.calls).calls
    calls = hand_over(setup.workload, records, stage.gate, stage.aggregator, stage.compare).calls
    # NOTE: a gate that lets nothing through here has no typical call; then all questions stand in.
    calls = calls or hand_over(setup.workload, records, Never(), stage.aggregator, stage.compare).calls
    experts = [stage.aggregator.shaped(degree) for degree in stage.aggregator.tp_degrees]
    read = world.after(records)
    return Profile(
        source=f"simulated aggregator of {setup.workload.name} on {setup.hardware.gpu.name}, seed {setup.profile_seed}",
        entries=tuple(
            sweep_aggregator(expert, calls, setup.cluster, setup.backend(read, (expert,))) for expert in experts
        ),
    )


def always_aggregate(
    setup: Setup, stage: SecondStage, world: World, first: RunResult, expert: Expert | None
) -> AlwaysAggregate:
    """Aggregate every question in the same world: one session over the GPUs, or a replica on each."""
    everything = hand_over(setup.workload, first.calls, Never(), stage.aggregator, stage.compare)
    expert = expert or stage.aggregator.shaped(stage.aggregator.tp_degrees[0])
    backend = setup.backend(world, (expert,))
    result = backend.execute(even_plan(everything.calls, expert, setup.cluster.num_workers), everything.calls)
    return AlwaysAggregate(
        aggregator_s=makespan_s(result.sessions) or 0.0,
        accuracy_frac=accuracy_frac(_final_answers(everything, result, stage)),
    )


def even_plan(calls: Sequence[Call], expert: Expert, num_workers: int) -> Plan:
    """Spread calls evenly over as many replicas as the expert may have, by no price."""
    places = aggregator_places(expert, num_workers)
    sessions = replica_sessions(calls, places, split_evenly(len(calls), len(places)), first_id=0) if calls else ()
    return unpriced_plan(sessions, num_workers=num_workers)


def _final_answers(handover: Handover, second: RunResult, stage: SecondStage) -> tuple[FinalAnswer, ...]:
    return final_answers(handover.ballots, handover.decisions, _aggregated(second), stage.compare)


def _graded(handover: Handover, second: RunResult, stage: SecondStage) -> tuple[CalibrationQuestion, ...]:
    """Grade the questions that the aggregator answered and whose gold answer is known."""
    aggregated = _aggregated(second)
    graded = []
    for ballot in handover.ballots:
        same = stage.compare[ballot.question.answer_kind]
        if ballot.question.id in aggregated and ballot.question.answer is not None and same is not None:
            graded.append(grade_ballot(ballot, aggregated[ballot.question.id], same))
    return tuple(graded)


def _aggregated(second: RunResult) -> dict[str, str | None]:
    """The aggregator's answers by question."""
    return {record.key.question: record.answer for record in second.calls if record.status is CallStatus.FINISHED}
