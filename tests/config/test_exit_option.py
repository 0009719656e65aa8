"""The group exit, from the command line to the run folder; simulated."""

from pathlib import Path

import pytest

from mosaic.core.results import CallStatus
from mosaic.pipelines import FasterMoa
from mosaic.pipelines.rules.rule import Never
from tests.answered_questions import agreement
from tests.commands.command_line import QUICK, SMALL, prepare, run_into
from tests.run_tables import rows, summary_of

FEW = (*SMALL, *QUICK, "cluster.num_workers=2", "aggregator=dp", "gate=never")
TREE = (*SMALL, *QUICK, "world.output_tokens.LlamaR1.mean.value=400", "topology=tree")


def test_the_default_is_never_in_the_papers_pipeline_and_agreement_elsewhere() -> None:
    assert not prepare(*SMALL, *QUICK).job.graph.rule.is_exit
    assert prepare(*TREE).job.graph.rule == agreement()
    assert prepare(*TREE, "exit=never").job.graph.rule == Never()
    assert prepare(*FEW, "exit=agreement", "exit.tau=1").job.graph.rule == agreement(1)
    assert prepare(*FEW, "exit=faster_moa", "seed=7").job.graph.rule == FasterMoa(seed=7)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("exits")
    return {
        "never": run_into(root / "never", *TREE, "exit=never"),
        "agreement": run_into(root / "agreement", *TREE),
        "faster_moa": run_into(root / "faster_moa", *TREE, "exit=faster_moa", "pipeline.barrier=false"),
    }


def test_every_question_is_answered_once_and_what_was_cancelled_is_told_apart(folders: dict[str, Path]) -> None:
    for name, folder in folders.items():
        summary, answers, calls = summary_of(folder), rows(folder, "answers"), rows(folder, "calls")
        assert summary["gate"] == name
        assert len(answers) == len({row["question"] for row in answers}) == summary["num_questions"]
        keys = [(row["question"], row["node"], row["slot"]) for row in calls]
        assert len(keys) == len(set(keys))
        cancelled = sum(row["status"] == CallStatus.CANCELLED for row in calls)
        assert summary["num_cancelled_calls"] == cancelled
        assert (cancelled > 0) == (name != "never")
        assert summary["num_failed_calls"] == 0
        assert (folder / "calibration_answers.parquet").exists() == (name == "never")
    assert summary_of(folders["agreement"])["skip_frac"] > 0
    assert summary_of(folders["faster_moa"])["skip_frac"] == 0
    whole, early = (summary_of(folders[name]) for name in ("never", "agreement"))
    assert early["output_tokens"] < whole["output_tokens"]
    assert early["always_aggregate_accuracy_frac"] == whole["accuracy_frac"]


def test_answers_do_not_depend_on_who_runs_what_when(folders: dict[str, Path], tmp_path: Path) -> None:
    other = run_into(tmp_path / "other", *TREE, "scheduler=round_robin", "pipeline.overlap=true")
    assert [row["answer"] for row in rows(other, "answers")] == [
        row["answer"] for row in rows(folders["agreement"], "answers")
    ]


@pytest.mark.slow
def test_a_calibrated_exit_learns_from_a_run_without_one_and_refuses_its_own_questions(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    learned = f"exit.calibration={folders['never'] / 'calibration_answers.parquet'}"
    with pytest.raises(ValueError, match="exit.calibration must hold other questions than the batch"):
        prepare(*TREE, "exit=calibrated", learned)
    part = ("workload.part=calibration", "workload.num_calibration_questions=120")
    taught = run_into(tmp_path / "taught", *TREE, *part, "exit=never")
    learned = f"exit.calibration={taught / 'calibration_answers.parquet'}"
    run = run_into(tmp_path / "run", *TREE, "exit=calibrated", learned, "exit.accepted_loss_frac=0.3")
    summary = summary_of(run)
    assert summary["gate"] == "calibrated"
    assert summary["gate_report"]["threshold"] is not None
    assert summary["skip_frac"] > 0
    shifted = run_into(
        tmp_path / "shifted", *TREE, "exit=calibrated", learned, "exit.accepted_loss_frac=0.3",
        "world.answers.mean_ability.value=-2", "world.answers.distractor_std.value=0.1",
    )  # fmt: skip
    promises = [summary_of(folder)["gate_report"]["promise"] for folder in (run, shifted)]
    assert [promise["is_withdrawn"] for promise in promises] == [False, True]
    with pytest.raises(ValueError, match="exit.calibration must hold answers of what runs here"):
        prepare(*TREE, "topology=all_to_all", "exit=calibrated", learned)
