"""The option pipeline.quorum, from the command line to the run folder; simulated."""

import json
from pathlib import Path

import pytest

from mosaic.core.commands import Cancel, decode_action
from tests.commands.command_line import QUICK, SMALL, run_point
from tests.run_tables import rows, summary_of

FEW = (*SMALL, *QUICK, "cluster.num_workers=2", "aggregator=dp")


def run_into(folder: Path, *overrides: str) -> Path:
    outcome = run_point(*FEW, *overrides, f"hydra.run.dir={folder}")
    assert outcome.status == 0, outcome.err
    if "pipeline.quorum=true" in overrides:
        assert "calls cancelled" in outcome.out
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("quorum")
    return run_into(root / "plain"), run_into(root / "early", "pipeline.quorum=true")


def plans_of(folder: Path) -> list[dict]:
    found: list[dict] = json.loads((folder / "plan.json").read_text())["layers"]
    return found


def test_answers_are_those_of_the_gate_alone_and_cancelled_calls_are_told_apart(folders: tuple[Path, Path]) -> None:
    plain, early = folders
    keys = ("question", "answer", "source", "gold", "correct")
    assert [[row[key] for key in keys] for row in rows(early, "answers")] == [
        [row[key] for key in keys] for row in rows(plain, "answers")
    ]
    cancelled = {
        (row["question"], row["node"], row["slot"]) for row in rows(early, "calls") if row["status"] == "cancelled"
    }
    assert cancelled
    summary, whole = summary_of(early), summary_of(plain)
    assert (summary["num_cancelled_calls"], summary["num_failed_calls"]) == (len(cancelled), 0)
    for key in ("num_calls", "skip_frac", "accuracy_frac", "num_aggregator_calls", "accuracy_change_pp"):
        assert summary[key] == whole[key]
    assert summary["always_aggregate_s"] == whole["always_aggregate_s"]
    assert summary["output_tokens"] < whole["output_tokens"]


def test_a_run_that_cancels_leaves_the_log_of_its_commands_and_another_leaves_none(folders: tuple[Path, Path]) -> None:
    plain, early = folders
    assert not (plain / "actions.jsonl").exists()
    actions = [decode_action(line) for line in (early / "actions.jsonl").read_bytes().splitlines()]
    cancels = [action for action in actions if isinstance(action.command, Cancel)]
    assert len(cancels) == summary_of(early)["num_cancelled_calls"]
    assert all(action.cause.startswith("finished ") for action in cancels)


def test_its_plan_has_all_calls_and_says_which_share_it_priced(folders: tuple[Path, Path]) -> None:
    plain, early = (plans_of(folder)[0] for folder in folders)
    served = [sorted(str(key) for session in plan["sessions"] for key in session["shard"]) for plan in (plain, early)]
    assert served[0] == served[1]
    assert any("expected to run" in note for note in early["notes"])
    assert not any("expected to run" in note for note in plain["notes"])


def test_a_saved_plan_is_run_as_it_is_with_the_rule_alone(folders: tuple[Path, Path], tmp_path: Path) -> None:
    plain, _ = folders
    ruled = run_into(tmp_path / "ruled", "pipeline.quorum=true", f"plan.path={plain / 'plan.json'}")
    assert plans_of(ruled)[0] == plans_of(plain)[0]
    assert [row["answer"] for row in rows(ruled, "answers")] == [row["answer"] for row in rows(plain, "answers")]
