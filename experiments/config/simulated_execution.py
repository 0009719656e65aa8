"""The simulator as the place where a run's plans are executed, in the world of the run's seed."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from experiments.config.execution import AlwaysAggregate, WatchedBackend, already_aggregated
from experiments.config.stage_wiring import StageSetup
from experiments.config.wiring import Setup
from mosaic.core.plan import Plan, unpriced_plan
from mosaic.core.results import CallRecord, Listener, RunResult
from mosaic.core.workload import Call, Expert, Workload
from mosaic.pipelines.final_answers import accuracy_frac, final_answers
from mosaic.pipelines.gates.gate import Never
from mosaic.planning.profiles import Profile, load_profile
from mosaic.planning.schedulers.shards import replica_sessions, split_evenly
from mosaic.report.metrics import makespan_s
from mosaic.report.progress import show_progress
from mosaic.runtime.aggregator_sweep import aggregator_places, sweep_aggregator
from mosaic.runtime.backend import Backend
from mosaic.runtime.second_stage import SecondStage, answers_of, hand_over
from sim.world.world import World


@dataclass(frozen=True, slots=True)
class SimulatedExecution:
    """Runs the stages of one run in simulated time."""

    setup: Setup

    def profile(self) -> Profile:
        """Read the profile, or sweep the calibration world."""
        return self.setup.profile()

    def experts(self) -> Backend:
        """Give the backend of the expert stage."""
        return WatchedBackend(self.setup.backend(self.setup.world()), _watch)

    def aggregator_profile(self, stage: StageSetup, plan: Plan) -> Profile:
        """Read the aggregator's profile, or measure it on what calibration questions leave to the aggregator."""
        setup = self.setup
        if setup.aggregator_profile_path is not None:
            return load_profile(setup.aggregator_profile_path)
        calls, read = calibration_calls(setup, stage, plan)
        experts = [stage.aggregator.shaped(degree) for degree in stage.aggregator.tp_degrees]
        return Profile(
            source=f"simulated aggregator of {setup.workload.name} after gate={stage.gate.name} on "
            f"{setup.hardware.gpu.name}, seed {setup.profile_seed}",
            entries=tuple(
                sweep_aggregator(expert, calls, setup.cluster, setup.backend(read, (expert,))) for expert in experts
            ),
        )

    def aggregator(self, stage: StageSetup, first: RunResult) -> Callable[[Expert], Backend]:
        """Give what makes the second stage's backend, in the world that reads the first stage's answers."""
        world = self.setup.world().after(first.calls)
        return lambda expert: self.setup.backend(world, (expert,))

    def always_aggregate(self, stage: StageSetup, first: RunResult, second: SecondStage) -> AlwaysAggregate:
        """Aggregate every question in the same world: one session over the GPUs, or a replica on each.

        A gate that never skips has done so already.
        """
        setup = self.setup
        if isinstance(stage.gate, Never):
            return already_aggregated(first, second)
        expert = second.planned.expert if second.planned else stage.aggregator.shaped(stage.aggregator.tp_degrees[0])
        everything = hand_over(setup.workload, first.calls, Never(), stage.aggregator, stage.compare)
        plan = even_plan(everything.calls, expert, setup.cluster.num_workers)
        result = self.aggregator(stage, first)(expert).execute(plan, everything.calls)
        finals = final_answers(everything.ballots, everything.decisions, answers_of(result), stage.compare)
        return AlwaysAggregate(aggregator_s=makespan_s(result.sessions) or 0.0, accuracy_frac=accuracy_frac(finals))

    @property
    def skip_source(self) -> str:
        """What the answer model's agreement rests on."""
        return self.setup.answers.source

    def errors(self) -> Mapping[str, int]:
        """Nothing: simulated calls do not fail."""
        return {}

    def files(self, calls: Sequence[Call]) -> Mapping[str, bytes]:
        """Nothing: simulated calls say no more than their records."""
        return {}


def calibration_calls(setup: Setup, stage: StageSetup, plan: Plan) -> tuple[tuple[Call, ...], World]:
    """Make the aggregator's calls of simulated calibration questions, and the world in which they are served.

    The calibration questions are the batch's own with other luck: they run through the expert stage's plan and the
    gate, so that the lengths which the gate selects for are those that are measured.
    """
    world = setup.calibration_world()
    records = setup.backend(world).execute(plan, setup.workload.calls).calls
    return typical_calls(setup.workload, records, stage), world.after(records)


def typical_calls(workload: Workload, records: Sequence[CallRecord], stage: StageSetup) -> tuple[Call, ...]:
    """Make the aggregator's calls for what the gate leaves of calibration questions.

    A gate that lets nothing through here has no typical call; then all questions stand in.
    """
    calls = hand_over(workload, records, stage.gate, stage.aggregator, stage.compare).calls
    return calls or hand_over(workload, records, Never(), stage.aggregator, stage.compare).calls


def even_plan(calls: Sequence[Call], expert: Expert, num_workers: int) -> Plan:
    """Spread calls evenly over as many replicas as the expert may have, by no price."""
    places = aggregator_places(expert, num_workers)
    sessions = replica_sessions(calls, places, split_evenly(len(calls), len(places)), first_id=0) if calls else ()
    return unpriced_plan(sessions, num_workers=num_workers)


def _watch(plan: Plan) -> AbstractContextManager[Listener | None]:
    return show_progress(sum(len(session.shard) for session in plan.sessions))
