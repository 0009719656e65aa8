"""Plans calls that have not started anew during a run, if the observed lengths contradict the plan."""

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
"""Least change of a worker's end against the plan's lengths, as a share of the remaining time."""
GAIN_FRAC = 0.05
"""Least gain of a new plan, as a share of the remaining time: predictions are no better than that."""
MAX_LEFT_OUT = 3
"""Most workers that a new plan may leave to the calls that have started there."""
NEWS_LOG = 0.15
"""Least change of a length scale, as a logarithm, since its last use; smaller ones change no plan."""


@dataclass(eq=False)
class Revising:
    """Compares observed lengths, those of running calls so far included, with the lengths of the plan.

    A scale of lengths may change the end of a worker, against the plan's lengths, by a stated share. Then the calls
    that no engine has started are planned anew with the observed lengths. The new plan is taken if it is predicted to
    end earlier by a stated share. A serving session keeps the calls that the new plan gives to its workers. ``Keeping``
    closes sessions that lose all their calls.
    """

    planner: Planner
    """Made the plan."""
    forecaster: Forecaster
    """Predicts the run; it must come before this controller."""
    on_plan: Callable[[Plan, Mapping[int, str]], None] = lambda plan, lost: None
    """Receives each new plan before it runs."""
    num_pilot_sessions: int = 0
    """The first sessions: the plan was made from their lengths."""
    unsure_batches: float = 0.0
    """Factor for delayed progress reports: a call that seems unstarted may have started.

    Of the calls without tokens, the first ones stay: so many times as many as have tokens. A call that moved after its
    start would write another answer.
    """
    least_s: float = 0.0
    """Seconds from one check to the next; ticks may come more often. A check reads the lengths of all calls."""
    reacts: ClassVar[bool] = True
    _next_ts: float = field(default=0.0, init=False)
    _ended: dict[tuple[NodeName, ExpertName], list[int]] = field(default_factory=lambda: defaultdict(list), init=False)
    _planned: dict[tuple[NodeName, ExpertName], float] = field(default_factory=dict, init=False)
    """The scale of the running plan, or of the last one considered; 1 without a plan."""

    def on(self, event: Event, view: View) -> Iterable[Command]:
        """Record lengths; check the plan when time has passed, since the progress of running calls is known then."""
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
        }  # the progress of their calls is not known, and ended calls are the short ones
        return {
            expert: self._planned.get((node, expert), 1.0)
            if expert in uncounted
            else length_scale(samples[expert], self._ended[node, expert], running[expert])
            for expert in dict.fromkeys(call.expert for call in view.running.values())
        }

    def _forecast(self, node: NodeName, scales: Mapping[ExpertName, float], view: View) -> RunForecast:
        """Predict the run with scaled lengths."""
        profiles = {**self.planner.profiles, node: self._profile(node, scales)}
        self.forecaster.use(profiles)
        return self.forecaster.forecast(view)

    def _profile(self, node: NodeName, scales: Mapping[ExpertName, float]) -> Profile:
        return scaled_profile(self.planner.profiles[node], scales)

    def _plan(
        self, node: NodeName, scales: Mapping[ExpertName, float], now: RunForecast, view: View
    ) -> Iterator[Command]:
        """Plan the calls that have not started, and use the plan if it pays."""
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
        """Plan on all workers, and without the busiest ones: schedulers ignore running calls."""
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
        """List the calls of a session without tokens; if the engine does not count, those of a session not up yet."""
        if one.is_up and one.session.id not in self.forecaster.counting:
            return []
        waiting = [call for key, call in one.calls.items() if not self.forecaster.written.get(key, 0)]
        num_begun = len(one.calls) - len(waiting)
        return waiting[round(self.unsure_batches * num_begun) if one.is_up else 0 :]

    def _end_s(self, plan: Plan, free: Mapping[CallKey, Call], now: RunForecast) -> float:
        """Predict the end under a new plan: started calls stay, and the plan's sessions follow them."""
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
        """Open the plan's sessions, except those that serve already, and move the calls there."""
        up = {placement_of(one.session): one.session.id for one in now.sessions if one.is_up}
        first_session = view.next_session()
        for session in plan.sessions:
            number = up.get((session.expert, session.workers))
            if number is None or not view.is_open(number):
                number = session.id + first_session
                yield Open(opened(session, first_session))
            yield from (Move(key, number) for key in session.shard if view.place[key] != number)
