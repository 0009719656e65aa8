"""Forecasts the time of plans in possible worlds, and chooses the best: sessions are simulated, and added by worker."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import log, sqrt
from statistics import fmean, median
from typing import TypeAlias

from mosaic.core.addition import add_in_order
from mosaic.core.cluster import Worker
from mosaic.core.errors import InfeasibleError
from mosaic.core.plan import Plan, prediction_from_sample
from mosaic.core.results import SessionRecord
from mosaic.core.workload import Call, CallKey, Expert, ExpertName
from mosaic.planning.baselines import DataParallel, RoundRobin
from mosaic.planning.costs import CostModel, PiecewiseCosts, WeightLocation
from mosaic.planning.problem import Request, SessionModel
from mosaic.planning.profiles import Profile, ProfileEntry, SweepPoint, fit_session
from mosaic.planning.wrapped_costs import RunCosts
from mosaic.quote.prices import duration
from mosaic.quote.worlds import Batch, PilotQuestion, World, draw_worlds
from mosaic.runtime.controller import Log
from mosaic.runtime.planner import Planned, Planner
from mosaic.runtime.stages import Pilot

Served: TypeAlias = dict[tuple[ExpertName, int, tuple[Request, ...]], float]


LoadTimes: TypeAlias = Callable[[Expert, int], float]
"""Returns the seconds of an expert's load, or of unloading another one, over so many workers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulator:
    """Simulates sessions on one kind of worker; results are cached."""

    experts: Mapping[ExpertName, Expert]
    sessions: SessionModel
    workers: Sequence[Worker]
    """Workers of that kind, as many as a session may span."""
    loads: LoadTimes
    """From idle workers to a ready engine."""
    unloads: LoadTimes = lambda expert, num_workers: 0.0
    """Seconds to unload another expert before it."""
    load_factor: float = 1.0
    """Ratio of the machine's loads to simulated ones; 1: no difference, or not measured."""
    serve_factor: float = 1.0
    """The same ratio for serving."""
    _served: Served = field(default_factory=dict, repr=False, compare=False)

    def serve_s(self, expert: Expert, requests: Sequence[Request], degree: int) -> float:
        """Seconds until the last of some requests has ended, all of them waiting from the start."""
        key = expert.name, degree, tuple(requests)
        if key not in self._served:
            self._served[key] = self.sessions.serve_s(expert, requests, self.workers[:degree]) if requests else 0.0
        return self._served[key] * self.serve_factor

    def load_s(self, expert: Expert, num_workers: int) -> float:
        """Seconds from idle workers to a ready engine."""
        return self.loads(expert, num_workers) * self.load_factor

    def plan_s(self, plan: Plan, requests: Mapping[CallKey, Request]) -> float:
        """Seconds from the first load of a plan to the end of its last session."""
        free_s = [0.0] * plan.num_workers
        resident: list[tuple[ExpertName, tuple[int, ...]] | None] = [None] * plan.num_workers
        end_s: dict[int, float] = {}
        for session in plan.sessions:
            degree, home = len(session.workers), (session.expert, session.workers)
            expert = self.experts[session.expert]
            start_s = max([free_s[worker] for worker in session.workers] + [end_s[needed] for needed in session.after])
            if any(resident[worker] != home for worker in session.workers):
                if any(resident[worker] is not None for worker in session.workers):
                    start_s += self.unloads(expert, degree) * self.load_factor
                start_s += self.load_s(expert, degree)
            own = [requests[key] for key in session.shard]
            end_s[session.id] = start_s + self.serve_s(expert, own, degree)
            for worker in session.workers:
                free_s[worker], resident[worker] = end_s[session.id], home
        return max(free_s)


VALIDATED: Mapping[str, tuple[float, str]] = {
    "cpu_core": (0.082, "results/validation: makespans of three plans on real vLLM, off by 11.0%, 3.6% and 8.3%"),
    "a100_80gb": (0.062, "results/paper: published walls of six expert stages, off by 0.1% to 14.1%"),
}
"""Root mean square of the errors of simulated makespans, by kind."""
NOT_VALIDATED = (0.15, "never compared with a real run: 15% is assumed")
REPEATS = (0.087, "results/validation: a repeat of the same plan differs by 8.7%; scaled by the pilot's own sessions")
"""The remaining error if the pilot ran on the same machine: its sessions show the machine's speed."""


