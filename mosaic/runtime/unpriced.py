"""Sessions by no price: for what is asked before there is one, and for measuring it."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Protocol

from mosaic.core.checks import require
from mosaic.core.errors import InfeasibleError
from mosaic.core.plan import Plan, Session, unpriced_plan
from mosaic.core.workload import Call, Expert, ExpertName
from mosaic.planning.scheduler import replica_sessions, split_evenly
from mosaic.runtime.replanning import Replanning

SHARES = 1 + 2 + 4
"""Three sessions serve a seventh, two and four of an expert's calls: the points that a line needs."""


class Places(Protocol):
    """Says where experts may run: a site, or a part of it."""

    def places(self, expert: Expert) -> list[tuple[int, ...]]:
        """List the gangs of workers where an expert may run."""


@dataclass(frozen=True, slots=True)
class FirstWorkers:
    """The first so many workers of a site."""

    site: Places
    num_workers: int

    def places(self, expert: Expert) -> list[tuple[int, ...]]:
        """List the gangs of these workers; of all, where none is left."""
        places = self.site.places(expert)
        return [place for place in places if max(place) < self.num_workers] or places  # its own may be lost


def gangs_of(expert: Expert, num_workers: int) -> list[tuple[int, ...]]:
    """List the gangs of an expert's replicas: all that the workers make up, or as many as its cap allows.

    Raises
    ------
    ValueError
        If there is none.
    """
    size = expert.tp_degree
    gangs = [tuple(range(start, start + size)) for start in range(0, num_workers - size + 1, size)]
    require(len(gangs) > 0, f"aggregator {expert.name}: tp_degree", f"at most num_workers={num_workers}", size)
    return gangs[: expert.max_replicas]


def even_plan(calls: Sequence[Call], experts: Sequence[Expert], site: Places, num_workers: int) -> Plan:
    """Spread calls evenly over as many replicas as each expert may have; experts may be named twice."""
    sessions: list[Session] = []
    for expert in {expert.name: expert for expert in experts}.values():
        mine = [call for call in calls if call.expert == expert.name]
        if mine:
            places = site.places(expert)
            parts = split_evenly(len(mine), len(places))
            sessions += replica_sessions(mine, places, parts, first_id=len(sessions))
    return unpriced_plan(sessions, num_workers=num_workers)


def spread_anew(experts: Sequence[Expert], site: Places, num_workers: int) -> Replanning:
    """Make a controller that spreads what lost workers leave evenly over the others."""

    def plan(left: Sequence[Call], lost: Mapping[int, str]) -> Plan:
        made = even_plan(left, experts, site, num_workers)
        if hit := [session.expert for session in made.sessions if not lost.keys().isdisjoint(session.workers)]:
            raise InfeasibleError(f"no place is left for {hit[0]}")
        return made

    return Replanning(plan)


def thirds(calls: Sequence[Call]) -> list[Sequence[Call]]:
    """Cut calls into three parts, each twice the one before.

    Examples
    --------
    >>> from mosaic.core.workload import PROPOSE, CallKey
    >>> calls = [Call(CallKey(f"q{i}", PROPOSE, 0), "A", 10) for i in range(70)]
    >>> [[len(part) for part in thirds(calls[:number])] for number in (8, 70)]
    [[1, 2, 5], [10, 20, 40]]
    """
    small, middle = len(calls) // SHARES, 2 * len(calls) // SHARES
    bounds = accumulate((small, middle, len(calls) - small - middle), initial=0)
    return [calls[low:high] for low, high in pairwise(bounds)]


def sessions_in_thirds(calls: Sequence[Call], experts: Iterable[Expert], site: Places) -> tuple[Session, ...]:
    """Cut each expert's calls into three sessions; workers take turns.

    Sizes outside, experts inside, as in a sweep: an expert is loaded for each of its sessions, as in a batch.
    """
    by_expert: dict[ExpertName, list[Call]] = {}
    for call in calls:
        by_expert.setdefault(call.expert, []).append(call)
    used = [expert for expert in experts if expert.name in by_expert]
    parts = {name: thirds(own) for name, own in by_expert.items()}
    sessions: list[Session] = []
    for index in range(3):
        for expert in used:
            if part := parts[expert.name][index]:
                number = len(sessions)
                sessions.append(_session(number, expert, part, site, number + number // len(used)))
    return tuple(sessions)


def one_session_each(calls: Sequence[Call], experts: Iterable[Expert], site: Places) -> tuple[Session, ...]:
    """Give each expert one session with all of its calls; workers take turns, and the longest come first."""
    pool = {expert.name: expert for expert in experts}
    counts = Counter(call.expert for call in calls)
    return tuple(
        _session(number, pool[name], [call for call in calls if call.expert == name], site, number)
        for number, (name, _) in enumerate(counts.most_common())
    )


def waves_of(shards: Iterable[Sequence[Call]], places: Sequence[tuple[int, ...]]) -> list[tuple[Session, ...]]:
    """Spread each shard evenly over all places; a wave starts when the one before it has ended."""
    waves: list[tuple[Session, ...]] = []
    barrier: tuple[int, ...] = ()
    for shard in shards:
        parts = split_evenly(len(shard), len(places))
        wave = replica_sessions(shard, places, parts, first_id=sum(map(len, waves)), after=barrier)
        barrier = tuple(session.id for session in wave)
        waves.append(wave)
    return waves


def waves_in_thirds(calls: Sequence[Call], places: Sequence[tuple[int, ...]]) -> list[tuple[Session, ...]]:
    """Cut calls into waves of three sizes, on as many places as they price; none: they are too few."""
    places = places[: len(calls) // SHARES]
    return waves_of(thirds(calls), places) if places else []


def _session(number: int, expert: Expert, calls: Sequence[Call], site: Places, turn: int) -> Session:
    places = site.places(replace(expert, max_replicas=None))
    keys = tuple(call.key for call in calls)
    workers = places[turn % len(places)]
    return Session(id=number, expert=expert.name, node=calls[0].key.node, workers=workers, shard=keys)
