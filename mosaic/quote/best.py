"""The best plan there is: the scheduler's own and the baselines', each simulated in the same possible worlds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from mosaic.core.cluster import Cluster, Worker
from mosaic.core.errors import InfeasibleError
from mosaic.core.plan import Plan
from mosaic.core.workload import Call, Expert, ExpertName
from mosaic.planning.costs import CostModel, LinearTerms, PiecewiseCosts, Residency, ShardSummary
from mosaic.planning.profiles import Profile
from mosaic.planning.restricted_costs import Wrapped
from mosaic.planning.schedulers.data_parallel import DataParallel
from mosaic.planning.schedulers.round_robin import RoundRobin
from mosaic.quote.draws import Batch, draw_worlds
from mosaic.quote.forecast import Factors, Simulator
from mosaic.quote.measured import serve_factor
from mosaic.quote.offers import simulated_profile
from mosaic.quote.quotation import duration
from mosaic.quote.sample import PilotQuestion, PilotSample
from mosaic.runtime.measuring import Tell
from mosaic.runtime.pilot_stages import Pilot
from mosaic.runtime.planner import Planned, Planner

BASELINES = (RoundRobin(), DataParallel())
"""They are simulated beside the own scheduler, and taken where they end first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A plan, and what it takes by the forecast."""

    planned: Planned
    seconds: float

    @property
    def name(self) -> str:
        """Of its scheduler, and of the prices that a scheduler of ours decided by."""
        plan = self.planned.plan
        is_baseline = plan.scheduler in {scheduler.name for scheduler in BASELINES}
        return plan.scheduler if is_baseline else f"{plan.scheduler} ({plan.costs})"


def try_plans(
    planner: Planner, calls: Sequence[Call], priced: Profile, seconds_of: Callable[[Plan], float]
) -> tuple[Tried, ...]:
    """Plan calls in every way that there is, the shortest first.

    The scheduler of the planner decides twice: by the prices it was given, and by simulated sessions of three sizes,
    which know that a small shard lasts as long as its longest answer. The paper's constant price does not, and cuts an
    expert of few long calls into shards that last as long as the whole.

    Parameters
    ----------
    planner, calls
        Who plans, and what.
    priced
        Simulated sessions of all experts that have calls.
    seconds_of
        Forecasts a plan.

    Raises
    ------
    InfeasibleError
        If no way has a plan.
    """
    by_sessions = replace(planner, costs=_by_sessions(planner, priced))
    ways = [planner, by_sessions, *(replace(planner, scheduler=scheduler) for scheduler in BASELINES)]
    tried, reasons = [], []
    for way in ways:
        try:
            planned = way.plan(calls)
        except InfeasibleError as error:
            reasons.append(error)
            continue
        tried.append(Tried(planned=planned, seconds=seconds_of(planned.plan)))
    if not tried:
        raise reasons[0]
    return tuple(sorted(tried, key=lambda one: one.seconds))


def best_plan(planner: Planner, calls: Sequence[Call], pilot: Pilot, tell: Tell) -> Planned:
    """Take the best plan of what a pilot leaves, for ``Job.choose_plan``.

    A quote forecasts the same way: sessions are simulated with lengths drawn from those behind the planner's profiles,
    at the speed of the pilot's own sessions, and loads take what was measured. Workers of several kinds, and profiles
    without lengths, leave the choice to the planner's scheduler.

    Raises
    ------
    InfeasibleError
        If no plan exists.
    """
    problem = planner.problem(calls, None, planner.costs)
    kinds = {worker.gpu.name for worker in planner.cluster.workers}
    if len(kinds) > 1 or planner.session_model is None or not all(problem.length_samples.values()):
        return planner.plan(calls)
    cluster, experts = planner.cluster, {expert.name: expert for expert in planner.experts}
    loads = _Measured(problem.costs, cluster)
    plain = Simulator(experts=experts, sessions=planner.session_model, loads=loads)
    simulator = replace(plain, factors=Factors(serve=serve_factor(pilot, plain, cluster)))
    lengths = {name: tuple(sample) for name, sample in problem.length_samples.items()}
    sample = PilotSample(questions=(PilotQuestion(output_tokens=lengths, is_whole=False),))
    batch = Batch(calls=tuple(calls), num_open_questions=0)
    worlds, _ = draw_worlds(batch, sample, experts, num_bootstrap=0)
    priced = simulated_profile(sample, worlds[0], batch, simulator, cluster)
    tried = try_plans(
        planner, calls, priced, lambda plan: median(simulator.plan_s(plan, one.requests, cluster) for one in worlds)
    )
    choice, best = describe_choice(tried), tried[0].planned
    tell(choice)
    return replace(best, plan=replace(best.plan, notes=(*best.plan.notes, choice)))


def describe_choice(tried: Sequence[Tried]) -> str:
    """Say in a line which plan is taken, and what the others would take."""
    best, *others = tried
    beside = ", ".join(f"{other.name} {duration(other.seconds)}" for other in others)
    return f"plan: {best.name}, predicted {duration(best.seconds)}{f'; {beside}' if beside else ''}"


@dataclass(frozen=True, slots=True)
class _BySessions(Wrapped):
    """Prices of a cost model, but for sessions."""

    sessions: CostModel

    @property
    def name(self) -> str:
        return self.sessions.name

    def session_s(self, expert: Expert, shard: ShardSummary, workers: Sequence[Worker]) -> float:
        return self.sessions.session_s(expert, shard, workers)

    def linear_terms(self, expert: Expert, workers: Sequence[Worker]) -> LinearTerms:
        return self.sessions.linear_terms(expert, workers)

    def pieces(self, expert: Expert, workers: Sequence[Worker]) -> Sequence[LinearTerms]:
        return self.sessions.pieces(expert, workers)


def _by_sessions(planner: Planner, priced: Profile) -> Callable[..., CostModel]:
    def costs(*, profile: Profile, num_calls_by_expert: dict[ExpertName, int]) -> CostModel:
        sessions = PiecewiseCosts(profile=priced, num_calls_by_expert=num_calls_by_expert)
        return _BySessions(planner.costs(profile=profile, num_calls_by_expert=num_calls_by_expert), sessions)

    return costs


@dataclass(frozen=True, slots=True)
class _Measured:
    """Loads as they are priced, which includes making room."""

    costs: CostModel
    cluster: Cluster

    def load_s(self, expert: Expert, num_workers: int) -> float:
        return self.costs.load_s(expert, self.cluster.workers[:num_workers], Residency.COLD)

    def unload_s(self, expert: Expert, num_workers: int) -> float:
        return 0.0
