"""Both stages from the command line: gates, aggregators, calibration, and what a run of them leaves."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from mosaic.pipelines.rules.calibration_file import load_calibration_answers
from tests.commands.command_line import (
    DEMO,
    QUICK,
    Outcome,
    finish_process,
    run_into,
    run_point,
    start_process,
)
from tests.commands.test_command_line import FILES, contents, read_calls
from tests.report.test_metrics import STAGE_KEYS
from tests.run_tables import read_plans, rows, summary_of

GPQA = ("workload=gpqa", *QUICK)
"""198 questions, 594 calls."""
EXPERT_KEYS = (
    "expert_makespan_s", "predicted_expert_makespan_s", "expert_lower_bound_s", "gpu_idle_frac", "gpu_load_frac",
    "solve", "problem_fingerprint",
)  # fmt: skip
"""What summary.json says of the expert stage alone."""


def read_answers(folder: Path) -> dict[str, dict[str, Any]]:
    """Read answers.parquet by question."""
    return {row["question"]: row for row in rows(folder, "answers")}


def read_sessions(folder: Path, node: str) -> list[dict[str, Any]]:
    return [row for row in rows(folder, "sessions") if row["node"] == node]


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """GPQA under the gates that need no calibration, and without a second stage."""
    folder = tmp_path_factory.mktemp("gated")
    runs = {gate: run_into(folder / gate, *GPQA, f"gate={gate}") for gate in ("never", "unanimous", "majority")}
    return {**runs, "none": run_into(folder / "none", *GPQA, "aggregator=none")}


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 600 calibration questions with every one of them aggregated."""
    part = ("workload.part=calibration", "workload.num_calibration_questions=600")
    return run_into(tmp_path_factory.mktemp("calibration") / "run", *GPQA, *part, "gate=never")


def test_answers_and_summary_tell_the_same(gated: Mapping[str, Path]) -> None:
    for gate in ("never", "unanimous", "majority"):
        summary, answers = summary_of(gated[gate]), read_answers(gated[gate])
        assert len(answers) == summary["num_questions"] == 198
        sources = Counter(row["source"] for row in answers.values())
        assert sources["aggregator"] == summary["num_aggregator_calls"] == len(read_calls(gated[gate], "aggregate"))
        assert sources["majority"] == round(198 * summary["skip_frac"])
        right = [row["correct"] for row in answers.values()]
        assert sum(right) / 198 == pytest.approx(summary["accuracy_frac"])
        for row in answers.values():
            assert row["correct"] == (row["answer"] == row["gold"])
            parsed = Counter(vote for vote in row["votes"] if vote is not None)
            assert row["confidence"] == pytest.approx(max(parsed.values(), default=0) / 3)
            assert {*parsed, row["gold"]} <= set("ABCD")
            assert row["answer"] is None or row["answer"] in "ABCD"
        saved_s = summary["always_aggregate_s"] - summary["aggregator_s"]
        assert summary["aggregator_saved_s"] == pytest.approx(saved_s, abs=1e-6)
        change = summary["accuracy_frac"] - summary["always_aggregate_accuracy_frac"]
        assert summary["accuracy_change_pp"] == pytest.approx(100 * change)
        assert (summary["skip_frac_source"], summary["num_too_long"], summary["num_failed_calls"]) == ("fitted", 0, 0)


def test_a_gate_skips_by_its_threshold_and_no_gate_changes_what_was_said(gated: Mapping[str, Path]) -> None:
    never, unanimous, majority = (read_answers(gated[gate]) for gate in ("never", "unanimous", "majority"))
    for name, row in majority.items():
        assert (row["source"] == "majority") == (row["confidence"] > 0.6)
        assert (unanimous[name]["source"] == "majority") == (row["confidence"] == 1)
        assert never[name]["source"] == "aggregator"
        assert row["votes"] == unanimous[name]["votes"] == never[name]["votes"]
        if row["source"] == "aggregator":
            assert row["answer"] == unanimous[name]["answer"] == never[name]["answer"], "policies meet the same luck"
    summaries = {gate: summary_of(folder) for gate, folder in gated.items()}
    assert (
        0 == summaries["never"]["skip_frac"] < summaries["unanimous"]["skip_frac"] < summaries["majority"]["skip_frac"]
    )
    assert summaries["never"]["accuracy_frac"] == summaries["never"]["always_aggregate_accuracy_frac"]
    always = {summaries[gate]["always_aggregate_accuracy_frac"] for gate in ("never", "unanimous", "majority")}
    assert len(always) == 1
    assert summaries["never"]["aggregator_s"] == pytest.approx(summaries["never"]["always_aggregate_s"])


