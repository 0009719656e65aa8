"""Plans of layers that follow each other: a permuted plan is as good on cold workers, and loads less on warm ones."""

from hypothesis import given
from hypothesis import strategies as st

from mosaic.core.plan import Session
from mosaic.planning.baselines import LeastLoaded, RoundRobin
from mosaic.planning.scheduler import make_plan, predict_times
from mosaic.planning.staying import stay
from tests.factories import assert_plan_valid, make_gpu, make_mixed_cluster, make_problem, worker_queue

EXPERTS = "ABCDE"
A, B = make_gpu("a"), make_gpu("b")


@st.composite
def layers(draw):
    """A problem on workers of one kind or two, its plan, what workers hold, and what the next layer asks."""
    cluster = make_mixed_cluster(*draw(st.lists(st.sampled_from([A, B]), min_size=1, max_size=5)))
    numbers = draw(st.dictionaries(st.sampled_from(EXPERTS), st.integers(1, 9), min_size=1))
    problem = make_problem(numbers, cluster=cluster, num_workers=len(cluster.workers))
    resident = draw(st.dictionaries(st.integers(0, len(cluster.workers) - 1), st.sampled_from(EXPERTS)))
    later = draw(st.dictionaries(st.sampled_from(EXPERTS), st.integers(0, 9)))
    scheduler = draw(st.sampled_from([LeastLoaded(), RoundRobin()]))
    return problem, scheduler.plan(problem), resident, later


def num_warm(sessions, resident) -> int:
    """Count the workers whose first session needs no load."""
    first = {}
    for session in sessions:
        first.setdefault(session.workers[0], session.expert)
    return sum(resident.get(worker) == expert for worker, expert in first.items())


@given(layers())
def test_a_permuted_plan_is_valid_costs_the_same_and_starts_warmer(case) -> None:
    problem, plan, resident, later = case
    settled = stay(plan, problem, resident=resident, num_later=later)
    assert_plan_valid(settled, problem)
    assert sorted((session.expert, session.shard) for session in settled.sessions) == sorted(
        (session.expert, session.shard) for session in plan.sessions
    )
    if len({worker.gpu for worker in problem.cluster.workers}) == 1:
        assert settled.predicted_makespan_s == plan.predicted_makespan_s
    assert num_warm(settled.sessions, resident) >= num_warm(plan.sessions, resident)


@given(layers())
def test_who_stays_is_asked_first_and_who_is_asked_again_last(case) -> None:
    problem, plan, resident, later = case
    settled = stay(plan, problem, resident=resident, num_later=later)
    for worker in range(plan.num_workers):
        queue = [session.expert for session in worker_queue(settled, worker)]
        assert resident.get(worker) not in queue[1:]
        others = [later.get(name, 0) for name in queue if name != resident.get(worker)]
        assert others == sorted(others)


def test_two_layers_on_three_workers_by_hand() -> None:
    """B and C go on where they are; A's worker is the one that is left."""
    problem = make_problem({"A": 3, "B": 3, "C": 3}, num_workers=3)
    shards = {name: tuple(call.key for call in problem.calls if call.expert == name) for name in "ABC"}
    sessions = [
        Session(id=place, expert=name, node="propose", workers=(place,), shard=shards[name])
        for place, name in enumerate("ABC")
    ]
    plan = make_plan(problem, scheduler="mine", sessions=sessions, lower_bound_s=0.0)
    settled = stay(plan, problem, resident={0: "C", 1: "D", 2: "B"}, num_later={})
    assert {session.expert: session.workers for session in settled.sessions} == {"C": (0,), "B": (2,), "A": (1,)}
    assert settled.predicted == predict_times(problem, settled.sessions)


def test_lost_workers_and_gangs_are_left_alone() -> None:
    problem = make_problem({"A": 3, "B": 3}, num_workers=3)
    plan = RoundRobin().plan(problem)
    settled = stay(plan, problem, resident={2: "A"}, num_later={}, lost={2})
    assert all(2 not in session.workers for session in settled.sessions)
    gangs = make_problem({"A": 3}, num_workers=2, tp_degree=2)
    wide = RoundRobin().plan(gangs)
    assert stay(wide, gangs, resident={0: "A"}, num_later={"A": 1}) is wide
