"""Predicted against measured: errors with the right sign, targets, reports that say what was found."""

import json
import math
from dataclasses import replace

import pytest

import experiments.validate as validate
from experiments.figures.validation import draw_validation
from experiments.studies.validation import (
    ComparedTime,
    compare,
    kendall_tau,
    margins,
    mean_makespan_error_frac,
    spread_frac,
    worst_session_error_frac,
)
from experiments.studies.validation_report import bias_lines, describe, figure_points, to_json, to_markdown, verdict
from mosaic.config import engines
from mosaic.core.errors import BackendError
from mosaic.core.plan import PredictedTimes
from mosaic.core.results import CallRecord, CallStatus, RunResult, SessionRecord
from mosaic.core.workload import PROPOSE
from mosaic.figures.style import png_bytes
from tests.commands.command_line import ROOT
from tests.engines.executor_runs import FAKE_ENGINE
from tests.engines.validation_runs import small_validation
from tests.factories import make_plan, make_session, some_calls

A, B = some_calls("A", 4), some_calls("B", 2)
PLAN = replace(
    make_plan(make_session(0, A), make_session(1, B, workers=(1,))),
    predicted=(PredictedTimes(0.0, 1.0, 12.0), PredictedTimes(0.0, 1.0, 4.0)),
)


def record(call, session, finished_ts):
    return CallRecord(
        key=call.key, expert=call.expert, session=session, workers=(session,), prompt_tokens=100, output_tokens=10,
        queued_ts=0.0, admitted_ts=0.0, first_token_ts=0.5, finished_ts=finished_ts,
    )  # fmt: skip


def run(load_s, serve_s, *, order=(0, 1, 2, 3)):
    """Session 0 on worker 0 serves A in some order; session 1 on worker 1 takes half as long."""
    sessions = tuple(
        SessionRecord(
            session=number, expert=expert, node=PROPOSE, workers=(number,), load_start_ts=0.0, load_s=load_s,
            start_ts=load_s, end_ts=load_s + share * serve_s, num_calls=1, output_tokens=10,
        )
        for number, expert, share in ((0, "A", 1.0), (1, "B", 0.5))
    )  # fmt: skip
    calls = [record(call, 0, load_s + serve_s * (1 + order[i]) / 4) for i, call in enumerate(A)]
    calls += [record(call, 1, load_s + serve_s / 2) for call in B]
    return RunResult(calls=tuple(calls), sessions=sessions, num_workers=2)


def test_errors_are_of_the_predicted_and_signed():
    compared = compare(PLAN, run(1.0, 9.0), [run(2.0, 8.0), run(2.0, 12.0)])
    first, second = compared.sessions
    assert first.load.error_frac == pytest.approx(-0.5)
    assert first.serve.error_frac == pytest.approx(-0.1)
    assert first.whole.error_frac == pytest.approx(10 / 12 - 1)
    assert first.whole.planned_error_frac == pytest.approx(0.0)
    assert second.whole.planned_s == 4.0
    assert (first.num_calls, first.expert, first.workers) == (4, "A", (0,))
    assert compared.makespan.measured_s == (10.0, 14.0)
    assert compared.makespan.error_frac == pytest.approx(10 / 12 - 1)
    assert [worker.mean_s for worker in compared.workers] == pytest.approx([12.0, 7.0])
    assert [worker.planned_s for worker in compared.workers] == [12.0, 4.0]
    assert mean_makespan_error_frac([compared]) == pytest.approx(1 / 6)
    assert worst_session_error_frac([compared]) == pytest.approx(1 - 5.5 / 7)


def test_the_order_of_finishes_is_compared_within_a_session():
    turned = run(1.0, 8.0, order=(3, 2, 1, 0))
    compared = compare(PLAN, run(1.0, 8.0), [run(1.0, 8.0), turned])
    assert compared.sessions[0].order_tau == pytest.approx(0.0)
    assert compared.sessions[0].repeat_tau == pytest.approx(-1.0)
    assert compared.sessions[1].order_tau is None, "calls that end together have no order"
    swapped = compare(PLAN, run(1.0, 8.0), [run(1.0, 8.0, order=(1, 0, 2, 3))])
    assert swapped.sessions[0].order_tau == pytest.approx(4 / 6)
    assert swapped.sessions[0].repeat_tau is None