def test_the_expert_stage_is_the_same_with_and_without_a_second_stage(gated: Mapping[str, Path]) -> None:
    alone = summary_of(gated["none"])
    assert {path.name for path in gated["none"].iterdir()} == FILES
    known = {"accuracy_frac", "skip_frac_source"}
    assert {key for key in ("gate", "aggregator_s", *STAGE_KEYS) if alone[key] is not None} == known
    assert alone["end_to_end_s"] == alone["expert_makespan_s"]
    for gate in ("never", "unanimous", "majority"):
        both = summary_of(gated[gate])
        assert {key: both[key] for key in EXPERT_KEYS} == {key: alone[key] for key in EXPERT_KEYS}
        assert both["num_loads"] == alone["num_loads"] + 1
        assert read_plans(gated[gate])[:1] == read_plans(gated["none"])
        assert read_calls(gated[gate]) == read_calls(gated["none"])
        assert read_sessions(gated[gate], "propose") == read_sessions(gated["none"], "propose")


def test_the_aggregator_starts_at_the_barrier_and_both_stages_share_a_clock(gated: Mapping[str, Path]) -> None:
    summary, (session,) = summary_of(gated["majority"]), read_sessions(gated["majority"], "aggregate")
    unload_s = yaml.safe_load((gated["majority"] / "config.yaml").read_text())["hardware"]["unload_s"]
    assert session["load_start_ts"] == summary["expert_makespan_s"] + unload_s
    assert session["end_ts"] == summary["end_to_end_s"]
    assert session["end_ts"] - session["load_start_ts"] == pytest.approx(summary["aggregator_s"] - unload_s)
    assert (session["expert"], session["workers"]) == ("QwenR1", [0, 1, 2, 3])
    assert session["session"] not in {row["session"] for row in read_sessions(gated["majority"], "propose")}
    _, plan = read_plans(gated["majority"])
    assert sum(len(planned["shard"]) for planned in plan["sessions"]) == summary["num_aggregator_calls"]
    for row in read_calls(gated["majority"], "aggregate"):
        assert session["start_ts"] <= row["queued_ts"] <= row["finished_ts"] <= session["end_ts"]
        assert row["session"] == session["session"]
        assert row["predicted_output_tokens"] > 0


@pytest.mark.slow
def test_one_session_or_a_replica_per_gpu_and_auto_is_one_of_them(tmp_path: Path) -> None:
    folders = {name: run_into(tmp_path / name, *GPQA, f"aggregator={name}") for name in ("tp4", "dp", "auto")}
    places = {
        name: sorted(row["workers"] for row in read_sessions(folder, "aggregate")) for name, folder in folders.items()
    }
    assert places["tp4"] == [[0, 1, 2, 3]]
    assert places["dp"] == [[0], [1], [2], [3]]
    summaries = {name: summary_of(folder) for name, folder in folders.items()}
    assert [summaries[name]["aggregator_tp_degree"] for name in ("tp4", "dp")] == [4, 1]
    chosen = {4: "tp4", 1: "dp"}[summaries["auto"]["aggregator_tp_degree"]]
    assert places["auto"] == places[chosen]
    assert summaries["auto"]["aggregator_s"] == pytest.approx(summaries[chosen]["aggregator_s"])
    assert read_answers(folders["tp4"]) == read_answers(folders["dp"]) == read_answers(folders["auto"])


