"""Lengths sampled from calibration, sessions priced by simulated iterations, stages chosen greedily: SamuLLM's idea."""

from dataclasses import dataclass, field
from math import inf
from random import Random
from typing import TypeAlias

from mosaic.core.checks import require, require_count
from mosaic.core.errors import ProfileError
from mosaic.core.plan import Plan, Session
from mosaic.core.workload import Call
from mosaic.planning.costs import WeightLocation
from mosaic.planning.problem import Problem
from mosaic.planning.program.bounds import lower_bound_s
from mosaic.planning.program.instance import Instance, Place, make_instance
from mosaic.planning.scheduler import make_plan
from mosaic.planning.session_model import Request, Served

Shard: TypeAlias = tuple[int, ...]
"""Calls of one expert, by number in arrival order."""

SHARES = tuple(eighths / 8 for eighths in range(1, 9))
"""Of the calls that wait, those that a further replica may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledGreedy:
    """Plan stage by stage: whenever workers fall idle, give them the sessions that add most throughput.

    Each call gets an output length drawn from its expert's calibration lengths, and a session's time comes from
    stepping its iterations over these lengths (``Problem.session_model``). A stage begins when workers are idle. Then,
    one session at a time, the one is chosen that adds most work per second and worker: work is parameters times
    tokens, and seconds last until the expert's last call, its load included. It takes all calls of an expert that has
    not begun; of one that runs it is a further replica, and takes the share of the calls that wait for a place in a
    batch with which the expert ends first, if that is earlier than without it.

    Where it differs from the paper, whose code it does not use:

    - The paper's applications are graphs of models that feed each other, and running them is dynamic: at the end of a
      stage models may be rescheduled with the true state of their requests. Here all calls are there from the start,
      and the plan is static: it is made from the sample alone, and binds.
    - There a stage ends when its first model ends, and a running model may be given another number of GPUs, for which
      it is loaded again. Here a stage ends when a worker falls idle, no session is stopped, and what moves to a new
      replica is what has not begun.
    - There the tensor-parallel degree is chosen too; here it is the expert's own.
    - There an iteration is priced by linear functions fitted to measured iterations; here by the iteration model that
      the run is composed with.
    - The pool's replica caps hold, and equation 8 of MOSAIC for experts without one. There is no limit K.

    References
    ----------
    SamuLLM, arXiv 2503.16893.
    """

    seed: int = 0
    """Of the sampled lengths."""
    name: str = "sampled_greedy"

    def __post_init__(self) -> None:
        require_count(self.seed, "scheduler.seed")

    def plan(self, problem: Problem) -> Plan:
        """Plan the problem; see ``Scheduler.plan``.

        Raises
        ------
        ValueError
            If the problem has no model of iterations.
        ProfileError
            If a profile kept no lengths of an expert.
        """
        instance = make_instance(problem)
        stages = _Stages(problem, instance, sample_requests(problem, self.seed))
        num_stages = stages.fill()
        return make_plan(
            problem,
            scheduler=self.name,
            sessions=stages.sessions(),
            lower_bound_s=lower_bound_s(instance),
            notes=(
                f"sampled lengths (seed {self.seed}), simulated iterations: {stages.makespan_s:.1f} s in {num_stages} "
                "stages; each session adds most throughput to its stage",
            ),
        )


def sample_requests(problem: Problem, seed: int) -> list[list[Request]]:
    """Draw a length for each call from its expert's calibration lengths; experts in first-seen order.

    Raises
    ------
    ProfileError
        If an expert has no such lengths.
    """
    drawn: list[list[Request]] = []
    for name, calls in problem.calls_by_expert().items():
        sample = problem.length_samples.get(name, ())
        if not sample:
            raise ProfileError(f"scheduler=sampled_greedy: the profile must keep output_tokens of {name!r}, got none")
        expert, rng = problem.expert(name), Random(f"{seed}|{name}")
        drawn.append(
            [
                Request(call.prompt_tokens, max(1, min(rng.choice(sample), expert.output_limit(call.prompt_tokens))))
                for call in calls
            ]
        )
    return drawn


def _evenly(calls: Shard, share: float) -> Shard:
    """Take a share of calls, evenly spread over all of them."""
    return tuple(call for i, call in enumerate(calls) if int((i + 1) * share) > int(i * share))


@dataclass(slots=True)
class _Planned:
    """A session that has been chosen; a later replica may take from it what waits."""

    expert: int
    place: Place
    ready_s: float
    shard: Shard
    served: tuple[Served, ...]

    @property
    def end_s(self) -> float:
        return self.ready_s + max((call.finished_s for call in self.served), default=0.0)

    def waiting(self, now_s: float) -> Shard:
        """List the calls that have not joined the batch."""
        return tuple(
            number
            for number, call in zip(self.shard, self.served, strict=True)
            if self.ready_s + call.admitted_s > now_s or self.ready_s > now_s
        )


@dataclass(frozen=True, slots=True)
class _Choice:
    """A session that could be added, what it adds, and what it leaves of others."""

    gain: float
    """Work per second and worker."""
    session: _Planned
    left: tuple[tuple[int, Shard], ...] = ()
    """Sessions that give calls away, by number, with what they keep."""


@dataclass(slots=True)
class _Stages:
    """The plan so far."""

    problem: Problem
    instance: Instance
    requests: list[list[Request]]
    planned: list[_Planned] = field(default_factory=list)
    home: dict[int, tuple[int, Place]] = field(default_factory=dict)
    """What each worker served last."""
    known: dict[tuple[int, str, Shard], tuple[Served, ...]] = field(default_factory=dict)
    """Sessions that have been stepped, by expert, GPU and shard."""

    @property
    def makespan_s(self) -> float:
        return max((session.end_s for session in self.planned), default=0.0)

    def fill(self) -> int:
        """Fill stage after stage until every call has a session and no replica helps; returns how many."""
        now_s, num_stages = 0.0, 0
        while True:
            before = len(self.planned)
            while (choice := self._best(now_s)) is not None:
                self._take(choice)
            num_stages += len(self.planned) > before
            later = [session.end_s for session in self.planned if session.end_s > now_s]
            if not later:
                return num_stages
            now_s = min(later)

    def _best(self, now_s: float) -> _Choice | None:
        busy = {worker for session in self.planned if session.end_s > now_s for worker in session.place}
        choices = [
            choice
            for expert, places in enumerate(self.instance.places)
            for place in self._unlike(expert, [place for place in places if not busy.intersection(place)])
            if (choice := self._choice(expert, place, now_s)) is not None
        ]
        return max(choices, key=lambda choice: choice.gain, default=None)

    def _unlike(self, expert: int, places: list[Place]) -> list[Place]:
        """Of equal places keep the first; where the expert was served last its load is spared."""
        workers = self.problem.cluster.workers
        kinds = {(workers[p[0]].gpu, all(self.home.get(w) == (expert, p) for w in p)): p for p in reversed(places)}
        return sorted(kinds.values())

    def _choice(self, expert: int, place: Place, now_s: float) -> _Choice | None:
        mine = [(number, session) for number, session in enumerate(self.planned) if session.expert == expert]
        if not mine:
            everything = tuple(range(self.instance.num_calls[expert]))
            session = self._session(expert, place, everything, now_s)
            return _Choice(self._rate(expert, everything, session.end_s - now_s) / len(place), session)
        if len({session.place for _, session in mine} | {place}) > self.instance.max_replicas[expert]:
            return None
        return self._replica(expert, place, now_s, mine)

    def _replica(self, expert: int, place: Place, now_s: float, mine: list[tuple[int, _Planned]]) -> _Choice | None:
        waiting = {number: calls for number, session in mine if (calls := session.waiting(now_s))}
        best_s = before_s = max(session.end_s for _, session in mine)
        best: tuple[_Planned, tuple[tuple[int, Shard], ...]] | None = None
        for share in SHARES:
            taken = {call for calls in waiting.values() for call in _evenly(calls, share)}
            if not taken:
                continue
            left = tuple(
                (number, tuple(call for call in session.shard if call not in taken))
                for number, session in mine
                if number in waiting
            )
            session = self._session(expert, place, tuple(sorted(taken)), now_s)
            kept = dict(left)
            ends_s = (self._shortened(other, kept.get(number, other.shard)).end_s for number, other in mine)
            after_s = max(session.end_s, *ends_s)
            if after_s < best_s:
                best_s, best = after_s, (session, left)
        if best is None:
            return None
        work = tuple(call for calls in waiting.values() for call in calls)
        gain = self._rate(expert, work, best_s - now_s) - self._rate(expert, work, before_s - now_s)
        return _Choice(gain / len(place), *best)

    def _take(self, choice: _Choice) -> None:
        for number, shard in choice.left:
            self.planned[number] = self._shortened(self.planned[number], shard)
        self.planned.append(choice.session)
        self.home |= dict.fromkeys(choice.session.place, (choice.session.expert, choice.session.place))

    def _session(self, expert: int, place: Place, shard: Shard, now_s: float) -> _Planned:
        stays = all(self.home.get(worker) == (expert, place) for worker in place)
        workers = self.problem.cluster.select(place)
        name = self.instance.names[expert]
        location = WeightLocation.RESIDENT if stays else self.problem.held.anywhere(name)
        load_s = self.problem.costs.load_s(self.problem.expert(name), workers, location)
        return _Planned(expert, place, now_s + load_s, shard, self._serve(expert, place, shard))

    def _shortened(self, session: _Planned, shard: Shard) -> _Planned:
        served = self._serve(session.expert, session.place, shard)
        return _Planned(session.expert, session.place, session.ready_s, shard, served)

    def _serve(self, expert: int, place: Place, shard: Shard) -> tuple[Served, ...]:
        workers = self.problem.cluster.select(place)
        key = (expert, workers[0].gpu.name, shard)
        if key not in self.known:
            model = self.problem.session_model
            require(model is not None, "scheduler=sampled_greedy: session model", "one that steps iterations", model)
            assert model is not None
            requests = [self.requests[expert][number] for number in shard]
            self.known[key] = model.serve(self.problem.expert(self.instance.names[expert]), requests, workers)
        return self.known[key]

    def _rate(self, expert: int, shard: Shard, seconds: float) -> float:
        """Work per second: parameters times tokens, read and written."""
        if seconds <= 0:
            return inf
        shape = self.problem.expert(self.instance.names[expert]).shape
        return shape.num_parameters * sum(sum(self.requests[expert][number]) for number in shard) / seconds

    def sessions(self) -> list[Session]:
        """Write the plan in the order in which sessions were chosen; those that gave all calls away are left out."""
        calls: list[list[Call]] = list(self.problem.calls_by_expert().values())
        kept = [session for session in self.planned if session.shard]
        return [
            Session(
                id=number,
                expert=self.instance.names[session.expert],
                node=calls[session.expert][0].key.node,
                workers=session.place,
                shard=tuple(calls[session.expert][call].key for call in session.shard),
            )
            for number, session in enumerate(kept)
        ]
