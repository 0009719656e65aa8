"""Moves calls to free workers, waiting or running, if they are predicted to end earlier there."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from mosaic.core.commands import Close, Command, Move, Open
from mosaic.core.events import Event, Idle, Joined, Ready, Tick
from mosaic.core.plan import Session
from mosaic.core.view import View
from mosaic.core.workload import CallKey, ExpertName
from mosaic.planning.length_forecast import Indexes, Underway
from mosaic.runtime.forecaster import Forecaster, RunForecast, SessionForecast

GAIN_FRAC = 0.05
"""Least gain of a move, as a share of the predicted time without it: predictions are no better than that."""
GAIN_OF_LOAD_FRAC = 0.25
"""Least additional gain of opening a session, as a share of its load."""
SHARES = (0.02, 0.05, 0.1, 0.2, 0.33, 0.5, 0.67, 0.8, 1.0)
"""Shares of a session's calls that may move: the best one is taken."""
LOOKED_AT = (Tick, Idle, Ready, Joined)
"""Events at which moves are considered."""
MAX_MOVES = 3
"""Most moves of a call that has written tokens."""


@dataclass(eq=False)
class Moves:
    """Levels sessions of one expert, and opens another if a free worker can take over enough of its calls.

    The objective is the time at which a session's workers have finished it and what waits after it. Calls that no
    engine has started move first. Next are those that have written least, since the other engine must prefill their
    tokens. A new session is opened while its calls continue where they are; it takes them when it is up, if that still
    pays. If an engine does not count tokens, its calls stay, except those of sessions that are not up yet.
    """

    forecaster: Forecaster
    """Predicts the run."""
    awaited: Collection[ExpertName] = ()
    """Experts whose upper calls arrive while the first layer runs: one session of each stays open."""
    waits_for_join: bool = field(default=False, kw_only=True)
    """Whether nothing moves before a worker has joined: a run without a joining worker follows its plan.

    Sessions opened from then on are closed here, when another session waits for their workers.
    """
    reacts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._is_on = not self.waits_for_join
        self._opened: list[int] = []
        self._num_moves: Counter[CallKey] = Counter()
        self._moved_enough: set[CallKey] = set()
        self._opened_ts: dict[int, float] = {}
        """When it last opened a session on each worker: at most one per instant."""

    def on(self, event: Event, view: View) -> Iterable[Command]:
        """Reconsider everything when time has passed, a worker is idle or has joined, or a session is up."""
        self._is_on = self._is_on or isinstance(event, Joined)
        if not self._is_on:
            return ()
        commands: list[Command] = []
        if isinstance(event, LOOKED_AT) and view.running:
            forecast = self.forecaster.forecast(view)
            commands = [*self._level(forecast, view)] or [*self._take_over(forecast, view)]
        return [*commands, *self._close(view)] if self.waits_for_join else commands

    def _close(self, view: View) -> Iterator[Command]:
        for number in self._opened:
            if view.is_open(number) and not view.held[number] and view.behind(number):
                yield Close(number)

    def _level(self, forecast: RunForecast, view: View) -> Iterator[Command]:
        """Move calls between the sessions of each expert, from the one that ends last to the one that ends first."""
        by_expert: dict[str, list[SessionForecast]] = {}
        for one in forecast.sessions:
            by_expert.setdefault(one.session.expert, []).append(one)
        for sessions in by_expert.values():
            targets = [one for one in sessions if one.is_up and view.is_open(one.session.id)]
            if not targets or len(sessions) < 2:
                continue
            target = min(targets, key=lambda one: self._done_s(one, forecast))
            others = [one for one in sessions if one is not target and one.calls]
            there = replace(target, ready_s=0.0)  # it is up, even if its workers serve other sessions
            for source in sorted(others, key=lambda one: -self._done_s(one, forecast)):
                least_s = GAIN_FRAC * self._done_s(source, forecast)
                if self._done_s(source, forecast) - self._done_s(target, forecast) <= least_s:
                    break  # the gain cannot exceed their difference
                keys = self._best(source, there, forecast, forecast.behind_s(target), least_s)
                if keys:
                    yield from self._give(keys, target.session.id)
                    break

    def _take_over(self, forecast: RunForecast, view: View) -> Iterator[Command]:
        """Open a session on a free worker, for calls of the session that ends last."""
        kept = self._kept_workers(view)
        free = [w for w in view.free_workers() if w not in kept and self._opened_ts.get(w) != view.ts]
        if not free:
            return
        coming = {one.session.expert for one in forecast.sessions if not one.is_up and not one.calls}
        sources = [one for one in forecast.sessions if one.calls and one.session.expert not in coming]
        for source in sorted(sources, key=lambda one: -self._done_s(one, forecast)):
            expert = source.session.expert
            taken = {one.session.workers for one in forecast.sessions if one.session.expert == expert}
            place = self.forecaster.soonest(expert, [worker for worker in free if (worker,) not in taken])
            if place is None:
                continue
            load_s, worker = place
            session = replace(source.session, id=view.next_session(), workers=(worker,), shard=(), after=())
            least_s = GAIN_FRAC * self._done_s(source, forecast) + GAIN_OF_LOAD_FRAC * load_s
            none = source.underway.part(np.empty(0, dtype=np.int64))
            there = SessionForecast(session, is_up=False, calls={}, underway=none, ready_s=load_s, serve_s=0.0)
            if self._best(source, there, forecast, 0.0, least_s):
                self._opened_ts |= dict.fromkeys(session.workers, view.ts)
                self._opened.append(session.id)
                yield Open(session)
                return

    def _kept_workers(self, view: View) -> set[int]:
        """List the workers of the only session of an expert with future upper calls."""
        if all(call.after for call in view.running.values()):
            return set()
        homes: dict[ExpertName, list[Session]] = {}
        for number, session in view.opened.items():
            if session.expert in self.awaited and view.is_open(number):
                homes.setdefault(session.expert, []).append(session)
        return {worker for sessions in homes.values() if len(sessions) == 1 for worker in sessions[0].workers}

    def _best(
        self,
        source: SessionForecast,
        there: SessionForecast,
        forecast: RunForecast,
        behind_there_s: float,
        least_s: float,
    ) -> list[CallKey]:
        """Find the calls of a session that should move to another; empty: no number of calls gains enough."""
        drain_s, behind_s = self.forecaster.drain_s, forecast.behind_s(source)
        before_s = max(self._done_s(source, forecast), behind_there_s + there.ready_s + there.serve_s)
        head_start_s = max(0.0, there.ready_s - source.ready_s)
        movable, session = self._movable(source), there.session
        best, best_s = movable[:0], least_s
        numbers = sorted({max(1, round(share * len(movable))) for share in SHARES} if len(movable) else ())
        low, high = 0, len(numbers)
        while low < high:  # more moved calls end later, and the others sooner: the optimum is where both ends meet
            middle = (low + high) // 2
            going = movable[: numbers[middle]]
            here_s = behind_s + self._staying_s(source, going)
            if before_s - here_s <= best_s:
                low = middle + 1
                continue
            moved = source.underway.part(going)
            there_s = drain_s(there.underway.joined(moved), session.expert, session.workers, head_start_s)
            there_s += there.ready_s + self._reading_s(moved, session) + behind_there_s
            gain_s = before_s - max(here_s, there_s)
            if gain_s > best_s:
                best, best_s = going, gain_s
            low, high = (low, middle) if there_s > here_s else (middle + 1, high)
        keys = list(source.calls) if len(best) else []
        return [keys[index] for index in best.tolist()]

    def _staying_s(self, source: SessionForecast, going: Indexes) -> float:
        """Predict when the calls of a session that stay will have ended."""
        if len(going) == len(source.calls):
            return source.before_s
        stays = np.ones(len(source.calls), dtype=bool)
        stays[going] = False
        session, staying = source.session, source.underway.part(stays)
        return source.ready_s + self.forecaster.drain_s(staying, session.expert, session.workers)

    def _movable(self, source: SessionForecast) -> Indexes:
        """List movable calls by their index in the session, those with the lowest cost of moving first."""
        if source.is_up and source.session.id not in self.forecaster.counting:
            return np.empty(0, dtype=np.int64)
        written = source.underway.written
        order = written.argsort(kind="stable")
        if not self._moved_enough.isdisjoint(source.calls):
            may_go = np.array([key not in self._moved_enough for key in source.calls]) | (written == 0)
            order = order[may_go[order]]
        return order

    def _reading_s(self, calls: Underway, there: Session) -> float:
        """Price the tokens that another engine must prefill again."""
        speed = self.forecaster.speed(there.expert, there.workers)
        again = (calls.prompt_tokens + calls.written)[calls.written > 0]
        return 0.0 if speed is None else speed.read_s * float(again.sum())

    def _give(self, keys: Sequence[CallKey], number: int) -> Iterator[Command]:
        for key in keys:
            if self.forecaster.written.get(key, 0):
                self._num_moves[key] += 1
                if self._num_moves[key] == MAX_MOVES:
                    self._moved_enough.add(key)
            yield Move(key, number)

    @staticmethod
    def _done_s(one: SessionForecast, forecast: RunForecast) -> float:
        """When the workers of a session have finished it and the sessions that wait after it."""
        return one.end_s + forecast.behind_s(one)
