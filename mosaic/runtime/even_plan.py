"""Spreads calls over workers by no price, for what is asked before there is one."""

from collections.abc import Mapping, Sequence

from mosaic.core.errors import InfeasibleError
from mosaic.core.plan import Plan, Session, unpriced_plan
from mosaic.core.workload import Call, Expert
from mosaic.planning.schedulers.shards import replica_sessions, split_evenly
from mosaic.runtime.replanning import Replanning
from mosaic.runtime.site import Site


def even_plan(calls: Sequence[Call], experts: Sequence[Expert], site: Site, num_workers: int) -> Plan:
    """Spread calls evenly over as many replicas as each expert may have, by no price; experts may be named twice."""
    sessions: list[Session] = []
    for expert in {expert.name: expert for expert in experts}.values():
        mine = [call for call in calls if call.expert == expert.name]
        if mine:
            places = site.places(expert)
            parts = split_evenly(len(mine), len(places))
            sessions += replica_sessions(mine, places, parts, first_id=len(sessions))
    return unpriced_plan(sessions, num_workers=num_workers)


def spread_anew(experts: Sequence[Expert], site: Site, num_workers: int) -> Replanning:
    """Make a controller that spreads what lost workers leave evenly over the others."""

    def plan(left: Sequence[Call], lost: Mapping[int, str]) -> Plan:
        made = even_plan(left, experts, site, num_workers)
        if hit := [session.expert for session in made.sessions if not lost.keys().isdisjoint(session.workers)]:
            raise InfeasibleError(f"no place is left for {hit[0]}")
        return made

    return Replanning(plan)
