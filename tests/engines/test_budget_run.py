"""Budgets and the hedge on engines: on the tiny pool's real vLLM, and where a run with them is killed and goes on."""

from pathlib import Path

import pytest

from mosaic.commands.run import JOURNAL
from mosaic.core.commands import Cut, decode_action
from mosaic.runtime.journal import read_journal
from tests.commands.command_line import TINY, simulated_profiles
from tests.engines.executor_runs import has_vllm
from tests.engines.fake_run import run_fake, write_inputs
from tests.engines.interrupted_run import go_on, kill_after
from tests.engines.kept_launcher import run_kept
from tests.run_tables import calls_of, final, num_finished, responses_of, summary_of

pytestmark = pytest.mark.slow
BOTH = ("gate=unanimous", "pipeline.budgets=calibrated", "pipeline.hedge=calibrated")
LESSONS = ("gate=never", "pipeline.leave_one_out=true")
ACCEPTED = "pipeline.promise.accepted_loss_frac=0.6"
"""So much that a few questions promise tight budgets: what is tested is what they do."""


def promise(lessons: Path) -> tuple[str, ...]:
    return f"pipeline.promise.calibration={lessons / 'calibration_answers.parquet'}", ACCEPTED


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
    report = summary_of(folder)["gate_report"]["budgets"]
    assert report["num_cut_calls"] == len(cut)
    for key in cut & proposals:
        assert calls[key]["output_tokens"] < whole[key]["output_tokens"]
    commands = [decode_action(line).command for line in (folder / "actions.jsonl").read_bytes().splitlines()]
    assert cut <= {tuple(command.key) for command in commands if isinstance(command, Cut)}


@pytest.mark.skipif(not has_vllm(), reason="vLLM is not installed")
@pytest.mark.skipif(not TINY.exists(), reason="the tiny pool is not there: python experiments/make_pool.py")
def test_on_real_vllm_calls_are_cut_and_hedged_and_whole_ones_are_as_without(tmp_path):
    common = ["workload=tiny_mcq", "pool=tiny", "cluster=local", "workload.num_questions=100"]
    common += [*simulated_profiles(tmp_path, *common)[:1], "backend=vllm"]
    plain, lessons, cut = tmp_path / "plain", tmp_path / "lessons", tmp_path / "cut"
    for folder, overrides in (
        (lessons, (*LESSONS, "workload.part=calibration")),
        (plain, ("gate=unanimous",)),
        (cut, (*BOTH, *promise(lessons))),
    ):
        outcome = run_kept(*common, *overrides, f"hydra.run.dir={folder}")
        assert outcome.status == 0, outcome.err
    check_cut(cut, plain)


def test_a_run_with_budgets_that_is_killed_goes_on_and_cuts_no_call_twice(tmp_path):
    (tmp_path / "other").mkdir()
    taught = write_inputs(tmp_path / "other", num_questions=60)
    questions = tmp_path / "other" / "questions.jsonl"
    questions.write_text(questions.read_text().replace('"id": "q', '"id": "taught'))
    lessons, plain = tmp_path / "lessons", tmp_path / "plain"
    inputs = write_inputs(tmp_path, num_questions=24, word="slow")
    assert (outcome := run_fake(*taught, *LESSONS, f"hydra.run.dir={lessons}")).status == 0, outcome.err
    assert (outcome := run_fake(*inputs, "gate=unanimous", f"hydra.run.dir={plain}")).status == 0, outcome.err
    inputs += [*BOTH, *promise(lessons)]
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "killed"
    assert (outcome := run_fake(*inputs, f"hydra.run.dir={undisturbed}")).status == 0, outcome.err
    check_cut(undisturbed, plain)
    for done_frac in (0.3, 0.7):
        kill_after(folder, inputs, done_frac * num_finished(undisturbed))
    go_on(folder, inputs)
    check_cut(folder, plain)
    assert final(folder) == final(undisturbed)
    ended = [record.key for record in read_journal(folder / JOURNAL / "run").ended]
    assert len(ended) == len(set(ended))