@pytest.mark.slow
def test_the_same_command_in_another_process_leaves_the_same_bytes(tmp_path: Path) -> None:
    started = [
        start_process(*GPQA, "gate=never", "aggregator=auto", f"hydra.run.dir=run{seed}", cwd=tmp_path, hash_seed=seed)
        for seed in (1, 2)
    ]
    outcomes = [finish_process(process) for process in started]
    assert [outcome.status for outcome in outcomes] == [0, 0], outcomes[0].err
    first, second = contents(tmp_path / "run1"), contents(tmp_path / "run2")
    assert first == second
    assert set(first) == FILES - {"meta.json"} | {"calibration_answers.parquet"}
    steps = json.loads((tmp_path / "run1" / "meta.json").read_text())["wall_s"]
    assert {"profile", "plan", "profile_upper", "execute", "always_aggregate"} <= set(steps)


def test_a_saved_plan_of_the_experts_gives_the_same_two_stages(gated: Mapping[str, Path], tmp_path: Path) -> None:
    folder = run_into(tmp_path / "run", *GPQA, f"plan.path={gated['majority'] / 'plan.json'}")
    but = ("meta.json", "config.yaml")
    assert contents(folder, but=but) == contents(gated["majority"], but=but)


def test_a_calibration_run_leaves_graded_answers_to_other_questions(
    calibration: Path, gated: Mapping[str, Path]
) -> None:
    graded = load_calibration_answers(calibration / "calibration_answers.parquet")
    assert len(graded) == 600
    assert summary_of(calibration)["workload"] == "gpqa_calibration"
    assert not {question.id for question in graded} & set(read_answers(gated["never"]))
    answers = read_answers(calibration)
    for question in graded:
        row = answers[question.id]
        assert [vote.answer for vote in question.ballot.votes] == row["votes"]
        assert (question.aggregator_answer, question.aggregator_correct) == (row["answer"], row["correct"])
        assert question.vote_correct == tuple(vote == row["gold"] for vote in row["votes"])
    experts = Counter(vote.expert for question in graded for vote in question.ballot.votes)
    assert experts["LlamaR1"] / 1800 == pytest.approx(429 / 594, abs=0.01), "the slots in proportion"


def test_only_a_run_that_skips_nothing_leaves_calibration_answers(gated: Mapping[str, Path]) -> None:
    left = {gate for gate, folder in gated.items() if (folder / "calibration_answers.parquet").exists()}
    assert left == {"never"}


def run_gate(folder: Path, *overrides: str) -> tuple[Outcome, dict[str, Any], dict[str, dict[str, Any]]]:
    outcome = run_point(*GPQA, *overrides, f"hydra.run.dir={folder}")
    assert outcome.status == 0, outcome.err
    return outcome, summary_of(folder), read_answers(folder)


def test_a_calibrated_gate_skips_by_what_it_promises(calibration: Path, tmp_path: Path) -> None:
    file = calibration / "calibration_answers.parquet"
    outcome, summary, answers = run_gate(
        tmp_path / "run", "gate=calibrated", f"gate.calibration={file}", "gate.accepted_loss_frac=0.05"
    )
    report = summary["gate_report"]
    assert summary["gate"] == "calibrated"
    assert report["num_certify"] + report["num_fit"] == 600
    assert report["num_fit"] / 600 == pytest.approx(0.3, abs=0.06)
    assert (report["accepted_loss_frac"], report["risk_frac"], report["confidence"]) == (0.05, 0.05, "plurality")
    assert report["threshold"] is not None, "5 pp are much for 400 questions"
    assert report["promise_frac"] <= 0.05
    for row in answers.values():
        assert (row["source"] == "majority") == (row["confidence"] >= report["threshold"])
    said = " ".join(outcome.out.split())
    assert f"calibrated on {report['num_certify']} questions" in said
    assert "promises a loss of at most 5 pp at 95% confidence" in said
    assert len(outcome.out.splitlines()) <= 24


