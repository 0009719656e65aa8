from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from mosaic.core.results import RunResult
from mosaic.core.workload import AGGREGATE
from mosaic.report.summary_text import describe_disturbances, describe_point, describe_run
from tests.run_records import (
    make_disturbed_run,
    make_failed,
    make_result,
    make_session,
    make_small_run,
    make_stage_summary,
    make_two_stage_run,
    summarise_small,
    summarise_two_stages,
)

NOTE = (
    "calibrated: 245 questions are too few to promise a loss of at most 1 pp at 95% confidence (they could promise "
    "1.7 pp at threshold 1): nothing is skipped"
)


def describe_stages(notes: Sequence[str] = (), **changes: object) -> str:
    run = make_two_stage_run()
    return describe_run(summarise_two_stages(run, **changes), run, "results/runs/x", gate_notes=notes)


def describe(
    result: RunResult, folder: str = "results/runs/x", errors: Mapping[str, int] | None = None, **changes: object
) -> str:
    return describe_run(summarise_small(result) | changes, result, folder, errors=errors)


def assert_fits(text: str) -> list[str]:
    """Check that a screen has 24 lines of 100 columns at most."""
    lines = text.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100
    return lines


def test_screen_tells_makespan_against_prediction_and_bound():
    text = describe(make_small_run())
    assert "ilp on mmlu_pro: 3 questions, 3 calls, 2 workers (backend sim, costs paper, seed 3)" in text
    assert "80.0 s   predicted 72.0 s (10.0% less)   true lower bound 60.0 s (x 1.333)" in text
    assert "25.0% of the workers' time; loading 15.6% in 3 loads" in text
    assert "33 written, 0 per second; 2 preemptions" in text
    assert "optimal, gap 1.39%, bound of the model 71.0 s, 12 variables, 15 constraints" in text
    assert "mosaic compare results/runs" in text


def test_screen_and_line_say_what_disturbed_the_run():
    said = " ".join(describe(make_disturbed_run()).split())
    assert "DISTURBED resumed once (at 20.0 s, after a pause of 60.0 s) and lost worker 1 at 45.0 s: " in said
    assert "the times include it, and compare.py leaves this run out" in said
    assert "DISTURBED" not in describe(make_small_run())
    summary = summarise_two_stages(make_disturbed_run())
    assert ", DISTURBED: resumed once (at 20.0 s, after a pause of 60.0 s) and lost" in describe_point(summary, "p")
    assert "DISTURBED" not in describe_point(summarise_two_stages(make_two_stage_run()), "p")


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
    assert_fits(describe(make_result(*sessions, num_workers=num_workers), num_failed_calls=3))


def test_failed_calls_show_their_commonest_error():
    errors = {"A refused": 2, "B cannot be loaded: no memory; see runs/worker-0.log": 9, "C refused": 1}
    text = describe(make_small_run(), errors=errors, num_failed_calls=12)
    assert (
        "  FAILED    12 calls have no result, 9 of them: B cannot be loaded: no memory; see runs/worker-0.log\n" in text
    )
    unknown = describe(make_small_run(), num_failed_calls=12)
    assert "  FAILED    12 calls have no result: see calls.parquet\n" in unknown
    assert "FAILED" not in describe(make_small_run(), errors=errors)


@pytest.mark.parametrize("num_workers", [1, 8, 64])
def test_a_long_error_is_shown_in_lines_and_its_files_stay_whole(num_workers):
    log = "results/the-first-run-of-many/journal/experts/worker-0.log"
    sessions = [make_session(i, workers=(i,), end_ts=50.0) for i in range(num_workers)]
    for length in range(100, 300, 7):
        error = f"A cannot be loaded: {('what it has to say of it ' * 12)[:length]}; see {log}; correct it"
        text = describe(make_result(*sessions, num_workers=num_workers), errors={error: 3}, num_failed_calls=3)
        assert_fits(text)
        assert log in text
    endless = describe(make_result(*sessions, num_workers=num_workers), errors={error * 9: 3}, num_failed_calls=3)
    assert_fits(endless)
    assert " ...\n" in endless


