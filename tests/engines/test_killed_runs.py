"""Whole runs that are killed at some moments and go on: they end as if they never were, whatever they do."""

import os
import random
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from mosaic.commands.run import JOURNAL
from mosaic.runtime.journal import read_journal
from tests.engines.executor_runs import processes_of, workers_of
from tests.engines.fake_run import go_on, kill_after, run_in, start, write_inputs
from tests.engines.test_tiny_pool_runs import CALIBRATION, answered_once, check_cut, with_budgets
from tests.run_tables import calls_of, final, finished_of, num_finished, responses_of, summary_of

pytestmark = pytest.mark.slow
TREE = (
    "pool.experts.SmolLM2.context_tokens=2048",
    "pool.experts.QwenHalf.context_tokens=2048",
    "topology.min_output_tokens=64",
    "exit=never",
)
REACTIONS = ("pipeline.quorum=true", "pipeline.overlap=true", "pipeline.moves=true")
CASES: dict[str, tuple[int, Sequence[str], Sequence[float]]] = {
    "pilot": (40, (), (0.01, 0.1, 0.5)),
    "calibration": (24, ("profile.source=calibration",), (0.1, 0.3, 0.5, 0.8)),
    "quorum": (24, REACTIONS[:1], (0.3, 0.7)),
    "reactions": (24, REACTIONS, (0.3, 0.7)),
    "tree": (12, (*TREE, "topology=tree", "pipeline.overlap=true"), (0.2, 0.5)),
    "all_to_all": (12, (*TREE, "topology=all_to_all", "pipeline.barrier=false"), (0.2, 0.5)),
}
"""Questions, options, and at which shares of its calls a run is killed."""


def kill_at(fracs: Sequence[float], inputs: list[str], folder: Path, undisturbed: Path) -> None:
    """Run to the end, and again with kills at some shares of the calls; the answers are the same."""
    run_in(undisturbed, *inputs)
    draw = random.Random(5)
    for frac in fracs:
        kill_after(folder, inputs, frac * num_finished(undisturbed), 0.1 * draw.random())
    go_on(folder, inputs)
    assert final(folder) == final(undisturbed)
    assert not processes_of(folder)


@pytest.mark.parametrize(("num_questions", "options", "killed_fracs"), CASES.values(), ids=CASES)
def test_a_run_that_is_killed_ends_as_if_it_never_was(tmp_path, num_questions, options, killed_fracs):
    inputs = [*write_inputs(tmp_path, num_questions=num_questions, word="slow"), *options]
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "killed"
    kill_at(killed_fracs, inputs, folder, undisturbed)
    assert calls_of(folder).keys() == calls_of(undisturbed).keys()
    assert summary_of(folder)["num_failed_calls"] == 0
    assert "pipeline.quorum=true" in options or not cancelled_of(undisturbed)
    for what in journals_of(undisturbed):
        finished = finished_of(folder, what)
        assert len(finished) == len(set(finished)), what
        if not cancelled_of(undisturbed):
            assert set(finished) == set(finished_of(undisturbed, what))
    if not cancelled_of(undisturbed):
        assert responses_of(folder) == responses_of(undisturbed)


def cancelled_of(folder: Path) -> list[tuple]:
    return [key for key, row in calls_of(folder).items() if row["status"] == "cancelled"]


def journals_of(folder: Path) -> list[str]:
    """List the journals of a run, less those whose calls follow from what an interrupted run had measured."""
    names = [path.name for path in (folder / "journal").iterdir() if path.is_dir()]
    return [name for name in names if not name.startswith("profile_aggregate")]


def test_a_run_with_budgets_that_is_killed_goes_on_and_cuts_no_call_twice(tmp_path):
    (tmp_path / "other").mkdir()
    taught = write_inputs(tmp_path / "other", num_questions=60)
    questions = tmp_path / "other" / "questions.jsonl"
    questions.write_text(questions.read_text().replace('"id": "q', '"id": "taught'))
    inputs = write_inputs(tmp_path, num_questions=24, word="slow")
    run_in(tmp_path / "calibration_run", *taught, *CALIBRATION)
    run_in(tmp_path / "plain", *inputs, "gate=unanimous")
    folders = tmp_path / "killed", tmp_path / "undisturbed"
    kill_at((0.3, 0.7), [*inputs, *with_budgets(tmp_path / "calibration_run")], *folders)
    for folder in folders:
        check_cut(folder, tmp_path / "plain")
    ended = [record.key for record in read_journal(folders[0] / JOURNAL / "run").ended]
    assert len(ended) == len(set(ended))


def test_workers_that_are_killed_change_no_answer_of_a_tree(tmp_path):
    inputs = write_inputs(tmp_path, num_questions=12, word="slow")
    inputs += [*TREE, "topology=tree", "pipeline.barrier=false"]
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "killed"
    run_in(undisturbed, *inputs)
    patient = [*inputs, "backend.patience.max_retries=50", "backend.patience.max_restarts=50"]
    rng = random.Random(1)
    process, num_killed = start(folder, patient), 0
    while process.poll() is None:
        time.sleep(0.1 + 0.2 * rng.random())
        is_in_batch = (folder / "journal" / "run").exists() and len(finished_of(folder)) > 5
        if num_killed < 8 and is_in_batch and (workers := workers_of(folder)):
            with suppress(ProcessLookupError):
                os.kill(rng.choice(workers), signal.SIGKILL)
                num_killed += 1
    out, _ = process.communicate()
    assert process.returncode == 0, out
    assert num_killed >= 2
    answered_once(folder, "tree", 12)
    assert final(folder) == final(undisturbed)