@pytest.mark.slow
@pytest.mark.parametrize("shared", [(), ("pipeline.quorum=true",)])
def test_a_promise_holds_in_the_world_of_its_calibration_and_is_withdrawn_in_another(
    calibration: Path, tmp_path: Path, shared: tuple[str, ...]
) -> None:
    file = calibration / "calibration_answers.parquet"
    gate = ("gate=calibrated", f"gate.calibration={file}", "gate.accepted_loss_frac=0.05", *shared)
    same, summary, _ = run_gate(tmp_path / "same", *gate)
    assert summary["gate_report"]["promise"]["is_withdrawn"] is False
    assert "promises a loss of at most 5 pp" in " ".join(same.out.split())
    shifted, summary, _ = run_gate(tmp_path / "shifted", *gate, "world.answers.mean_ability.value=5")
    promise = summary["gate_report"]["promise"]
    assert promise["is_withdrawn"] is True
    assert promise["p_value"] < 0.01
    assert sum(promise["batch_votes"].values()) == 198
    assert "promise WITHDRAWN: the votes differ" in " ".join(shifted.out.split())
    assert "promises" not in shifted.out


def test_a_broken_promise_has_a_line_of_its_own(calibration: Path, tmp_path: Path) -> None:
    file = calibration / "calibration_answers.parquet"
    gate = ("gate=calibrated", f"gate.calibration={file}", "gate.accepted_loss_frac=0.05")
    outcome, summary, _ = run_gate(tmp_path / "run", *gate, "world.answers.aggregator_gain.value=2")
    promise = summary["gate_report"]["promise"]
    assert (promise["is_withdrawn"], promise["is_broken"]) == (False, True), "the votes are the same there"
    assert promise["lost_frac"] == pytest.approx(-summary["accuracy_change_pp"] / 100)
    lost = f"{100 * promise['lost_frac']:.2f} pp"
    assert f"  BROKEN    the promise of at most 5 pp: this batch lost {lost}" in outcome.out.splitlines()


def test_a_calibrated_gate_with_too_few_questions_skips_nothing_and_says_so(calibration: Path, tmp_path: Path) -> None:
    table = pq.read_table(calibration / "calibration_answers.parquet")
    file = tmp_path / "few.parquet"
    pq.write_table(table.slice(0, 3 * 30), file)
    overrides = ("gate=calibrated", f"gate.calibration={file}", "gate.accepted_loss_frac=0.005")
    outcome, summary, answers = run_gate(tmp_path / "run", *overrides)
    assert (summary["skip_frac"], summary["gate_report"]["threshold"]) == (0.0, None)
    assert {row["source"] for row in answers.values()} == {"aggregator"}
    said = " ".join(outcome.out.split())
    assert "promise a loss of at most 0.5 pp at 95% confidence" in said
    assert "nothing is skipped" in said

    pq.write_table(table, file)
    again = run_point(*GPQA, *overrides, f"hydra.run.dir={tmp_path / 'run'}")
    assert again.status == 2
    assert "gate.calibration_sha256" in again.err, "other calibration answers are another configuration"


def test_a_weighted_gate_skips_by_the_posterior(calibration: Path, tmp_path: Path) -> None:
    file = calibration / "calibration_answers.parquet"
    settings = ("gate=weighted", f"gate.calibration={file}")
    shares = []
    for least in (0.5, 0.8):
        outcome, summary, answers = run_gate(tmp_path / f"run{least}", *settings, f"gate.min_posterior={least}")
        for row in answers.values():
            assert (row["source"] == "majority") == (row["confidence"] >= least)
        assert (summary["gate"], summary["gate_report"]) == ("weighted", None)
        assert "on 600 calibration questions" in " ".join(outcome.out.split())
        assert "promises nothing" in " ".join(outcome.out.split())
        shares.append(summary["skip_frac"])
    assert shares[0] > shares[1] > 0


LISTED = "Which one is it? The options are: (A) red (B) green (C) blue (D) grey (E) white"


def write_questions(path: Path, num: int = 40, **columns: Any) -> str:
    """Write questions for the demo pool; a column is one value, or a list of them that is repeated."""
    lines = []
    for number in range(num):
        values = {
            key: value[number % len(value)] if isinstance(value, list) else value for key, value in columns.items()
        }
        lines.append({"id": f"q{number}", "experts": ["SmolLM2", "QwenHalf", "SmolLM2"], **values})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return f"workload.path={path}"