@pytest.mark.parametrize("num_lost", [0, 1, 9])
@pytest.mark.parametrize("notes", [(), (NOTE,), (NOTE, NOTE)])
def test_screen_of_a_disturbed_run_fits_24_lines_of_100_columns(num_lost, notes):
    run = make_two_stage_run()
    disturbed = make_disturbed_run()
    run = replace(run, resumptions=3 * disturbed.resumptions, lost_workers=num_lost * disturbed.lost_workers)
    errors = {"A cannot be loaded: " + 90 * "cause ": 1}
    text = describe_run(
        summarise_two_stages(run) | {"num_failed_calls": 1}, run, "results/runs/x", gate_notes=notes, errors=errors
    )
    lines = assert_fits(text)
    assert sum("worker " in line and "busy" in line for line in lines) >= 1
    assert "FAILED" in text


@pytest.mark.parametrize("errors", [None, {"A cannot be loaded: " + 90 * "cause ": 1}])
@pytest.mark.parametrize("notes", [(), (NOTE,), (NOTE, NOTE)])
@pytest.mark.parametrize("num_workers", [1, 4, 8, 64])
def test_screen_of_two_stages_fits_24_lines_of_100_columns(num_workers, notes, errors):
    sessions = [make_session(i, workers=(i,), end_ts=50.0 + i) for i in range(num_workers)]
    gang = make_session(
        99, expert="Z", workers=tuple(range(num_workers)), load=(200.0, 210.0), end_ts=300.0, node=AGGREGATE
    )
    run = make_result(*sessions, gang, num_workers=num_workers)
    text = describe_run(summarise_two_stages(run), run, "results/runs/x", gate_notes=notes, errors=errors)
    lines = assert_fits(text)
    assert sum("worker " in line and "busy" in line for line in lines) >= (1 if errors else min(num_workers, 4))
    if errors is None:
        assert ("workers that were busy for less" in text) == (num_workers == 64 or (num_workers == 8 and notes != ()))
    assert "calls have no result" in text, "the record of the aggregator's call is missing here"


def test_screen_tells_what_the_second_stage_cost_and_gave():
    text = describe_stages()
    assert "3 questions, 3 + 1 calls, 2 workers" in text
    assert "25.0% of the workers' time; loading 15.6% in 3 of 4 loads" in text, "the expert stage's, as the lanes are"
    assert "makespan  100.0 s end to end, of which the aggregator 20.0 s (predicted 18.0 s)\n" in text
    assert "experts   80.0 s   predicted 72.0 s (10.0% less)   true lower bound 60.0 s (x 1.333)\n" in text
    assert "gate      majority: 66.7% (fitted) skipped; 1 questions to Z (tp 2)\n" in text
    assert "saved     30.0 s of the 50.0 s that aggregating everything takes\n" in text
    assert "1 questions to Z (tp 2); 3 too long for it\n" in describe_stages(num_too_long=3)
    assert "accuracy  62.50% (its level is fitted), +2.50 pp against aggregating everything\n" in text
    assert "aggregator=tp4: priced by affine\n" in describe_stages(aggregator_costs="affine")
    both = describe_stages(aggregator_scheduler="data_parallel", aggregator_costs="affine")
    assert "aggregator=tp4: planned by data_parallel, priced by affine\n" in both


def test_screen_leaves_out_what_is_not_known_of_the_second_stage():
    text = describe_stages(
        accuracy_frac=None, always_aggregate_accuracy_frac=None, always_aggregate_s=None, skip_frac_source="measured",
        backend="vllm",
    )  # fmt: skip
    assert "majority: 66.7% skipped" in text
    for word in ("saved", "accuracy", "None"):
        assert word not in text
    assert "accuracy  62.50% (its level is fitted)\n" in describe_stages(always_aggregate_accuracy_frac=None)
    assert "saved     for a batch of this size summary=full computes it\n" in describe_stages(always_aggregate_s=None)
    assert "saved" not in describe_stages(always_aggregate_s=None, backend="vllm"), "engines replay fitted answers once"
    measured = describe_stages(skip_frac_source="measured")
    assert "accuracy  62.50%, +2.50 pp against aggregating everything\n" in measured


