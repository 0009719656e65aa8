"""What saves calls or waits changes no other response of the tiny pool on real vLLM; `test_killed_runs` kills runs."""

import json
from collections import Counter
from pathlib import Path

import pytest

from mosaic.core.commands import Cancel, Cut, decode_action
from tests.commands.command_line import TINY, simulated_profiles
from tests.engines.executor_runs import has_vllm
from tests.engines.fake_run import run_in
from tests.engines.kept_launcher import run_kept
from tests.run_tables import answers_of, calls_of, final, responses_of, summary_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not has_vllm(), reason="vLLM is not installed"),
    pytest.mark.skipif(not TINY.exists(), reason="the tiny pool is not there: python experiments/make_pool.py"),
]
POOL = ("workload=tiny_mcq", "pool=tiny", "cluster=local")
CALIBRATION = ("gate=never", "pipeline.leave_one_out=true")
SEATS = {"tree": (9, 3, 1), "all_to_all": (9, 9, 1)}


def with_budgets(calibration_run: Path) -> list[str]:
    """So large a loss is accepted that a few questions promise tight budgets: what is tested is what they do."""
    return [
        "gate=unanimous", "pipeline.budgets=calibrated", "pipeline.hedge=calibrated",
        f"pipeline.promise.calibration={calibration_run / 'calibration_answers.parquet'}",
        "pipeline.promise.accepted_loss_frac=0.6",
    ]  # fmt: skip


def told_to(folder: Path, kind: type) -> set[tuple]:
    """The calls that commands of a kind were about."""
    commands = [decode_action(line).command for line in (folder / "actions.jsonl").read_bytes().splitlines()]
    return {tuple(command.key) for command in commands if isinstance(command, kind)}


def check_cut(folder: Path, undisturbed: Path) -> None:
    """Check that calls were cut, each ended once, and those that ran whole say what they always say."""
    calls, whole = calls_of(folder), calls_of(undisturbed)
    proposals = {key for key in calls if key[1] == "propose"}
    assert proposals == {key for key in whole if key[1] == "propose"}
    cut = {key for key, row in calls.items() if row["status"] == "cut"}
    assert cut & proposals
    assert {row["status"] for row in calls.values()} <= {"finished", "cut"}
    assert all(calls[key]["answer"] is None for key in cut)
    said, once_said = responses_of(folder), responses_of(undisturbed)
    for key in proposals - cut:
        assert said[key] == once_said[key]
    assert summary_of(folder)["gate_report"]["budgets"]["num_cut_calls"] == len(cut)
    for key in cut & proposals:
        assert calls[key]["output_tokens"] < whole[key]["output_tokens"]
    assert cut <= told_to(folder, Cut)


def test_calls_are_cut_and_hedged_and_whole_ones_are_as_without(tmp_path):
    common = [*POOL, "workload.num_questions=100"]
    common += [*simulated_profiles(tmp_path, *common)[:1], "backend=vllm"]
    plain, calibration_run, cut = tmp_path / "plain", tmp_path / "calibration_run", tmp_path / "cut"
    run_in(calibration_run, *common, *CALIBRATION, "workload.part=calibration", run=run_kept)
    run_in(plain, *common, "gate=unanimous", run=run_kept)
    run_in(cut, *common, *with_budgets(calibration_run), run=run_kept)
    check_cut(cut, plain)


def test_third_calls_are_cancelled_and_all_else_is_as_without(tmp_path):
    common = [*POOL, "workload.num_questions=150"]
    common += [*simulated_profiles(tmp_path, *common), "backend=vllm"]
    plain, early = tmp_path / "plain", tmp_path / "early"
    run_in(plain, *common, run=run_kept)
    run_in(early, *common, "pipeline.quorum=true", run=run_kept)
    assert final(early) == final(plain)
    calls = calls_of(early)
    cancelled = {key for key, row in calls.items() if row["status"] == "cancelled"}
    assert calls.keys() == calls_of(plain).keys()
    assert len(cancelled) > 20
    assert all(node == "propose" for _, node, _ in cancelled)
    for key, text in responses_of(early).items():
        assert key in cancelled or text == responses_of(plain)[key]
    summary = summary_of(early)
    assert (summary["num_cancelled_calls"], summary["num_failed_calls"]) == (len(cancelled), 0)
    assert summary["output_tokens"] < summary_of(plain)["output_tokens"]
    assert 0 < json.loads((early / "meta.json").read_text())["reacting_s"] < summary["end_to_end_s"]
    assert cancelled <= told_to(early, Cancel)
    for question, _, slot in cancelled:
        others = [calls[question, "propose", other] for other in range(3) if other != slot]
        assert len({row["answer"] for row in others} - {None}) == 1, "two agreed"


def answered_once(folder: Path, topology: str, num_questions: int) -> None:
    """Every agent has spoken once of each question, and the last one has the last word."""
    calls = calls_of(folder)
    assert {row["status"] for row in calls.values()} == {"finished"}
    spoken = Counter(row["role"] for row in calls.values())
    wanted = {f"layer_{depth}": num_questions * number for depth, number in enumerate(SEATS[topology], start=1)}
    assert spoken == wanted
    answers = answers_of(folder)
    assert len({row["question"] for row in answers}) == len(answers) == num_questions
    assert {row["source"] for row in answers} == {"aggregator"}
    assert all(row["answer"] == calls[row["question"], "layer_3", 0]["answer"] for row in answers)


def upper_layers_read(folder: Path) -> None:
    """Who reads others gets the question twice, and between the two what they wrote."""
    alone = {row["question"]: row["prompt_tokens"] for row in calls_of(folder).values() if row["role"] == "layer_1"}
    upper = [row for row in calls_of(folder).values() if row["role"] != "layer_1"]
    assert all(row["prompt_tokens"] > 2 * alone[row["question"]] for row in upper)


@pytest.mark.parametrize("topology", SEATS)
def test_every_question_is_answered_once_with_a_barrier_and_without(tmp_path, topology):
    num_questions = 16
    common = [*POOL, f"workload.num_questions={num_questions}", f"topology={topology}", "exit=never"]
    profiles = simulated_profiles(tmp_path, *common)
    folders = barrier, free = tmp_path / "barrier", tmp_path / "free"
    run_in(barrier, *common, "backend=vllm", "pipeline.barrier=true", *profiles, run=run_kept)
    run_in(free, *common, "backend=vllm", "pipeline.barrier=false", profiles[0], run=run_kept)
    for folder in folders:
        answered_once(folder, topology, num_questions)
    assert final(free) == final(barrier), "who waits for whom changes no answer"
    assert responses_of(free) == responses_of(barrier)
    upper_layers_read(free)
    assert summary_of(free)["num_failed_calls"] == 0
