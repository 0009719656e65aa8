"""Whether a promise holds for what was run: what is compared is the same whatever a run cancels or cuts; simulated."""

from collections import Counter
from pathlib import Path

import pytest

import mosaic
from mosaic.pipelines.rules.calibration_file import load_calibration_answers
from mosaic.pipelines.vote_patterns import EARLY
from mosaic.runtime.promise import batch_patterns, calibration_patterns, promise_of
from tests.commands.command_line import QUICK, SMALL, prepare, run_into

FEW = ("workload=gpqa", "cluster.num_workers=2", "aggregator=dp", *QUICK)
TAUGHT = ("gate=never", "pipeline.leave_one_out=true")
PART = ("workload.part=calibration", "workload.num_calibration_questions=600")
BUDGETS = ("pipeline.budgets=calibrated", "pipeline.hedge=calibrated")


def answers_of(folder: Path, *overrides: str) -> Path:
    return run_into(folder, *FEW, *TAUGHT, *overrides) / "calibration_answers.parquet"


@pytest.fixture(scope="module")
def calibration_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return answers_of(tmp_path_factory.mktemp("calibration_run"), *PART)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The batch's own questions, with every call whole: what a run that decides early does not see."""
    return answers_of(tmp_path_factory.mktemp("own"))


@pytest.mark.parametrize(
    ("overrides", "has_early"),
    [
        ((), False), (("pipeline.quorum=true",), True), (BUDGETS, False), ((*BUDGETS, "pipeline.quorum=true"), True),
        (("pipeline.quorum=true", "scheduler=round_robin", "pipeline.overlap=true"), True),
    ],
)  # fmt: skip
def test_what_is_compared_does_not_depend_on_what_was_cancelled_or_cut(
    calibration_run: Path, own: Path, overrides: tuple[str, ...], has_early: bool
) -> None:
    gate = ("gate=calibrated", f"gate.calibration={calibration_run}", "gate.accepted_loss_frac=0.1")
    prepared = prepare(*FEW, *gate, *overrides)
    graph, is_early = prepared.job.graph, "pipeline.quorum=true" in overrides
    outcome = mosaic.run(prepared.job)
    questions = load_calibration_answers(own)
    known = Counter(calibration_patterns(questions, graph.rule, graph.budgets, is_early=is_early))
    assert Counter(batch_patterns(graph, outcome, is_early=is_early)) == known
    assert (EARLY in known) == has_early
    promise = promise_of(prepared.job, prepared.calibration, outcome)
    assert promise is not None
    assert not promise.votes.differs


@pytest.mark.slow
def test_an_exit_is_compared_by_its_first_layer(tmp_path: Path) -> None:
    tree = (*SMALL, *QUICK, "topology=tree")
    asked = {"taught": ("workload.part=calibration", "workload.num_calibration_questions=120"), "own": ()}
    files = {
        name: run_into(tmp_path / name, *tree, *part, "exit=never") / "calibration_answers.parquet"
        for name, part in asked.items()
    }
    prepared = prepare(*tree, "exit=calibrated", f"exit.calibration={files['taught']}", "exit.accepted_loss_frac=0.3")
    graph = prepared.job.graph
    known = calibration_patterns(load_calibration_answers(files["own"]), graph.rule, graph.budgets, is_early=True)
    assert Counter(batch_patterns(graph, mosaic.run(prepared.job), is_early=True)) == Counter(known)