def test_questions_of_ones_own_with_gold_letters_run_both_stages(tmp_path: Path) -> None:
    source = write_questions(tmp_path / "q.jsonl", question=LISTED, answer=list("ABCDE"))
    folder = run_into(tmp_path / "run", *DEMO, source)
    summary, answers = summary_of(folder), read_answers(folder)
    assert 0 < summary["skip_frac"] < 1
    assert {row["gold"] for row in answers.values()} == set("ABCDE")
    assert {vote for row in answers.values() for vote in row["votes"]} <= {*"ABCDE", None}
    assert 0.2 < summary["accuracy_frac"] < 1
    assert sum(row["correct"] for row in answers.values()) == round(40 * summary["accuracy_frac"])
    assert (summary["aggregator_expert"], summary["skip_frac_source"]) == ("QwenHalf", "assumed")


def test_options_without_gold_are_gated_and_their_accuracy_is_unknown(tmp_path: Path) -> None:
    folder = run_into(tmp_path / "run", *DEMO, write_questions(tmp_path / "q.jsonl", question=LISTED), "gate=never")
    summary, answers = summary_of(folder), read_answers(folder)
    assert (summary["accuracy_frac"], summary["always_aggregate_accuracy_frac"]) == (None, None)
    assert {row["correct"] for row in answers.values()} == {None}
    assert all(row["confidence"] > 0 for row in answers.values())
    assert not (folder / "calibration_answers.parquet").exists(), "nothing is graded"


def test_a_question_too_long_for_the_aggregator_keeps_the_experts_answer_and_is_counted(tmp_path: Path) -> None:
    source = write_questions(tmp_path / "q.jsonl", num=2, prompt_tokens=[1600, 100], answer="B")
    folder = tmp_path / "run"
    outcome = run_point(*DEMO, source, "gate=never", f"hydra.run.dir={folder}")
    assert outcome.status == 0, outcome.err
    summary, answers = summary_of(folder), read_answers(folder)
    assert (summary["num_aggregator_calls"], summary["num_too_long"], summary["skip_frac"]) == (1, 1, 0.0)
    assert "1 questions to QwenHalf (tp 4); 1 too long for it" in outcome.out
    assert [answers[name]["source"] for name in ("q0", "q1")] == ["not_aggregated", "aggregator"]
    votes = Counter(answers["q0"]["votes"]).most_common(1)
    assert answers["q0"]["answer"] == votes[0][0]
    graded = load_calibration_answers(folder / "calibration_answers.parquet")
    assert [question.id for question in graded] == ["q1"], "what was not aggregated calibrates nothing"


def test_a_run_whose_every_question_is_too_long_has_no_second_stage_to_plan(tmp_path: Path) -> None:
    source = write_questions(tmp_path / "q.jsonl", num=1, prompt_tokens=1600, answer="B")
    folder = run_into(tmp_path / "run", *DEMO, source, "gate=never")
    summary = summary_of(folder)
    assert {path.name for path in folder.iterdir()} == FILES
    assert (summary["num_aggregator_calls"], summary["num_too_long"]) == (0, 1)
    assert (summary["aggregator_s"], summary["aggregator_tp_degree"]) == (None, None)
    assert summary["end_to_end_s"] == summary["expert_makespan_s"]


def test_questions_that_all_agree_need_no_aggregator(tmp_path: Path) -> None:
    sure = ("world.answers.mean_ability.value=20", "world.answers.discrimination.value=0")
    source = write_questions(tmp_path / "q.jsonl", num=5, question=LISTED, answer="C", output_tokens=50)
    outcome = run_point(*DEMO, source, *sure, f"hydra.run.dir={tmp_path / 'run'}")
    assert outcome.status == 0, outcome.err
    summary = summary_of(tmp_path / "run")
    assert (summary["skip_frac"], summary["accuracy_frac"], summary["num_aggregator_calls"]) == (1.0, 1.0, 0)
    assert summary["end_to_end_s"] == summary["expert_makespan_s"]
    assert summary["always_aggregate_s"] > 0
    assert "aggregator 0.0 s" in outcome.out
    assert len(read_plans(tmp_path / "run")) == 1
