from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic.core.commands import Action, Submit
from mosaic.core.results import CallStatus, RunResult
from mosaic.core.workload import AGGREGATE
from mosaic.report.metrics import (
    busy_s_by_worker,
    gpu_shares,
    latency_s,
    load_s_by_worker,
    makespan_s,
    mean,
    num_loads,
    output_tokens,
    quantile,
    session_output_tok_per_s,
    tpot_s,
    ttft_s,
)
from tests.factories import make_call
from tests.run_records import (
    make_disturbed_run,
    make_failed,
    make_record,
    make_result,
    make_session,
    make_small_run,
    make_two_stage_run,
    summarise_small,
    summarise_two_stages,
)

KEYS = [
    "workload", "scheduler", "backend", "gate", "costs", "seed", "num_questions", "num_calls", "num_failed_calls",
    "num_cancelled_calls", "expert_makespan_s", "aggregator_s", "end_to_end_s", "predicted_expert_makespan_s",
    "expert_lower_bound_s", "gpu_idle_frac", "gpu_load_frac", "num_loads", "output_tokens", "wasted_tokens",
    "output_tok_per_s", "num_preemptions", "aggregator", "aggregator_expert", "aggregator_tp_degree",
    "aggregator_scheduler", "num_aggregator_calls", "num_too_long", "predicted_aggregator_s", "aggregator_costs",
    "skip_frac", "skip_frac_source", "accuracy_frac", "always_aggregate_s", "always_aggregate_accuracy_frac",
    "gate_report", "accuracy_change_pp", "aggregator_saved_s", "resumptions", "lost_workers", "solve", "num_workers",
    "experts", "problem_fingerprint",
]  # fmt: skip
STAGE_KEYS = KEYS[KEYS.index("aggregator") : KEYS.index("resumptions")]
"""Null in a run without a second stage."""


def test_a_summary_says_what_disturbed_the_run():
    summary = summarise_small(make_disturbed_run())
    assert summary["resumptions"] == [{"ts": 20.0, "pause_s": 60.0}]
    assert summary["lost_workers"] == [{"ts": 45.0, "worker": 1, "cause": "unplugged"}]
    undisturbed, planned = summarise_small(make_small_run()), summarise_small(None)
    assert (undisturbed["resumptions"], undisturbed["lost_workers"]) == ([], [])
    assert (planned["resumptions"], planned["lost_workers"]) == (None, None), "nothing ran"


def test_small_run_matches_the_numbers_worked_out_by_hand():
    result = make_small_run()
    assert makespan_s(result.sessions) == 80.0
    assert busy_s_by_worker(result.sessions, 2) == (80.0, 40.0)
    assert load_s_by_worker(result.sessions, 2) == (15.0, 10.0)
    assert gpu_shares(result) == pytest.approx((1 - 120 / 160, 25 / 160))
    assert (num_loads(result), output_tokens(result)) == (3, 33)


def test_summary_has_the_contract_keys_in_fixed_order_and_null_for_what_did_not_happen():
    summary = summarise_small(make_small_run())
    assert list(summary) == KEYS
    assert summary["solve"] == {
        "status": "optimal", "gap_frac": 0.0139, "bound_s": 71.0, "num_vars": 12, "num_constraints": 15,
    }  # fmt: skip
    assert [key for key in KEYS if summary[key] is None] == ["gate", "aggregator_s", *STAGE_KEYS]
    assert summary["expert_makespan_s"] == summary["end_to_end_s"] == 80.0
    assert (summary["predicted_expert_makespan_s"], summary["expert_lower_bound_s"]) == (72.0, 60.0)
    assert summary["output_tok_per_s"] == pytest.approx(33 / 80)
    assert summary["num_preemptions"] == 2


def test_summary_of_a_plan_that_was_not_run_is_null_and_not_zero():
    summary = summarise_small(None)
    assert list(summary) == KEYS
    assert summary["num_calls"] == 3
    assert summary["predicted_expert_makespan_s"] == 72.0
    measured = KEYS[KEYS.index("num_failed_calls") : KEYS.index("solve")]
    assert {summary[key] for key in measured if key != "predicted_expert_makespan_s"} == {None}


def test_run_without_sessions_has_no_makespan_and_no_shares():
    summary = summarise_small(make_result())
    assert summary["num_failed_calls"] == 3
    for key in ("expert_makespan_s", "end_to_end_s", "gpu_idle_frac", "gpu_load_frac", "output_tok_per_s"):
        assert summary[key] is None


