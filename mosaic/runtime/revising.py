"""Plans anew, in mid-run, the calls that have not begun, when the lengths that come in contradict the plan."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import log
from typing import ClassVar

from mosaic.core.commands import Command, Move, Open
from mosaic.core.errors import InfeasibleError
from mosaic.core.events import Event, Finished, Tick
from mosaic.core.plan import Plan, placement_of
from mosaic.core.results import CallStatus
from mosaic.core.view import View
from mosaic.core.workload import Call, CallKey, ExpertName, NodeName
from mosaic.planning.length_forecast import length_scale
from mosaic.planning.profiles import Profile, scaled_profile
from mosaic.planning.wrapped_costs import RunCosts
from mosaic.runtime.forecaster import Forecaster, RunForecast, SessionForecast
from mosaic.runtime.planner import Planner
from mosaic.runtime.static_plan import opened

CONTRADICTION_FRAC = 0.1
"""By such a share of what is left the end of a worker must differ from what the plan's lengths say."""
GAIN_FRAC = 0.05
"""A new plan has to end so much earlier, of what is left: predictions are no better than that."""
MAX_LEFT_OUT = 3
"""Workers that a new plan may leave to what has begun there."""
NEWS_LOG = 0.15
"""A length scale that has changed by less, since it was last used, changes no plan."""


