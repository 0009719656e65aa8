"""Plans layers that follow each other without a barrier: an expert that serves again stays loaded on its worker.

NOTE: the idea. A scheduler plans each layer for empty workers. On workers of one kind any permutation of a plan costs
the same. So the permutation is chosen in which most workers continue with their loaded expert. That expert serves its
calls of the next layer first, and needs no load. In the layer before, each worker ends with the expert that has the
most calls in the next layer. So early calls of that layer find it loaded.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from mosaic.core.cluster import Cluster
from mosaic.core.plan import Plan, Session
from mosaic.core.workload import ExpertName
from mosaic.planning.plan_check import check_plan
from mosaic.planning.problem import Problem
from mosaic.planning.scheduler import predict_times


def stay(
    plan: Plan,
    problem: Problem,
    *,
    resident: Mapping[int, ExpertName],
    num_later: Mapping[ExpertName, int],
    lost: Collection[int] = (),
) -> Plan:
    """Permute a plan's workers and sessions so that experts stay loaded; predictions are for empty workers.

    Parameters
    ----------
    plan, problem
        Of a layer.
    resident
        By worker: its loaded expert when the layer starts.
    num_later
        By expert: the expected number of its calls in the next layer.
    lost
        Lost workers.
    """
    if any(session.after or len(session.workers) > 1 for session in plan.sessions):
        return plan  # gangs, or an order that the scheduler has fixed
    number_of = relabelled(plan.sessions, problem.cluster, resident, lost)
    moved = [replace(session, workers=(number_of[session.workers[0]],)) for session in plan.sessions]

    def order(session: Session) -> tuple[bool, int]:
        return resident.get(session.workers[0]) != session.expert, num_later.get(session.expert, 0)

    sessions = tuple(replace(session, id=place) for place, session in enumerate(sorted(moved, key=order)))
    settled = replace(plan, sessions=sessions, predicted=predict_times(problem, sessions))
    check_plan(settled, problem)
    return settled


def relabelled(
    sessions: Sequence[Session], cluster: Cluster, resident: Mapping[int, ExpertName], lost: Collection[int]
) -> dict[int, int]:
    """Match a plan's workers to those of their kind that hold one of their experts; others stay if they can.

    Examples
    --------
    >>> from mosaic.core.cluster import Gpu, uniform_cluster
    >>> cluster = uniform_cluster(name="three", num_workers=3, gpu=Gpu(name="g", memory_bytes=1))
    >>> made = [Session(id=i, expert=name, node="n", workers=(i,)) for i, name in enumerate("ABC")]
    >>> relabelled(made, cluster, {0: "C", 1: "A", 2: "D"}, ())
    {0: 1, 2: 0, 1: 2}
    """
    wanted: dict[int, set[ExpertName]] = {}
    for session in sessions:
        wanted.setdefault(session.workers[0], set()).add(session.expert)
    kind = {worker.id: worker.gpu for worker in cluster.workers}
    free = [worker.id for worker in cluster.workers if worker.id not in lost]
    number_of: dict[int, int] = {}
    for worker, experts in wanted.items():
        homes = [home for home in free if kind[home] == kind[worker] and resident.get(home) in experts]
        if homes:
            number_of[worker] = worker if worker in homes else homes[0]
            free.remove(number_of[worker])
    for worker in wanted.keys() - number_of.keys():
        alike = [other for other in free if kind[other] == kind[worker]]
        number_of[worker] = worker if worker in alike else alike[0]
        free.remove(number_of[worker])
    return number_of