def test_screen_says_that_no_question_was_left_to_the_aggregator():
    run = make_small_run()
    stage = make_stage_summary(
        aggregator_tp_degree=None, num_aggregator_calls=0, predicted_aggregator_s=0.0, skip_frac=1.0
    )
    summary = summarise_small(run, gate="unanimous", answers=stage)
    text = describe_run(summary, run, "results/runs/x")
    assert "80.0 s end to end, of which the aggregator 0.0 s\n" in text
    assert "gate      unanimous: 100.0% (fitted) skipped\n" in text
    assert "saved     50.0 s of the 50.0 s" in text


def test_what_a_gate_says_of_its_promise_is_never_cut_off():
    lines = describe_stages([NOTE], gate="calibrated").splitlines()
    first = next(number for number, line in enumerate(lines) if "too few to promise" in line)
    assert " ".join(line.strip() for line in lines[first : first + 2]) == NOTE
    assert all(line.startswith(" " * 12) for line in lines[first : first + 2])


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
        (
            {"status": "time_limit", "bound_s": 9.0, "gap_frac": None, "num_vars": None},
            "time_limit, bound of the model 9.0 s",
        ),
    ],
)
def test_solver_line_says_only_what_is_known(solve, line):
    assert f"solver    {line}\n" in describe(make_small_run(), solve=solve)


def test_a_point_of_a_sweep_takes_a_line():
    run = make_small_run()
    summary = summarise_small(run)
    line = "seed=3: makespan 80.0 s, predicted 72.0 s, idle 25.0%"
    assert describe_point(summary, "seed=3") == line
    assert describe_point(summary | {"num_failed_calls": 2}, "seed=3") == f"{line}, FAILED: 2 calls have no result"


def test_a_point_of_two_stages_tells_skips_time_and_accuracy():
    summary = summarise_two_stages(make_two_stage_run())
    line = (
        "seed=3: experts 80.0 s, predicted 72.0 s, idle 25.0%, end to end 100.0 s, skipped 66.7% (fitted), "
        "accuracy 62.5%"
    )
    assert describe_point(summary, "seed=3") == line
    assert describe_point(summary | {"accuracy_frac": None}, "seed=3") == line.removesuffix(", accuracy 62.5%")


# What disturbed a run.

ONCE = [{"ts": 41.2, "pause_s": 60.0}]
TWICE = [*ONCE, {"ts": 1000.0, "pause_s": 5.0}]
UNKNOWN = [{"ts": 41.2, "pause_s": None}]
LOST = [{"ts": 12.0, "worker": 2, "cause": "unplugged"}]


@pytest.mark.parametrize(
    ("resumptions", "lost", "text"),
    [
        ([], [], ""),
        (None, None, ""),
        (ONCE, [], "resumed once (at 41.2 s, after a pause of 60.0 s)"),
        (UNKNOWN, [], "resumed once (at 41.2 s, after a pause that is not known)"),
        (TWICE, [], "resumed 2 times (the last at 1,000.0 s, after a pause of 65.0 s in all)"),
        ([], LOST, "lost worker 2 at 12.0 s"),
        (ONCE, LOST * 2, "resumed once (at 41.2 s, after a pause of 60.0 s) and lost workers 2 at 12.0 s, 2 at 12.0 s"),
    ],
)
def test_what_disturbed_a_run_is_said_in_words(resumptions, lost, text):
    assert describe_disturbances({"resumptions": resumptions, "lost_workers": lost}) == text


def test_an_older_summary_says_nothing():
    assert describe_disturbances({"workload": "gpqa"}) == ""


def test_screen_says_what_simulated_times_rest_on():
    run = make_two_stage_run()
    kinds = ["x: off by 3%; extrapolated: batch 300 > 256", "y: no evidence"]
    lines = assert_fits(describe_run(summarise_two_stages(run), run, "results/runs/x", evidence=kinds))
    assert "  hardware  x: off by 3%; extrapolated: batch 300 > 256" in lines
    assert "            y: no evidence" in lines
    assert "hardware" not in describe_stages()