def hardware_error(kind: str, *, is_simulated: bool, is_measured: bool) -> tuple[float, str]:
    """Return the standard deviation of the logarithm of real over simulated seconds, with its source.

    Parameters
    ----------
    kind
        Of GPU.
    is_simulated
        The batch itself is simulated, so the simulator is exact.
    is_measured
        The pilot ran on this kind.
    """
    if is_simulated:
        return 0.0, "the batch is simulated on it, so nothing of it is unknown"
    return REPEATS if is_measured else VALIDATED.get(kind, NOT_VALIDATED)


def load_factor(pilot: Pilot, simulator: Simulator) -> float:
    """Return the ratio of the pilot's loads to simulated ones; engines that were already loaded do not count.

    1: nothing was loaded.
    """
    loaded = [session for session in _undisturbed(pilot) if session.load_s > 0]
    simulated_s = add_in_order(
        simulator.loads(simulator.experts[session.expert], len(session.workers)) for session in loaded
    )
    return add_in_order(session.load_s for session in loaded) / simulated_s if simulated_s else 1.0


def serve_factor(pilot: Pilot, simulator: Simulator) -> float:
    """Return the ratio of the pilot's serving times to simulated ones; 1 without sessions."""
    requests = defaultdict[int, list[Request]](list)
    for record in pilot.records.values():
        requests[record.session].append(Request(record.prompt_tokens, record.output_tokens))
    served = [session for session in _undisturbed(pilot) if session.session in requests]
    simulated_s = add_in_order(
        simulator.serve_s(simulator.experts[session.expert], requests[session.session], len(session.workers))
        for session in served
    )
    return add_in_order(session.end_ts - session.start_ts for session in served) / simulated_s if simulated_s else 1.0


def _undisturbed(pilot: Pilot) -> list[SessionRecord]:
    return [session for session in pilot.sessions if session.num_calls and not session.num_interruptions]


SHARES = (8, 2, 1)
"""Experts are priced by simulated sessions of an eighth, a half and all of their remaining calls."""


def total_s(plan: Plan, batch: Batch, simulator: Simulator, world: World) -> float:
    """Simulate a plan, and the aggregator after it, in a world."""
    return simulator.plan_s(plan, world.requests) + merge_s(batch, world, simulator, plan.num_workers)


def merge_s(batch: Batch, world: World, simulator: Simulator, num_workers: int) -> float:
    """Return the seconds of an aggregator after the experts, at its fastest degree.

    With one worker per session it has a replica on each worker, with the calls split evenly; at other degrees it is one
    session.
    """
    expert, requests = batch.aggregator, world.merged
    if expert is None or not requests:
        return 0.0
    times = []
    for degree in (degree for degree in batch.aggregator_degrees if degree <= num_workers):
        num_places = min(num_workers, len(requests)) if degree == 1 else 1
        parts = [requests[place::num_places] for place in range(num_places)]
        load_s = (simulator.unloads(expert, degree) + simulator.loads(expert, degree)) * simulator.load_factor
        times.append(load_s + max(simulator.serve_s(expert, part, degree) for part in parts))
    return min(times)


def load_frac(plan: Plan, simulator: Simulator, plan_s: float) -> float:
    """Return the share of the workers' time for loads, in a plan that takes so many seconds."""
    loads_s = add_in_order(
        simulator.loads(simulator.experts[session.expert], len(session.workers)) * len(session.workers)
        for session in plan.sessions
    )
    return loads_s * simulator.load_factor / (plan_s * plan.num_workers)


def spread_of(draws_s: Sequence[float]) -> float:
    """Return the standard deviation of the logarithms of draws, at least two."""
    logs = [log(value) for value in draws_s]
    middle = fmean(logs)
    return sqrt(add_in_order((value - middle) ** 2 for value in logs) / (len(logs) - 1))


def simulated_profile(batch: Batch, central: World, simulator: Simulator) -> Profile:
    """Price experts for the planner, by simulated sessions of the sizes that it may choose."""
    entries = []
    for name, lengths in batch.by_expert.items():
        requests = [central.requests[call.key] for call in batch.calls if call.expert == name]
        if requests:
            entries.append(_entry(simulator.experts[name], requests, lengths, simulator))
    return Profile(source="simulated sessions of the pilot's lengths", entries=tuple(entries))


