"""Hand-computed plans of the four baselines."""

import pytest

from mosaic.core.plan import Plan
from mosaic.planning.baselines import DataParallel, Fifo, LeastLoaded, RoundRobin, windows
from mosaic.planning.scheduler import predict_times, split_calls
from tests.factories import (
    make_call,
    make_calls,
    make_gpu,
    make_mixed_cluster,
    make_paper_problem,
    make_problem,
    worker_queue,
)


def where(plan: Plan) -> list[tuple[str, tuple[int, ...], int]]:
    return [(session.expert, session.workers, len(session.shard)) for session in plan.sessions]


def test_round_robin_reproduces_the_papers_placement() -> None:
    plan = RoundRobin().plan(make_paper_problem("mmlu_pro"))
    assert [[session.expert for session in worker_queue(plan, worker)] for worker in range(4)] == [
        ["Gemma", "Exaone"],
        ["QwenR1", "GLM"],
        ["Qwen"],
        ["LlamaR1"],
    ]


def test_round_robin_deals_gangs_in_turn() -> None:
    plan = RoundRobin().plan(make_problem({"A": 1, "B": 1, "C": 1}, num_workers=4, tp_degree={"A": 2, "B": 2, "C": 1}))
    assert where(plan) == [("A", (0, 1), 1), ("B", (2, 3), 1), ("C", (2,), 1)]


def test_round_robin_moves_on_to_the_next_worker_that_fits() -> None:
    cluster = make_mixed_cluster(make_gpu("small"), make_gpu("small"), make_gpu("large"))
    plan = RoundRobin().plan(make_problem({"A": 1, "B": 1}, cluster=cluster, misfits=[("A", "small")]))
    assert where(plan) == [("A", (2,), 1), ("B", (1,), 1)]


def test_least_loaded_places_in_first_seen_order() -> None:
    # 10 s a load, 1 s a call: A on 0 until 12, B on 1 until 11, C on the less loaded 1, D on 0.
    plan = LeastLoaded().plan(make_problem({"A": 2, "B": 1, "C": 30, "D": 1}))
    assert where(plan) == [("A", (0,), 2), ("B", (1,), 1), ("C", (1,), 30), ("D", (0,), 1)]
    assert plan.predicted_makespan_s == 51.0


def test_least_loaded_longest_first_balances_better() -> None:
    problem = make_problem({"A": 2, "B": 1, "C": 30, "D": 1})
    plan = LeastLoaded(longest_first=True).plan(problem)
    assert where(plan)[0] == ("C", (0,), 30)
    assert plan.predicted_makespan_s == 40.0


def test_data_parallel_waits_for_every_replica_of_the_expert_before() -> None:
    plan = DataParallel().plan(make_problem({"A": 3, "B": 2}))
    assert where(plan) == [("A", (0,), 2), ("A", (1,), 1), ("B", (0,), 1), ("B", (1,), 1)]
    assert [session.after for session in plan.sessions] == [(), (), (0, 1), (0, 1)]
    assert [times.start_s for times in plan.predicted] == [0.0, 0.0, 12.0, 12.0]
    assert plan.predicted_makespan_s == 23.0


def test_data_parallel_leaves_workers_out_when_calls_are_few() -> None:
    plan = DataParallel().plan(make_problem({"A": 2}, num_workers=4))
    assert where(plan) == [("A", (0,), 1), ("A", (1,), 1)]


def test_fifo_windows_group_by_question_not_by_call() -> None:
    calls = [make_call(f"q{i}", expert=expert, slot=slot) for i in range(3) for slot, expert in enumerate("AB")]
    assert [{name: len(group) for name, group in window.items()} for window in windows(calls, 2)] == [
        {"A": 2, "B": 2},
        {"A": 1, "B": 1},
    ]


def test_fifo_keeps_an_expert_resident_into_the_next_window() -> None:
    problem = make_problem({"A": 4}, num_workers=1)
    plan = Fifo(window_questions=2).plan(problem)
    assert where(plan) == [("A", (0,), 2), ("A", (0,), 2)]
    assert [times.load_s for times in plan.predicted] == [10.0, 0.0]
    assert plan.predicted_makespan_s == 14.0


def test_fifo_sends_a_session_to_the_worker_free_first() -> None:
    # A: 0-13, B: 0-12, then A again goes to worker 1, where it must load again.
    problem = make_problem({"A": 5, "B": 2}, calls=make_calls({"A": 5, "B": 2}))
    plan = Fifo(window_questions=5).plan(problem)
    assert where(plan) == [("A", (0,), 3), ("B", (1,), 2), ("A", (1,), 2)]
    assert plan.predicted_makespan_s == 24.0


def test_shards_are_interleaved_so_that_they_are_alike() -> None:
    calls = make_calls({"A": 100})
    ranks = [[int(key.question[1:]) for key in shard] for shard in split_calls(calls, (50, 30, 20))]
    assert [len(shard) for shard in ranks] == [50, 30, 20]
    assert all(abs(sum(shard) / len(shard) - 49.5) < 2 for shard in ranks)


def test_shard_sizes_must_add_up() -> None:
    with pytest.raises(ValueError, match=r"add up to 3 calls, got \[1, 1\]"):
        split_calls(make_calls({"A": 3}), (1, 1))


def test_gang_waits_for_its_busiest_worker() -> None:
    problem = make_problem({"A": 5, "B": 1}, num_workers=2, tp_degree={"A": 1, "B": 2})
    plan = RoundRobin().plan(problem)
    assert predict_times(problem, plan.sessions)[1].start_s == 15.0
