"""Budgets and the hedge, from calibration answers to the run folder; simulated."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mosaic.core.commands import Cut, decode_action
from mosaic.pipelines.rules.calibration_answers import split_calibration
from mosaic.pipelines.rules.calibration_file import load_calibration_answers
from mosaic.pipelines.rules.weighted import Weighted, learn_reliabilities
from tests.commands.command_line import QUICK, prepare, run_into, run_point
from tests.run_tables import summary_of

FEW = ("workload=gpqa", "cluster.num_workers=2", "aggregator=dp", *QUICK)
LESSONS = (*FEW, "gate=never", "workload.part=calibration", "workload.num_calibration_questions=600")
BOTH = ("pipeline.budgets=calibrated", "pipeline.hedge=calibrated")
ACCEPTED = 0.1


@pytest.fixture(scope="module")
def lessons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = run_into(tmp_path_factory.mktemp("lessons"), *LESSONS, "pipeline.leave_one_out=true")
    return folder / "calibration_answers.parquet"


def promise(path: Path) -> tuple[str, ...]:
    return f"pipeline.promise.calibration={path}", f"pipeline.promise.accepted_loss_frac={ACCEPTED}"


def statuses(folder: Path) -> dict[tuple[str, str, int], str]:
    rows = pq.read_table(folder / "calls.parquet").to_pylist()
    return {(row["question"], row["node"], row["slot"]): row["status"] for row in rows}


def test_calibration_answers_hold_lengths_and_what_each_response_was_worth(lessons: Path) -> None:
    questions = load_calibration_answers(lessons)
    assert len(questions) == 600
    for question in questions:
        seen = question.observed
        assert len(seen) == 3
        assert all(one.left_out_correct for one in seen if one.left_out_answer == question.ballot.question.answer)
    rights = [sum(one.left_out_correct for one in question.observed) for question in questions]
    assert 0 < sum(rights) < 3 * len(questions)


@pytest.mark.slow
@pytest.mark.parametrize("gate", [("gate=never",), ("gate=unanimous",), ("gate=majority", "pipeline.quorum=true")])
def test_calls_are_cut_where_the_promise_allows(tmp_path: Path, lessons: Path, gate: tuple[str, ...]) -> None:
    folder = run_into(tmp_path / "run", *FEW, *gate, *BOTH, *promise(lessons))
    summary = summary_of(folder)
    report = summary["gate_report"]["budgets"]
    cut = [key for key, status in statuses(folder).items() if status == "cut"]
    assert report["num_cut_calls"] == len(cut) > 0
    assert (report["accepted_loss_frac"], report["risk_frac"]) == (ACCEPTED, 0.05)
    assert summary["gate_report"]["promise"]["is_withdrawn"] is False, "the same world"
    assert report["promise_frac"] <= ACCEPTED
    assert summary["num_failed_calls"] == 0
    commands = [decode_action(line).command for line in (folder / "actions.jsonl").read_bytes().splitlines()]
    assert {str(command.key) for command in commands if isinstance(command, Cut)} >= {
        "/".join(map(str, k)) for k in cut
    }
    again = run_into(tmp_path / "again", *FEW, *gate, *BOTH, *promise(lessons))
    assert (again / "calls.parquet").read_bytes() == (folder / "calls.parquet").read_bytes()


@pytest.mark.slow
def test_a_calibrated_gate_and_budgets_are_promised_together(tmp_path: Path, lessons: Path) -> None:
    gate = ("gate=calibrated", f"gate.calibration={lessons}", f"gate.accepted_loss_frac={ACCEPTED}")
    folder = run_into(tmp_path / "run", *FEW, *gate, *BOTH)
    report = summary_of(folder)["gate_report"]
    assert report["threshold"] == report["budgets"]["threshold"]
    assert report["budgets"]["num_cut_calls"] > 0
    shifted = run_into(tmp_path / "shifted", *FEW, *gate, *BOTH, "world.answers.mean_ability.value=5")
    withdrawn = [summary_of(run)["gate_report"]["promise"]["is_withdrawn"] for run in (folder, shifted)]
    assert withdrawn == [False, True]
    with pytest.raises(ValueError, match="gate=calibrated says what is promised"):
        prepare(*FEW, *gate, *BOTH, "pipeline.promise.risk_frac=0.1")


def test_a_weighted_gate_learns_from_no_question_that_certifies(lessons: Path) -> None:
    gate = ("gate=weighted", f"gate.calibration={lessons}")
    rule = prepare(*FEW, *gate, *BOTH, *promise(lessons)).job.graph.rule
    fit, _ = split_calibration(load_calibration_answers(lessons), 0.3)
    assert isinstance(rule, Weighted)
    assert rule.reliabilities == learn_reliabilities(fit)
    assert rule.num_questions == len(fit) < 600


def test_what_cannot_be_promised_is_left_out_and_the_screen_says_so(tmp_path: Path, lessons: Path) -> None:
    few = f"pipeline.promise.calibration={lessons}", "pipeline.promise.accepted_loss_frac=0.0001"
    outcome = run_point(*FEW, *BOTH, *few, f"hydra.run.dir={tmp_path / 'run'}")
    assert outcome.status == 0, outcome.err
    assert "cannot promise" in outcome.out
    assert set(statuses(tmp_path / "run").values()) == {"finished"}


def test_answers_of_the_batch_or_of_something_else_are_refused(tmp_path: Path, lessons: Path) -> None:
    whole = run_into(tmp_path / "plain", *FEW, "gate=never") / "calibration_answers.parquet"
    with pytest.raises(
        ValueError, match="198 of 198 questions lack them: make it again, with pipeline.leave_one_out=true"
    ):
        prepare(*FEW, *BOTH, *promise(whole))
    own = run_into(tmp_path / "own", *FEW, "gate=never", "pipeline.leave_one_out=true") / "calibration_answers.parquet"
    with pytest.raises(ValueError, match=r"calibration must hold other questions than the batch, got 198"):
        prepare(*FEW, *BOTH, *promise(own))
    with pytest.raises(ValueError, match="pipeline.promise.calibration must hold answers of what runs here"):
        prepare(*FEW, *BOTH, *promise(lessons), "pool.experts.LlamaR1.temperature=0.5")