def test_summary_of_two_stages_has_the_same_keys_and_counts_the_calls_of_both():
    report = {"threshold": None, "num_certify": 3}
    summary = summarise_two_stages(
        make_two_stage_run(), gate_report=report, accuracy_frac=None, always_aggregate_accuracy_frac=None
    )
    assert list(summary) == KEYS
    assert [summary[key] for key in STAGE_KEYS] == [
        "tp4", "Z", 2, "ilp", 1, 0, 18.0, "paper", 2 / 3, "fitted", None, 50.0, None, report, None, 30.0
    ]  # fmt: skip
    assert (summary["num_calls"], summary["num_failed_calls"], summary["output_tokens"]) == (4, 0, 44)
    assert summary["num_loads"] == 4
    assert (summary["expert_makespan_s"], summary["aggregator_s"], summary["end_to_end_s"]) == (80.0, 20.0, 100.0)
    assert (summary["predicted_expert_makespan_s"], summary["predicted_aggregator_s"]) == (72.0, 18.0)
    assert summary["output_tok_per_s"] == pytest.approx(44 / 100)
    assert summary["gpu_idle_frac"] == gpu_shares(make_small_run())[0]


def test_call_that_was_submitted_and_has_no_record_is_a_failed_one_and_one_that_was_only_expected_is_none():
    def failed(*actions: Action) -> tuple[int, int]:
        summary = summarise_two_stages(replace(make_small_run(), actions=actions))
        assert summary["aggregator_s"] is None
        return summary["num_calls"], summary["num_failed_calls"]

    merged = make_call("q0", expert="Z", node=AGGREGATE)
    assert failed(Action(80.0, "finished q2/propose/0", Submit(merged, 3))) == (4, 1)
    assert failed() == (3, 0)


def test_cancelled_calls_and_wasted_tokens_are_counted():
    lost = make_record("q0", status=CallStatus.CANCELLED, wasted_tokens=30)
    summary = summarise_small(make_result(make_session(), calls=(lost, make_record("q1", wasted_tokens=5))))
    assert (summary["num_cancelled_calls"], summary["num_failed_calls"], summary["wasted_tokens"]) == (1, 1, 35)


def test_failed_calls_are_those_without_a_settled_last_attempt():
    result = make_result(
        make_session(),
        calls=(
            make_failed("q0"),
            make_record("q0", attempt=1),  # the second attempt worked
            make_failed("q1", status=CallStatus.CANCELLED),
        ),
    )
    assert summarise_small(result)["num_failed_calls"] == 1  # q2 has no record at all
    assert output_tokens(result) == 11


def test_resident_expert_needs_no_second_load():
    result = make_result(make_session(0), make_session(1, load=(50.0, 50.0), end_ts=60.0))
    assert num_loads(result) == 1


def test_gang_keeps_all_its_workers_busy():
    result = make_result(make_session(workers=(0, 1)))
    assert gpu_shares(result) == pytest.approx((0.0, 0.2))


@pytest.mark.parametrize(
    ("record", "times"),
    [
        (make_record(), (2.0, 0.5, 7.0)),
        (make_record(output_tokens=1), (2.0, None, 7.0)),
        (make_record(output_tokens=0), (2.0, None, 7.0)),
        (make_failed("q0"), (None, None, None)),
    ],
)
def test_call_times_follow_their_definitions(record, times):
    assert (ttft_s(record), tpot_s(record), latency_s(record)) == times


def test_mean_and_quantile_leave_out_what_is_missing():
    assert mean([1.0, None, 3.0]) == 2.0
    assert mean([None]) is None
    assert quantile([None], 0.5) is None
    assert quantile([5.0], 0.99) == 5.0
    assert quantile([0.0, 10.0, None], 0.25) == 2.5


def test_session_throughput_leaves_the_load_out():
    assert session_output_tok_per_s(make_session()) == 10.0
    assert session_output_tok_per_s(make_session(end_ts=10.0)) is None


@st.composite
def runs(draw: st.DrawFn) -> RunResult:
    """Workers that take sessions one after the other, with waits between them."""
    num_workers = draw(st.integers(1, 4))
    durations = st.floats(0.0, 100.0)
    sessions = []
    for worker in range(num_workers):
        now = 0.0
        for _ in range(draw(st.integers(0, 4))):
            start = now + draw(durations)
            ready = start + draw(durations)
            now = ready + draw(durations)
            sessions.append(make_session(len(sessions), workers=(worker,), load=(start, ready), end_ts=now))
    return make_result(*sessions, num_workers=num_workers)


@given(runs())
def test_shares_are_shares_and_loading_is_busy(result):
    idle, load = gpu_shares(result)
    if makespan_s(result.sessions):
        assert 0.0 <= idle <= 1.0
        assert 0.0 <= load <= 1.0 - idle + 1e-9
    else:
        assert idle is None
        assert load is None


def test_a_worker_is_busy_once_while_sessions_load_or_serve_beside_each_other() -> None:
    first, second = make_session(0, load=(0.0, 1.0), end_ts=10.0), make_session(1, load=(4.0, 5.0), end_ts=12.0)
    apart = make_session(2, load=(20.0, 20.5), end_ts=21.0)
    assert busy_s_by_worker([first, second, apart], 1) == (13.0,)