@dataclass(eq=False)
class Revising:
    """Compares observed lengths, those of running calls so far included, with what the plan was made for.

    Where a scale of lengths makes a worker end at another time than the plan's lengths do, by a stated share, the calls
    that no engine has begun are planned anew with the lengths as seen. The new plan is taken where it is predicted to
    end earlier by a stated share: a session that serves keeps the calls that the new plan leaves on its place, and
    sessions that lose all their calls are closed by ``Keeping``.
    """

    planner: Planner
    """Made the plan."""
    forecaster: Forecaster
    """What is predicted; it stands before this."""
    on_plan: Callable[[Plan, Mapping[int, str]], None] = lambda plan, lost: None
    """Receives each new plan before it runs."""
    num_pilot_sessions: int = 0
    """The first sessions: their lengths are what the plan was made of."""
    unsure_batches: float = 0.0
    """Progress may have been reported a while ago: of the calls that had written nothing, so many times as had written
    something stay, the first ones. A call that moved after it had begun would write another answer."""
    least_s: float = 0.0
    """Seconds from one look to the next; ticks may come more often. A look reads the lengths of all calls."""
    reacts: ClassVar[bool] = True
    _next_ts: float = field(default=0.0, init=False)
    _ended: dict[tuple[NodeName, ExpertName], list[int]] = field(default_factory=lambda: defaultdict(list), init=False)
    _planned: dict[tuple[NodeName, ExpertName], float] = field(default_factory=dict, init=False)
    """The scale that the plan now running was made with, or the last one considered; 1 where there is none."""

    def on(self, event: Event, view: View) -> Iterable[Command]:
        """Note lengths; look at the plan when time has passed, as it is then known how far running calls are."""
        if isinstance(event, Finished):
            record = event.record
            if record.status is CallStatus.FINISHED and record.session >= self.num_pilot_sessions:
                self._ended[record.key.node, record.expert].append(record.output_tokens)
            return ()
        if not isinstance(event, Tick) or event.ts < self._next_ts:
            return ()
        self._next_ts = event.ts + self.least_s
        if not view.running:
            return ()
        nodes = {call.key.node for call in view.running.values()}
        if len(nodes) > 1:
            return ()
        return list(self._look(nodes.pop(), view))

    def _look(self, node: NodeName, view: View) -> Iterator[Command]:
        scales = self._scales(node, view)
        known = {expert: self._planned.get((node, expert), 1.0) for expert in scales}
        if all(abs(log(scales[expert] / known[expert])) < NEWS_LOG for expert in scales):
            return
        before = self._forecast(node, known, view)
        now = self._forecast(node, scales, view)
        left_s = max(before.end_s, now.end_s)
        apart_s = max(abs(now.end_s_by_worker[w] - before.end_s_by_worker[w]) for w in now.end_s_by_worker)
        if apart_s <= CONTRADICTION_FRAC * left_s:
            return
        self._planned |= {(node, expert): scale for expert, scale in scales.items()}
        yield from self._plan(node, scales, now, view)

    def _scales(self, node: NodeName, view: View) -> dict[ExpertName, float]:
        running: dict[ExpertName, list[int]] = defaultdict(list)
        for key, tokens in self.forecaster.written.items():
            if key in view.running and key.node == node and tokens:
                running[view.running[key].expert].append(tokens)
        samples = {entry.expert: entry.output_tokens for entry in self.planner.profiles[node].entries}
        uncounted = {
            view.opened[number].expert
            for number in view.up - self.forecaster.counting
            if number not in view.ended and view.held[number]
        }  # how far their calls are is not known, and those that have ended are the short ones
        return {
            expert: self._planned.get((node, expert), 1.0)
            if expert in uncounted
            else length_scale(samples[expert], self._ended[node, expert], running[expert])
            for expert in dict.fromkeys(call.expert for call in view.running.values())
        }

    def _forecast(self, node: NodeName, scales: Mapping[ExpertName, float], view: View) -> RunForecast:
        """Predict the run by scaled lengths."""
        profiles = {**self.planner.profiles, node: self._profile(node, scales)}
        self.forecaster.use(profiles)
        return self.forecaster.forecast(view)

    def _profile(self, node: NodeName, scales: Mapping[ExpertName, float]) -> Profile:
        return scaled_profile(self.planner.profiles[node], scales)

    def _plan(
        self, node: NodeName, scales: Mapping[ExpertName, float], now: RunForecast, view: View
    ) -> Iterator[Command]:
        """Plan what has not begun, and give it where it pays."""
        free = {call.key: call for one in now.sessions for call in self._not_begun(one)}
        if not free:
            return
        calls = [call for key, call in view.calls.items() if key in free]
        resident = {w: one.session.expert for one in now.sessions if one.is_up for w in one.session.workers}
        planner = replace(
            self.planner,
            profiles={**self.planner.profiles, node: self._profile(node, scales)},
            costs=lambda **given: RunCosts(self.planner.costs(**given), resident=resident),
        )
        plans = list(self._plans(planner, calls, free, now, view))
        ends_s = [self._end_s(plan, free, now) for plan in plans]
        best = plans[ends_s.index(min(ends_s))] if plans else None
        if best is not None and min(ends_s) < (1 - GAIN_FRAC) * now.end_s:
            self.on_plan(best, view.lost)
            yield from self._commands(best, now, view)

    def _plans(
        self, planner: Planner, calls: Sequence[Call], free: Mapping[CallKey, Call], now: RunForecast, view: View
    ) -> Iterator[Plan]:
        """Plan on all workers, and without those that what has begun keeps busy longest: schedulers know of no rest."""
        begun_s = {
            worker: self._drain_s(
                {key: call for key, call in one.calls.items() if key not in free}, *placement_of(one.session)
            )
            for one in now.sessions
            if one.is_up
            for worker in one.session.workers
        }
        busiest = sorted(begun_s, key=lambda worker: -begun_s[worker])
        for number in range(min(MAX_LEFT_OUT, planner.cluster.num_workers - 1 - len(view.lost)) + 1):
            with suppress(InfeasibleError):
                yield planner.plan(calls, {**view.lost, **dict.fromkeys(busiest[:number], "busy")}).plan

    def _drain_s(self, calls: Mapping[CallKey, Call], expert: ExpertName, workers: Sequence[int]) -> float:
        return self.forecaster.drain_s(self.forecaster.underway(calls, expert), expert, workers)

    def _not_begun(self, one: SessionForecast) -> list[Call]:
        """List the calls of a session that wrote nothing; where an engine does not count, those of one not up yet."""
        if one.is_up and one.session.id not in self.forecaster.counting:
            return []
        waiting = [call for key, call in one.calls.items() if not self.forecaster.written.get(key, 0)]
        num_begun = len(one.calls) - len(waiting)
        return waiting[round(self.unsure_batches * num_begun) if one.is_up else 0 :]

    def _end_s(self, plan: Plan, free: Mapping[CallKey, Call], now: RunForecast) -> float:
        """Predict when all has ended by a new plan: what has begun stays, and the plan's sessions follow it."""
        homes = {placement_of(one.session): one for one in now.sessions if one.is_up}
        coming = {(session.expert, session.workers): session for session in plan.sessions}
        free_s: dict[int, float] = defaultdict(float)
        for (expert, workers), one in homes.items():
            staying = {key: call for key, call in one.calls.items() if key not in free}
            more = coming.get((expert, workers))
            staying |= {} if more is None else {key: free[key] for key in more.shard}
            end_s = self._drain_s(staying, expert, workers)
            free_s |= {worker: max(free_s[worker], end_s) for worker in workers}
        for (expert, workers), session in coming.items():
            if (expert, workers) not in homes:
                start_s = max(free_s[worker] for worker in workers) + self.forecaster.load_s(expert, workers)
                end_s = start_s + self._drain_s({key: free[key] for key in session.shard}, expert, workers)
                free_s |= dict.fromkeys(workers, end_s)
        return max(free_s.values(), default=0.0)

    def _commands(self, plan: Plan, now: RunForecast, view: View) -> Iterator[Command]:
        """Open the plan's sessions, but for those that serve already, and move the calls there."""
        up = {placement_of(one.session): one.session.id for one in now.sessions if one.is_up}
        first_session = view.next_session()
        for session in plan.sessions:
            number = up.get((session.expert, session.workers))
            if number is None or not view.is_open(number):
                number = session.id + first_session
                yield Open(opened(session, first_session))
            yield from (Move(key, number) for key in session.shard if view.place[key] != number)
