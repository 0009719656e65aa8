"""Predicted against measured: durations of plan, simulated and measured run side by side, and what is made of them."""

from dataclasses import replace

import polars as pl
import pytest
from msgspec import structs

from experiments.studies.validation import SESSION, compare, durations, kendall_tau, spread_frac, total_error
from mosaic.core.plan import PredictedTimes
from mosaic.core.results import CallStatus
from tests.factories import make_plan, make_session, some_calls
from tests.run_records import make_record, make_result
from tests.run_records import make_session as session_record

A, B = some_calls("A", 4), some_calls("B", 2)
PLAN = replace(
    make_plan(make_session(0, A), make_session(1, B, workers=(1,))),
    predicted=(PredictedTimes(0.0, 1.0, 12.0), PredictedTimes(0.0, 1.0, 4.0)),
)


def record(call, session, finished_ts):
    return make_record(
        key=call.key, expert=call.expert, session=session, workers=(session,), queued_ts=0.0, admitted_ts=0.0,
        first_token_ts=0.5, finished_ts=finished_ts,
    )  # fmt: skip


def run(load_s, serve_s, *, order=(0, 1, 2, 3), cpu_s=None):
    """Session 0 on worker 0 serves A in some order; session 1 on worker 1 takes half as long."""
    sessions = [
        session_record(number, workers=(number,), load=(0.0, load_s), end_ts=load_s + share * serve_s)
        for number, share in ((0, 1.0), (1, 0.5))
    ]
    calls = [record(call, 0, load_s + serve_s * (1 + order[i]) / 4) for i, call in enumerate(A)]
    calls += [record(call, 1, load_s + serve_s / 2) for call in B]
    return make_result(*(replace(session, cpu_s=cpu_s) for session in sessions), calls=tuple(calls))


def table(*measured):
    """The rows of a plan's runs, one a repeat."""
    runs = [durations(PLAN, run(1.0, 9.0), each) for each in measured]
    rows = [{"repeat": number, "plan": "ilp", **row} for number, found in enumerate(runs) for row in found]
    return pl.DataFrame(rows, infer_schema_length=None)


def test_a_run_is_its_makespan_its_workers_and_its_sessions() -> None:
    rows = durations(PLAN, run(1.0, 9.0), run(2.0, 8.0, cpu_s=6.0))
    found = [(row["part"], row["planned_s"], row["simulated_s"], row["measured_s"]) for row in rows]
    assert found == [
        ("makespan", 12.0, 10.0, 10.0), ("worker", 12.0, 10.0, 10.0), ("worker", 4.0, 5.5, 6.0),
        ("load", 1.0, 1.0, 2.0), ("serve", 11.0, 9.0, 8.0), ("load", 1.0, 1.0, 2.0), ("serve", 3.0, 4.5, 4.0),
    ]  # fmt: skip
    assert [(row["session"], row["expert"], row["num_calls"]) for row in rows[3:]] == [
        (0, "A", 4), (0, "A", 4), (1, "B", 2), (1, "B", 2),
    ]  # fmt: skip
    assert rows[0]["cpu_frac"] == pytest.approx(12.0 / 16.0), "of the sessions' 10 and 6 seconds"
    assert durations(PLAN, run(1.0, 9.0), run(2.0, 8.0))[0]["cpu_frac"] is None


def test_the_order_of_finishes_is_compared_within_a_session() -> None:
    def taus(order):
        rows = durations(PLAN, run(1.0, 8.0), run(1.0, 8.0, order=order))
        return [row["order_tau"] for row in rows if row["part"] == "serve"]

    assert taus((0, 1, 2, 3)) == [pytest.approx(1.0), None], "calls that end together have no order"
    assert taus((3, 2, 1, 0))[0] == pytest.approx(-1.0)
    assert taus((1, 0, 2, 3))[0] == pytest.approx(4 / 6)
    assert kendall_tau([1.0, 1.0], [1.0, 2.0]) is None


def test_a_run_that_lacks_a_call_is_refused() -> None:
    broken = run(1.0, 8.0)
    first, *rest = broken.calls
    failed = replace(broken, calls=(structs.replace(first, status=CallStatus.FAILED), *rest))
    with pytest.raises(ValueError, match="finished calls of a run must be all 6, got 5"):
        durations(PLAN, run(1.0, 8.0), failed)


def test_errors_are_of_the_predicted_and_signed() -> None:
    runs = table(run(2.0, 8.0), run(2.0, 12.0))
    first, second = compare(runs, ["load", "serve"], SESSION)
    assert (first["mean_s"], second["mean_s"]) == (12.0, 7.0)
    assert first["simulated_error"] == pytest.approx(10 / 12 - 1)
    assert first["planned_error"] == pytest.approx(0.0)
    (makespan,) = compare(runs, ["makespan"])
    assert (makespan["measured_s"], makespan["spread"]) == (
        [10.0, 14.0],
        pytest.approx((14 / 10 - 1 + 1 - 10 / 14) / 2),
    )
    assert total_error([first, second]) == pytest.approx(15.5 / 19 - 1)


def test_the_repeats_predict_each_other() -> None:
    assert spread_frac([2.0, 2.0, 2.0]) == 0.0
    assert spread_frac([1.0, 2.0]) == pytest.approx((1.0 + 0.5) / 2)
    assert spread_frac([1.0, 2.0, 3.0]) == pytest.approx((1.5 + 0.0 + 0.5) / 3)
