"""The simulated cluster as a backend."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mosaic.core.checks import require, require_unique
from mosaic.core.cluster import Cluster
from mosaic.core.plan import Plan
from mosaic.core.realization import Outcomes
from mosaic.core.results import CallStatus, Listener, RunResult
from mosaic.core.workload import Call, Expert
from sim.cluster.live_session import Job, SessionWork
from sim.cluster.lower_bound import Demand, makespan_lower_bound_s
from sim.cluster.preparation import IterationTimes, Places, prepare
from sim.cluster.processes import ClusterRun
from sim.engine.engine_settings import EngineSettings
from sim.hardware.hardware import Hardware
from sim.hardware.iteration_time import iteration_time


@dataclass(frozen=True, slots=True, kw_only=True)
class SimBackend:
    """Runs a plan in simulated time.

    Call records come in the order of the plan's sessions, and within a session in the order in which
    the calls ended (of two that ended together, the one admitted first comes first).
    """

    experts: Sequence[Expert]
    hardware: Mapping[str, Hardware]
    """By name of the GPU."""
    cluster: Cluster
    outcomes: Outcomes
    settings: EngineSettings = field(default_factory=EngineSettings)
    iteration_times: IterationTimes = iteration_time
    """Builds the iteration time of a model on a kind of GPU at a tensor-parallel degree."""
    name: str = "sim"

    def __post_init__(self) -> None:
        object.__setattr__(self, "experts", tuple(self.experts))
        require_unique((expert.name for expert in self.experts), "sim backend: expert name")
        for worker in self.cluster.workers:
            known = sorted(self.hardware)
            require(
                worker.gpu.name in self.hardware, "sim backend: GPU of a worker", f"one of {known}", worker.gpu.name
            )

    @property
    def dead_workers(self) -> Mapping[int, str]:
        """None: simulated workers do not die."""
        return {}

    def execute(self, plan: Plan, calls: Sequence[Call], listener: Listener | None = None) -> RunResult:
        """Run the plan's sessions over the calls at their true lengths.

        Raises
        ------
        BackendError
            If the plan names an expert, worker or call that the backend does not have, drops or doubles a
            call, or a session cannot be served by its workers.
        """
        places = Places(self.experts, self.hardware, self.cluster, self.settings, self.iteration_times)
        work = prepare(plan, calls, self.outcomes, places)
        run = ClusterRun(work, num_workers=self.cluster.num_workers, listener=listener)
        run.run()
        records = tuple(record for live in run.sessions for record in live.calls)
        served = work
        if run.actions:
            cancelled = {record.key for record in records if record.status is CallStatus.CANCELLED}
            served = [item._replace(jobs=tuple(j for j in item.jobs if j.call.key not in cancelled)) for item in work]
        return RunResult(
            calls=records,
            sessions=tuple(live.record for live in run.sessions if live.record is not None),
            num_workers=self.cluster.num_workers,
            lower_bound_s=makespan_lower_bound_s(_demands(served, places), self.settings, self.cluster.num_workers),
            actions=tuple(run.actions),
        )


def _demands(work: Sequence[SessionWork], places: Places) -> list[Demand]:
    """Put the jobs of each expert's sessions together."""
    jobs: dict[str, list[Job]] = {}
    for item in work:
        if item.jobs:
            jobs.setdefault(item.session.expert, []).extend(item.jobs)
    return [places.demand(name, group) for name, group in jobs.items()]