def test_the_repeats_predict_each_other():
    assert spread_frac([2.0]) is None
    assert spread_frac([2.0, 2.0, 2.0]) == 0.0
    assert spread_frac([1.0, 2.0]) == pytest.approx((1.0 + 0.5) / 2)
    assert spread_frac([1.0, 2.0, 3.0]) == pytest.approx((1.5 + 0.0 + 0.5) / 3)


def test_a_session_that_needed_no_load_has_no_error_of_it():
    resident = ComparedTime(simulated_s=0.0, planned_s=0.0, measured_s=(0.0, 0.0))
    assert (resident.error_frac, resident.planned_error_frac) == (0.0, 0.0)


def test_a_run_that_lacks_a_call_is_refused():
    broken = run(1.0, 8.0)
    first, *rest = broken.calls
    failed = replace(broken, calls=(first._replace(status=CallStatus.FAILED), *rest))
    with pytest.raises(ValueError, match="finished calls of a run must be all 6 calls of plan by hand, got 5"):
        compare(PLAN, run(1.0, 8.0), [failed])
    with pytest.raises(ValueError, match="measured runs must be at least one"):
        compare(PLAN, run(1.0, 8.0), [])


def test_a_single_rank_has_no_order():
    assert kendall_tau([1.0, 1.0], [1.0, 2.0]) is None


def compared_plans():
    base = replace(compare(PLAN, run(2.0, 18.0), [run(2.0, 20.0), run(2.0, 18.0)]), plan="round_robin")
    better = replace(compare(PLAN, run(2.0, 9.0), [run(2.0, 10.0), run(2.0, 8.0)]), plan="ilp", cpu_frac=(0.97, 0.5))
    return [base, better]


def test_the_margin_below_the_baseline_is_predicted_and_measured():
    (simulated, measured) = margins(compared_plans(), "round_robin")["ilp"]
    assert simulated == pytest.approx(1 - 11 / 20)
    assert measured == pytest.approx(1 - 11 / 21)
    assert margins(compared_plans()[1:], "round_robin") == {}


def test_the_verdict_names_targets_the_machine_and_the_margin():
    text = verdict(compared_plans())
    assert "within 2.4% on average (target 10%: met)" in text
    assert "4 of 4 sessions are within 20% (target all: met)" in text
    assert "ilp is 47.6% below round_robin's makespan, predicted 45.0% below (-2.6 points)" in text
    assert "the workers had 50% of their cores' time" in text
    assert "busy" not in verdict(compared_plans()[:1])
    slow = replace(compare(PLAN, run(2.0, 4.0), [run(2.0, 10.0)]), plan="ilp")
    assert "(target 10%: missed)" in verdict([slow])
    assert "0 of 2 sessions are within 20% (target all: missed); the worst is off by 50.0%" in verdict([slow])


def test_the_report_has_every_plan_worker_and_session():
    plans = compared_plans()
    text = to_markdown(plans, title="T", command="python x.py", conditions=["quiet"])
    assert text.startswith("# T\n\n    python x.py\n\n- quiet\n")
    for row in ("| round_robin | 0 | A | 4 | load | 2.00 | 2.00 | +0.0% |", "| ilp | 1 | 6.50 | 6.50 | +0.0% |"):
        assert row in text
    assert len([line for line in text.splitlines() if " | serve | " in line]) == 4
    numbers = json.loads(to_json(plans, command="python x.py", conditions=["quiet"]))
    assert numbers["plans"][1]["makespan"]["error_frac"] == pytest.approx(0.0)
    assert numbers["plans"][0]["sessions"][0]["serve"]["spread_frac"] > 0
    assert numbers["mean_makespan_error_frac"] == pytest.approx(1 / 42)
    assert all(len(line) < 100 for line in describe(plans).split("\n\n")[0].splitlines())


