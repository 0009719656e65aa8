import pytest

from mosaic.metrics import summarise
from mosaic.results import RunResult
from mosaic.summary_text import describe_point, describe_run
from tests.run_records import make_failed, make_result, make_session, make_small_plan, make_small_run


def describe(result: RunResult, folder: str = "results/runs/x", **changes: object) -> str:
    summary = summarise(
        make_small_plan(), result, workload="mmlu_pro", backend="sim", gate=None, costs="paper", seed=3,
        num_questions=3, experts=("A", "B", "C"),
    )  # fmt: skip
    return describe_run(summary | changes, result, folder)


def test_screen_tells_makespan_against_prediction_and_bound():
    text = describe(make_small_run())
    assert "ilp on mmlu_pro: 3 questions, 3 calls, 2 workers (backend sim, costs paper, seed 3)" in text
    assert "80.0 s   predicted 72.0 s (-10.0%)   lower bound 60.0 s (x 1.333)" in text
    assert "25.0% of the workers' time; loading 15.6% in 3 loads" in text
    assert "33 written, 0 per second; 2 preemptions" in text
    assert "optimal, gap 1.39%, bound 71.0 s, 12 variables, 15 constraints" in text
    assert "python experiments/compare.py results/runs" in text


def test_lane_shows_load_generate_and_idle_to_scale():
    lines = describe(make_small_run()).splitlines()
    lane = next(line for line in lines if "worker 1" in line)
    assert "|////############................|" in lane  # 10 s of 80 are 4 columns of 32, 30 s are 12
    assert lane.endswith("busy      40 s  load   10 s  C")


@pytest.mark.parametrize("num_workers", [1, 4, 64])
def test_screen_fits_24_lines_of_100_columns(num_workers):
    sessions = [
        make_session(
            i, expert=f"a-long-name-{i}", workers=(i % num_workers,), load=(50.0 * i, 50.0 * i), end_ts=50.0 * i + 50
        )
        for i in range(3 * num_workers)
    ]
    lines = describe(make_result(*sessions, num_workers=num_workers), num_failed_calls=3).splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100


def test_long_folder_names_stay_whole():
    folder = "results/runs/" + "x" * 120
    assert folder in describe(make_small_run(), folder)


def test_large_clusters_show_the_busiest_workers_and_count_the_rest():
    sessions = [make_session(i, workers=(i,), end_ts=20.0 + i) for i in range(30)]
    text = describe(make_result(*sessions, num_workers=30))
    assert "worker 29" in text
    assert "worker 3 " not in text
    assert "and 20 workers that were busy for less" in text


def test_repeated_sessions_of_an_expert_are_counted():
    sessions = [make_session(i, load=(50.0 * i, 50.0 * i), end_ts=50.0 * i + 50) for i in range(3)]
    assert "A x3" in describe(make_result(*sessions))


def test_run_that_did_nothing_says_so_and_names_failed_calls():
    text = describe(make_result(calls=(make_failed("q0"),)))
    assert "nothing ran" in text
    assert "3 calls have no result" in text
    assert "makespan  none" in text


@pytest.mark.parametrize(
    ("solve", "line"),
    [
        ({"status": "heuristic", "bound_s": None}, "heuristic (a rule, nothing was solved)"),
        ({"status": "time_limit", "bound_s": None}, "time_limit"),
        ({"status": "time_limit", "bound_s": 9.0, "gap_frac": None, "num_vars": None}, "time_limit, bound 9.0 s"),
    ],
)
def test_solver_line_says_only_what_is_known(solve, line):
    assert f"solver    {line}\n" in describe(make_small_run(), solve=solve)


def test_a_point_of_a_sweep_takes_a_line():
    run = make_small_run()
    summary = summarise(
        make_small_plan(), run, workload="mmlu_pro", backend="sim", gate=None, costs="paper", seed=3,
        num_questions=3, experts=("A", "B", "C"),
    )  # fmt: skip
    line = "seed=3: makespan 80.0 s, predicted 72.0 s, idle 25.0%"
    assert describe_point(summary, "seed=3") == line
    assert describe_point(summary | {"num_failed_calls": 2}, "seed=3") == f"{line}, FAILED: 2 calls have no result"
