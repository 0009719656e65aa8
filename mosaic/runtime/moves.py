"""Moves: workers that are free take calls over, waiting or running, where that is predicted to end earlier."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from mosaic.core.commands import Close, Command, Move, Open
from mosaic.core.events import Event, Idle, Joined, Ready, Tick
from mosaic.core.plan import Session
from mosaic.core.workload import Call, CallKey, ExpertName
from mosaic.runtime.controller import View
from mosaic.runtime.prospects import Outlook, Prospects, Stay

GAIN_FRAC = 0.05
"""A move has to earn such a share of what is predicted without it: predictions are no better than that."""
GAIN_OF_LOAD_FRAC = 0.25
"""Opening a session has to earn such a share of its load besides."""
SHARES = (0.02, 0.05, 0.1, 0.2, 0.33, 0.5, 0.67, 0.8, 1.0)
"""Of a session's calls, how many may go: the best of these is taken."""
MAX_MOVES = 3
"""Of a call once it has written something."""


@dataclass(frozen=True)
class _Offer:
    """Calls that would go from a session to another, and what that earns."""

    gain_s: float
    keys: tuple[CallKey, ...]


class Moves:
    """Levels sessions of one expert, and opens another where a free worker can take over enough of its calls.

    What counts is when the workers of a session are done with it and with what waits behind it. Calls that no engine
    has begun go first, and then those that have written least: the other engine has to read what they have. A session
    is opened while its calls go on where they are, and takes them when it is up, if that still pays then. Where an
    engine does not count tokens its calls stay, but for those of sessions that are not up yet.

    Parameters
    ----------
    prospects
        What is predicted.
    awaited
        Experts whose calls come while the first layer runs: of each, one session stays.
    waits_for_join
        Whether nothing moves before a worker has joined: a run that no worker joins follows its plan. What is opened
        from then on is closed here, when something else waits for its workers.
    """

    reacts = True

    def __init__(
        self, prospects: Prospects, awaited: Collection[ExpertName] = (), *, waits_for_join: bool = False
    ) -> None:
        self._prospects = prospects
        self._awaited = awaited
        self._is_on = not waits_for_join
        self._closes = waits_for_join
        self._opened: list[int] = []
        self._num_moves: Counter[CallKey] = Counter()
        self._opened_ts: dict[int, float] = {}
        """When it last opened a session on each worker: no more than one an instant."""

    def on(self, event: Event, view: View) -> Iterable[Command]:
        """Look at everything anew when time has passed, a worker is idle or has joined, or a session is up."""
        self._is_on = self._is_on or isinstance(event, Joined)
        if not self._is_on:
            return ()
        commands: list[Command] = []
        if isinstance(event, Tick | Idle | Ready | Joined) and view.running:
            outlook = self._prospects.outlook(view)
            commands = [*self._level(outlook, view)] or [*self._take_over(outlook, view)]
        return [*commands, *self._close(view)] if self._closes else commands

    def _close(self, view: View) -> Iterator[Command]:
        for number in self._opened:
            if view.is_open(number) and not view.held[number] and view.behind(number):
                yield Close(number)

    def _level(self, outlook: Outlook, view: View) -> Iterator[Command]:
        """Move calls between the sessions of each expert, from the one that ends last to the one that ends first."""
        by_expert: dict[str, list[Stay]] = {}
        for stay in outlook.stays:
            by_expert.setdefault(stay.session.expert, []).append(stay)
        for stays in by_expert.values():
            targets = [stay for stay in stays if stay.is_up and view.is_open(stay.session.id)]
            if not targets or len(stays) < 2:
                continue
            target = min(targets, key=lambda stay: self._done_s(stay, outlook))
            others = [stay for stay in stays if stay is not target and stay.calls]
            there = replace(target, ready_s=0.0)  # it is up, whatever else its workers serve
            for source in sorted(others, key=lambda stay: -self._done_s(stay, outlook)):
                least_s = GAIN_FRAC * self._done_s(source, outlook)
                if self._done_s(source, outlook) - self._done_s(target, outlook) <= least_s:
                    break  # it cannot earn more than what they are apart
                offer = self._best(source, there, outlook, outlook.behind_s(target), least_s)
                if offer is not None:
                    yield from self._give(offer, target.session.id)
                    break

    def _take_over(self, outlook: Outlook, view: View) -> Iterator[Command]:
        """Open a session on a free worker, for the calls of another that waits longest for its end."""
        kept = self._kept_workers(view)
        free = [w for w in view.free_workers() if w not in kept and self._opened_ts.get(w) != view.ts]
        if not free:
            return
        coming = {stay.session.expert for stay in outlook.stays if not stay.is_up and not stay.calls}
        sources = [stay for stay in outlook.stays if stay.calls and stay.session.expert not in coming]
        for source in sorted(sources, key=lambda stay: -self._done_s(stay, outlook)):
            place = self._place(source.session.expert, free, outlook)
            if place is None:
                continue
            load_s, workers = place
            session = replace(source.session, id=view.next_session(), workers=workers, shard=(), after=())
            least_s = GAIN_FRAC * self._done_s(source, outlook) + GAIN_OF_LOAD_FRAC * load_s
            there = Stay(session, is_up=False, calls={}, ready_s=load_s, serve_s=0.0)
            if self._best(source, there, outlook, 0.0, least_s) is not None:
                self._opened_ts |= dict.fromkeys(session.workers, view.ts)
                self._opened.append(session.id)
                yield Open(session)
                return

    def _place(self, expert: ExpertName, free: Sequence[int], outlook: Outlook) -> tuple[float, tuple[int, ...]] | None:
        """Find the free worker where an expert is loaded soonest, and its load in seconds; None: it may go nowhere."""
        measured = self._prospects.measured
        there = {stay.session.workers for stay in outlook.stays if stay.session.expert == expert}
        places = [(self._prospects.load_s(expert, (worker,)), (worker,)) for worker in free if (worker,) not in there]
        if not places or measured.speed(expert, min(places)[1]) is None:
            return None
        return min(places)

    def _kept_workers(self, view: View) -> set[int]:
        """List the workers of the only session of an expert whose calls are awaited."""
        if all(call.after for call in view.running.values()):
            return set()
        homes: dict[ExpertName, list[Session]] = {}
        for number, session in view.opened.items():
            if session.expert in self._awaited and view.is_open(number):
                homes.setdefault(session.expert, []).append(session)
        return {worker for sessions in homes.values() if len(sessions) == 1 for worker in sessions[0].workers}

    def _best(
        self, source: Stay, there: Stay, outlook: Outlook, behind_there_s: float, least_s: float
    ) -> _Offer | None:
        """Find how many calls of a session would best be served in another; None: no number earns enough."""
        calls, present = self._movable(source), there.calls.values()
        drain_s, behind_s = self._prospects.drain_s, outlook.behind_s(source)
        before_s = max(self._done_s(source, outlook), behind_there_s + there.ready_s + there.serve_s)
        head_start_s = max(0.0, there.ready_s - source.ready_s)
        best, best_s = None, least_s
        for number in sorted({max(1, round(share * len(calls))) for share in SHARES} if calls else ()):
            going = calls[:number]
            keys = {call.key for call in going}
            staying = [call for key, call in source.calls.items() if key not in keys]
            here_s = source.before_s
            if staying:
                here_s = source.ready_s + drain_s(staying, source.session.expert, source.session.workers)
            if before_s - (here_s + behind_s) <= best_s:
                continue  # however soon the others end there
            session = there.session
            there_s = there.ready_s + drain_s([*present, *going], session.expert, session.workers, head_start_s)
            there_s += self._reading_s(going, session)
            gain_s = before_s - max(here_s + behind_s, there_s + behind_there_s)
            if gain_s > best_s:
                best, best_s = _Offer(gain_s, tuple(call.key for call in going)), gain_s
        return best

    def _movable(self, source: Stay) -> list[Call]:
        """List calls that may go, those first that cost least to move."""
        written = self._prospects.written
        if source.is_up and source.session.id not in self._prospects.counting:
            return []
        calls = [
            call for key, call in source.calls.items() if not written.get(key, 0) or self._num_moves[key] < MAX_MOVES
        ]
        return sorted(calls, key=lambda call: written.get(call.key, 0))

    def _reading_s(self, calls: Sequence[Call], there: Session) -> float:
        """Price what another engine has to read again."""
        speed = self._prospects.measured.speed(there.expert, there.workers)
        written = self._prospects.written
        again = [call.prompt_tokens + written[call.key] for call in calls if written.get(call.key, 0)]
        return 0.0 if speed is None else speed.read_s * sum(again)

    def _give(self, offer: _Offer, number: int) -> Iterator[Command]:
        for key in offer.keys:
            if self._prospects.written.get(key, 0):
                self._num_moves[key] += 1
            yield Move(key, number)

    @staticmethod
    def _done_s(stay: Stay, outlook: Outlook) -> float:
        """When the workers of a session are done with it, and with what waits behind it."""
        return stay.end_s + outlook.behind_s(stay)
