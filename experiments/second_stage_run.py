"""The second stage of a simulated run: its world and profile, and what aggregating every question would give."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeAlias

from experiments.stage_wiring import StageSetup
from experiments.wiring import Setup
from mosaic.aggregator_sweep import aggregator_places, sweep_aggregator
from mosaic.calibrated_gate import Calibrated
from mosaic.calibration_answers import encode_calibration_answers, grade_ballots
from mosaic.final_answers import accuracy_frac, final_answers
from mosaic.gate import Never
from mosaic.metrics import StageSummary, makespan_s
from mosaic.plan import Plan, unpriced_plan
from mosaic.profiles import Profile, load_profile
from mosaic.results import RunResult
from mosaic.schedulers.shards import replica_sessions, split_evenly
from mosaic.second_stage import SecondStage, aggregate, answers_of, hand_over
from mosaic.workload import Call, Expert
from sim.world import World

Step: TypeAlias = Callable[[str], AbstractContextManager[None]]
"""Times a step of a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlwaysAggregate:
    """What the same world gives when every question is aggregated; known to a simulation only."""

    aggregator_s: float
    accuracy_frac: float | None


def run_second_stage(
    setup: Setup, stage: StageSetup, world: World, plan: Plan, first: RunResult, step: Step = lambda name: nullcontext()
) -> SecondStage:
    """Gate the answers of the first stage and aggregate what is left, in the world that reads these answers."""
    return aggregate(
        setup.workload,
        first,
        gate=stage.gate,
        aggregator=stage.aggregator,
        pool=setup.experts,
        cluster=setup.cluster,
        costs=setup.costs,
        scheduler=setup.scheduler,
        profile=lambda: aggregator_profile(setup, stage, plan),
        backend=lambda expert: setup.backend(world, (expert,)),
        compare=stage.compare,
        step=step,
    )


def always_aggregate(
    setup: Setup, stage: StageSetup, world: World, first: RunResult, second: SecondStage
) -> AlwaysAggregate:
    """Tell what aggregating every question in the same world gives: one session over the GPUs, or a replica on each.

    A gate that never skips has done so already.
    """
    if isinstance(stage.gate, Never):
        stage_s = (makespan_s(second.joined.sessions) or 0.0) - (makespan_s(first.sessions) or 0.0)
        return AlwaysAggregate(aggregator_s=stage_s, accuracy_frac=accuracy_frac(second.answers))
    expert = second.planned.expert if second.planned else stage.aggregator.shaped(stage.aggregator.tp_degrees[0])
    everything = hand_over(setup.workload, first.calls, Never(), stage.aggregator, stage.compare)
    plan = even_plan(everything.calls, expert, setup.cluster.num_workers)
    result = setup.backend(world, (expert,)).execute(plan, everything.calls)
    finals = final_answers(everything.ballots, everything.decisions, answers_of(result), stage.compare)
    return AlwaysAggregate(aggregator_s=makespan_s(result.sessions) or 0.0, accuracy_frac=accuracy_frac(finals))


def aggregator_profile(setup: Setup, stage: StageSetup, plan: Plan) -> Profile:
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
        source=f"simulated aggregator of {setup.workload.name} after gate={stage.gate.name} on "
        f"{setup.hardware.gpu.name}, seed {setup.profile_seed}",
        entries=tuple(
            sweep_aggregator(expert, calls, setup.cluster, setup.backend(read, (expert,))) for expert in experts
        ),
    )


def even_plan(calls: Sequence[Call], expert: Expert, num_workers: int) -> Plan:
    """Spread calls evenly over as many replicas as the expert may have, by no price."""
    places = aggregator_places(expert, num_workers)
    sessions = replica_sessions(calls, places, split_evenly(len(calls), len(places)), first_id=0) if calls else ()
    return unpriced_plan(sessions, num_workers=num_workers)


def summarise_stage(setup: Setup, stage: StageSetup, second: SecondStage, always: AlwaysAggregate) -> StageSummary:
    """What summary.json says of the stage."""
    model, planned = setup.answers.model, second.planned
    return StageSummary(
        aggregator=stage.aggregator.name,
        aggregator_expert=stage.aggregator.expert.name,
        aggregator_tp_degree=planned.expert.tp_degree if planned else None,
        num_aggregator_calls=len(second.handover.calls),
        num_too_long=second.handover.num_too_long,
        aggregator_costs=planned.plan.costs if planned else None,
        predicted_aggregator_s=planned.plan.predicted_makespan_s if planned else 0.0,
        skip_frac=second.handover.skip_frac,
        skip_frac_source=model.source if model else "assumed",
        accuracy_frac=accuracy_frac(second.answers),
        always_aggregate_s=always.aggregator_s,
        always_aggregate_accuracy_frac=always.accuracy_frac,
        gate_report=stage.gate.report() if isinstance(stage.gate, Calibrated) else None,
    )


def calibration_file(stage: StageSetup, second: SecondStage) -> dict[str, bytes]:
    """Encode the graded answers of a run that skipped nothing, where gold is known: what gates are calibrated on."""
    if not isinstance(stage.gate, Never):
        return {}
    graded = grade_ballots(second.handover.ballots, second.aggregated, stage.compare)
    return {"calibration_answers.parquet": encode_calibration_answers(graded)} if graded else {}