def test_the_figure_marks_every_session_and_makespan():
    figure = draw_validation(figure_points(compared_plans()))
    (axes,) = figure.axes
    assert axes.get_xlim() == axes.get_ylim()
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("measured (s)", "simulated (s)")
    marks = {(container.lines[0].get_xdata()[0], container.lines[0].get_ydata()[0]) for container in axes.containers}
    assert {(21.0, 20.0), (11.0, 11.0)} < marks
    assert len(axes.containers) == 6
    assert png_bytes(figure) == png_bytes(draw_validation(figure_points(compared_plans())))
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names[:2] == ["round robin", "ILP"]
    words = [text.get_text() for text in axes.texts]
    assert words == ["2 of 4 sessions take less time in the simulator\nthan measured; mean error -2.3%"]


def test_a_bias_is_said_and_in_what_it_is() -> None:
    low = replace(compare(PLAN, run(2.0, 8.0), [run(2.0, 10.0)]), plan="ilp", cpu_frac=(0.96,))
    (line,) = bias_lines([low])
    assert "2 of 2 sessions take less time in the simulator" in line
    assert "serving differs by -20.0% and loading by +0.0%" in line
    assert "had a core for 96% of their time" in line
    assert line in verdict([low])
    assert bias_lines(compared_plans()) == []


def test_a_plan_that_takes_longer_than_the_baseline_is_above_it() -> None:
    base, better = compared_plans()
    worse = replace(compare(PLAN, run(2.0, 40.0), [run(2.0, 38.0)]), plan="ilp")
    assert "ilp is 90.5% above round_robin's makespan, predicted 110.0% above" in verdict([base, worse])
    assert "below" in verdict([base, better])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["plans="], "plans must be given once, with a value"),
        (["plans=ilp", "plans=fifo"], "plans must be given once"),
        (["plans=ilp,ilp"], "plans must be unique"),
        (["repeats=0"], "repeats must be at least 1, got 0"),
        (["repeats=two"], "repeats must be a whole number, got 'two'"),
        (["scheduler=ilp"], "scheduler must be left out: give plans=A,B instead, got 'ilp'"),
        (["backend.mode=live"], "backend.mode must be left out: replay is what is validated"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        validate.read_arguments(arguments)


def test_what_nobody_named_a_place_for_is_not_committed():
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert f"{validate.read_arguments([]).out.parent}/" in ignored


def test_the_simulator_alone_is_not_validated(tmp_path):
    with pytest.raises(ValueError, match="backend.name must be vllm: the simulator is compared with engines"):
        validate.main(["backend=sim", "workload=gpqa", f"out={tmp_path}"])


@pytest.mark.slow
def test_the_command_resumes_and_reports(tmp_path, monkeypatch, capsys):
    """The whole command with an engine that has no model; started again it runs nothing anew."""
    monkeypatch.setattr(engines, "VLLM_ENGINE", FAKE_ENGINE)
    arguments = small_validation(tmp_path)
    validate.main(arguments)
    out = tmp_path / "out"
    numbers = json.loads((out / "validation.json").read_text())
    assert [plan["plan"] for plan in numbers["plans"]] == ["round_robin", "data_parallel"]
    assert [len(plan["sessions"]) for plan in numbers["plans"]] == [3, 6]
    assert {len(plan["makespan"]["measured_s"]) for plan in numbers["plans"]} == {2}
    assert all(0 < frac <= 1.5 for plan in numbers["plans"] for frac in plan["cpu_frac"])
    assert all(math.isfinite(plan["makespan"]["error_frac"]) for plan in numbers["plans"])
    assert "data_parallel is" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} >= {
        "validation.md", "validation.png", "validation.pdf", "validation.json", "profile.json",
    }  # fmt: skip
    # An engine that cannot be imported: whatever is not in the journals cannot be run.
    monkeypatch.setattr(engines, "VLLM_ENGINE", "no.such.engine")
    validate.main(arguments)
    assert json.loads((out / "validation.json").read_text()) == numbers
    with pytest.raises(BackendError, match="the engine cannot be imported"):
        validate.main([*arguments, "repeats=3"])


def test_runs_of_another_configuration_are_not_taken_for_this_ones(tmp_path):
    folder = tmp_path / "out" / "ilp"
    config = {"seed": 0, "hardware": {"name": "x"}}
    validate.check_folder(folder, config)
    validate.check_folder(folder, {**config, "hardware": {"name": "y"}})
    with pytest.raises(ValueError, match="out must be a folder without runs of another configuration"):
        validate.check_folder(folder, {**config, "seed": 1})