def _entry(expert: Expert, requests: Sequence[Request], lengths: Sequence[int], simulator: Simulator) -> ProfileEntry:
    sizes = dict.fromkeys(max(1, len(requests) // share) for share in SHARES)
    degree = expert.tp_degree
    points = tuple(
        SweepPoint(
            num_calls=size,
            session_s=simulator.serve_s(expert, requests[:size], degree),
            output_tokens=sum(request.output_tokens for request in requests[:size]),
        )
        for size in (sizes if len(sizes) > 1 else (1, 2))
    )
    sample = tuple(sorted(lengths))
    return ProfileEntry(
        expert=expert.name,
        gpu=simulator.workers[0].gpu.name,
        tp_degree=degree,
        load_s=simulator.load_s(expert, degree),
        fit=fit_session(points),
        lengths=prediction_from_sample(sample),
        points=points,
        output_tokens=sample,
        kv_budget_tokens=expert.kv_budget_tokens,
    )


BASELINES = (RoundRobin(), DataParallel())
"""They are simulated beside the job's scheduler, and taken if they end first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A plan, and its forecast time."""

    planned: Planned
    seconds: float

    @property
    def name(self) -> str:
        """Name of its scheduler, with the prices if it is one of mosaic's."""
        plan = self.planned.plan
        is_baseline = plan.scheduler in {scheduler.name for scheduler in BASELINES}
        return plan.scheduler if is_baseline else f"{plan.scheduler} ({plan.costs})"


def try_plans(
    planner: Planner, batch: Batch, priced: Profile, simulator: Simulator, worlds: Sequence[World]
) -> tuple[Tried, ...]:
    """Plan the rest of a batch with all schedulers and prices, the shortest plan first.

    The scheduler of the planner decides twice: by its given prices, and by simulated sessions of three sizes. The
    latter take into account that a small shard lasts as long as its longest answer. The paper's constant price does
    not, and cuts an expert of few long calls into shards that take as long as the whole.

    Parameters
    ----------
    planner, batch
        The planner, and the rest of the batch.
    priced
        Prices from simulated sessions of all experts that have calls.
    simulator, worlds
        For the forecast of a plan: the median of its times in these worlds.

    Raises
    ------
    InfeasibleError
        If no scheduler has a plan.
    """
    by_sessions = replace(planner, costs=_by_sessions(planner, priced))
    ways = [planner, by_sessions, *(replace(planner, scheduler=scheduler) for scheduler in BASELINES)]
    tried, reasons = [], []
    for way in ways:
        try:
            planned = way.plan(batch.calls)
        except InfeasibleError as error:
            reasons.append(error)
            continue
        seconds = median(total_s(planned.plan, batch, simulator, world) for world in worlds)
        tried.append(Tried(planned=planned, seconds=seconds))
    if not tried:
        raise reasons[0]
    return tuple(sorted(tried, key=lambda one: one.seconds))


def best_plan(planner: Planner, calls: Sequence[Call], pilot: Pilot, log: Log) -> Planned:
    """Choose the best plan of the calls that a pilot leaves, for ``Job.choose_plan``.

    A quote forecasts in the same way. Sessions are simulated with lengths drawn from those of the planner's profiles,
    at the speed of the pilot's own sessions, with measured loads. With workers of several kinds, or profiles without
    lengths, the planner's scheduler decides.

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

    def load_s(expert: Expert, num_workers: int) -> float:
        return problem.costs.load_s(expert, cluster.workers[:num_workers], WeightLocation.COLD)

    # NOTE: these loads include unloading.
    plain = Simulator(experts=experts, sessions=planner.session_model, workers=cluster.workers, loads=load_s)
    simulator = replace(plain, serve_factor=serve_factor(pilot, plain))
    lengths = {name: tuple(sample) for name, sample in problem.length_samples.items()}
    known = PilotQuestion(output_tokens=lengths, is_whole=False)
    batch = Batch(questions=(known,), calls=tuple(calls), num_open_questions=0)
    worlds, _ = draw_worlds(batch, experts, num_bootstrap=0)
    priced = simulated_profile(batch, worlds[0], simulator)
    tried = try_plans(planner, batch, priced, simulator, worlds)
    choice, best = describe_choice(tried), tried[0].planned
    log(choice)
    return replace(best, plan=replace(best.plan, notes=(*best.plan.notes, choice)))


def describe_choice(tried: Sequence[Tried]) -> str:
    """Describe in a line the chosen plan, and the times of the others."""
    best, *others = tried
    beside = ", ".join(f"{other.name} {duration(other.seconds)}" for other in others)
    return f"plan: {best.name}, predicted {duration(best.seconds)}{f'; {beside}' if beside else ''}"


def _by_sessions(planner: Planner, priced: Profile) -> Callable[..., CostModel]:
    def costs(*, profile: Profile, num_calls_by_expert: dict[ExpertName, int]) -> CostModel:
        sessions = PiecewiseCosts(profile=priced, num_calls_by_expert=num_calls_by_expert)
        return RunCosts(planner.costs(profile=profile, num_calls_by_expert=num_calls_by_expert), sessions)

    return costs
