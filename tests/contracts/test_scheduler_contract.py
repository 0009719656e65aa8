"""One suite for every scheduler of conf/scheduler, built as the command line builds it: a new file is tested too."""

from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from mosaic.core.errors import InfeasibleError
from mosaic.core.workload import AGGREGATE, PROPOSE, CallKey
from mosaic.planning.plan_file import plans_to_json
from mosaic.planning.problem import Problem
from mosaic.planning.scheduler import Scheduler
from tests.factories import (
    assert_plan_valid,
    make_call,
    make_gpu,
    make_mixed_cluster,
    make_paper_problem,
    make_problem,
)

CONF = Path(__file__).parents[2] / "conf" / "scheduler"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))


def build(name: str) -> Scheduler:
    return instantiate(OmegaConf.load(CONF / f"{name}.yaml"), _convert_="all")


@pytest.fixture(params=NAMES)
def scheduler(request: pytest.FixtureRequest) -> Scheduler:
    return build(request.param)


def test_a_plan_names_its_scheduler_leaves_out_who_has_no_calls_and_carries_remarks(scheduler: Scheduler) -> None:
    plan = scheduler.plan(make_problem({"A": 3, "idle": 0, "B": 2}, remarks=("A: priced beyond its sweep",)))
    assert plan.scheduler == scheduler.name
    assert (CONF / f"{scheduler.name}.yaml").exists(), "its name is the group's"
    assert {session.expert for session in plan.sessions} == {"A", "B"}
    assert set(plan.lengths) == {"A", "B"}
    assert plan.notes[-1] == "A: priced beyond its sweep"
    assert len(plan.notes) > 1


def aggregate_problem(tp_degree: int, *, num_calls: int = 9, num_workers: int = 4, needed: int = 3) -> Problem:
    """The second stage: W merges the answers of A and B, which the problem knows and has no calls for."""
    after = [tuple(CallKey(f"q{i}", PROPOSE, slot) for slot in range(needed)) for i in range(num_calls)]
    calls = [make_call(f"q{i}", expert="W", node=AGGREGATE, after=keys) for i, keys in enumerate(after)]
    degrees = {"W": tp_degree, "A": 1, "B": 1}
    return make_problem(dict.fromkeys("WAB", 1), calls=calls, num_workers=num_workers, tp_degree=degrees)


@pytest.mark.parametrize(
    "problem",
    [
        make_problem({"A": 3, "B": 2}),
        make_problem({"A": 1}, num_workers=4),
        make_problem({"A": 5, "B": 1, "C": 7}, num_workers=1),
        make_problem({"A": 4, "B": 3, "C": 2}, num_workers=4, tp_degree={"A": 4, "B": 2, "C": 1}),
        make_problem({"A": 6, "B": 6}, cluster=make_mixed_cluster(make_gpu("old"), make_gpu("new"), make_gpu("old"))),
        make_problem({"A": 2, "B": 2}, load_s=0.0),
        make_problem({"A": 3, "B": 3}, per_call_s=0.0),
        *(aggregate_problem(4, num_workers=num_workers) for num_workers in (4, 6, 8)),
        *(aggregate_problem(1, num_calls=num_calls) for num_calls in (1, 2, 9)),
    ],
    ids=lambda problem: f"{len(problem.calls)} calls of {[*problem.lengths]} on {problem.cluster.num_workers}",
)
def test_plan_serves_every_call_once_within_its_bound(scheduler: Scheduler, problem: Problem) -> None:
    plan = scheduler.plan(problem)
    assert_plan_valid(plan, problem)
    asked = {(call.expert, call.key.node) for call in problem.calls}
    assert {(session.expert, session.node) for session in plan.sessions} == asked


def test_a_benchmark_is_planned_and_the_same_problem_gives_the_same_bytes(scheduler: Scheduler) -> None:
    problem = make_paper_problem("gpqa")
    first, second = (scheduler.plan(each) for each in (problem, make_paper_problem("gpqa")))
    assert_plan_valid(first, problem)
    assert plans_to_json([first]) == plans_to_json([second])


def test_problem_without_calls_gives_an_empty_plan(scheduler: Scheduler) -> None:
    problem = make_problem({"A": 0})
    plan = scheduler.plan(problem)
    assert plan.sessions == ()
    assert plan.lower_bound_s == plan.predicted_makespan_s == 0.0


def test_calls_keep_their_order_inside_a_session(scheduler: Scheduler) -> None:
    problem = make_problem({"A": 9, "B": 4}, num_workers=3, load_s=1.0)
    rank = {call.key: number for number, call in enumerate(problem.calls)}
    for session in scheduler.plan(problem).sessions:
        ranks = [rank[key] for key in session.shard]
        assert ranks == sorted(ranks)


def test_what_a_call_needs_of_an_earlier_run_changes_no_decision(scheduler: Scheduler) -> None:
    needing, free = (scheduler.plan(aggregate_problem(4, needed=needed)) for needed in (3, 0))
    assert needing.sessions == free.sessions


def test_expert_goes_only_where_it_fits(scheduler: Scheduler) -> None:
    cluster = make_mixed_cluster(make_gpu("small"), make_gpu("large"), make_gpu("small"))
    problem = make_problem({"A": 4, "B": 3}, cluster=cluster, misfits=[("A", "small")])
    plan = scheduler.plan(problem)
    assert_plan_valid(plan, problem)
    assert {session.workers for session in plan.sessions if session.expert == "A"} == {(1,)}


def test_model_larger_than_every_gpu_is_refused_with_its_size(scheduler: Scheduler) -> None:
    problem = make_problem({"A": 4, "B": 3}, misfits=[("B", "gpu")])
    with pytest.raises(InfeasibleError, match=r"expert 'B' fits on no .* 15\.0 GiB of weights.*usable: gpu 72\.0 GiB"):
        scheduler.plan(problem)


def test_gang_wider_than_the_cluster_is_refused(scheduler: Scheduler) -> None:
    with pytest.raises(InfeasibleError, match="expert 'A' spans 4 workers and cluster 'test-x2' has 2"):
        scheduler.plan(make_problem({"A": 4}, tp_degree=4))
