"""Hand-computed plans of the four baselines."""

import pytest

from mosaic.core.plan import Plan
from mosaic.planning.baselines import DataParallel, Fifo, LeastLoaded, RoundRobin, windows
from mosaic.planning.scheduler import split_calls
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


FOUR = {"A": 2, "B": 1, "C": 30, "D": 1}
ONE_LARGE = make_mixed_cluster(make_gpu("small"), make_gpu("small"), make_gpu("large"))


@pytest.mark.parametrize(
    ("scheduler", "num_calls", "changes", "placed", "seconds"),
    [
        pytest.param(
            RoundRobin(), {"A": 1, "B": 1, "C": 1}, {"num_workers": 4, "tp_degree": {"A": 2, "B": 2, "C": 1}},
            [("A", (0, 1), 1), ("B", (2, 3), 1), ("C", (2,), 1)], 22.0, id="round robin deals gangs in turn",
        ),
        pytest.param(
            RoundRobin(), {"A": 1, "B": 1}, {"cluster": ONE_LARGE, "misfits": [("A", "small")]},
            [("A", (2,), 1), ("B", (1,), 1)], 11.0, id="round robin moves on to the next worker that fits",
        ),
        # 10 s a load, 1 s a call: A on 0 until 12, B on 1 until 11, C on the less loaded 1, D on 0.
        pytest.param(
            LeastLoaded(), FOUR, {}, [("A", (0,), 2), ("B", (1,), 1), ("C", (1,), 30), ("D", (0,), 1)], 51.0,
            id="least loaded in first-seen order",
        ),
        pytest.param(
            LeastLoaded(longest_first=True), FOUR, {},
            [("C", (0,), 30), ("A", (1,), 2), ("B", (1,), 1), ("D", (1,), 1)], 40.0, id="the longest first",
        ),
        pytest.param(
            DataParallel(), {"A": 2}, {"num_workers": 4}, [("A", (0,), 1), ("A", (1,), 1)], 11.0,
            id="data parallel leaves workers out when calls are few",
        ),
        pytest.param(
            Fifo(window_questions=2), {"A": 4}, {"num_workers": 1}, [("A", (0,), 2), ("A", (0,), 2)], 14.0,
            id="fifo keeps an expert resident into the next window",
        ),
        # A: 0-13, B: 0-12, then A again goes to worker 1, where it must load again.
        pytest.param(
            Fifo(window_questions=5), {"A": 5, "B": 2}, {}, [("A", (0,), 3), ("B", (1,), 2), ("A", (1,), 2)], 24.0,
            id="fifo sends a session to the worker free first",
        ),
        pytest.param(
            RoundRobin(), {"A": 5, "B": 1}, {"tp_degree": {"A": 1, "B": 2}}, [("A", (0,), 5), ("B", (0, 1), 1)], 26.0,
            id="a gang waits for its busiest worker",
        ),
    ],
)  # fmt: skip
def test_plans_by_hand(scheduler, num_calls, changes, placed, seconds) -> None:
    plan = scheduler.plan(make_problem(num_calls, **changes))
    assert where(plan) == placed
    assert plan.predicted_makespan_s == seconds


def test_data_parallel_waits_for_every_replica_of_the_expert_before() -> None:
    plan = DataParallel().plan(make_problem({"A": 3, "B": 2}))
    assert where(plan) == [("A", (0,), 2), ("A", (1,), 1), ("B", (0,), 1), ("B", (1,), 1)]
    assert [session.after for session in plan.sessions] == [(), (), (0, 1), (0, 1)]
    assert [times.start_s for times in plan.predicted] == [0.0, 0.0, 12.0, 12.0]


def test_fifo_windows_group_by_question_not_by_call() -> None:
    calls = [make_call(f"q{i}", expert=expert, slot=slot) for i in range(3) for slot, expert in enumerate("AB")]
    assert [{name: len(group) for name, group in window.items()} for window in windows(calls, 2)] == [
        {"A": 2, "B": 2},
        {"A": 1, "B": 1},
    ]


def test_shards_are_interleaved_so_that_they_are_alike() -> None:
    calls = make_calls({"A": 100})
    ranks = [[int(key.question[1:]) for key in shard] for shard in split_calls(calls, (50, 30, 20))]
    assert [len(shard) for shard in ranks] == [50, 30, 20]
    assert all(abs(sum(shard) / len(shard) - 49.5) < 2 for shard in ranks)


def test_shard_sizes_must_add_up() -> None:
    with pytest.raises(ValueError, match=r"add up to 3 calls, got \[1, 1\]"):
        split_calls(make_calls({"A": 3}), (1, 1))
