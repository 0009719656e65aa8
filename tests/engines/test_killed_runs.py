"""Whole runs that are killed at some moments and go on: they end as if they never were, whatever they do."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.engines.executor_runs import processes_of
from tests.engines.fake_run import run_fake, write_inputs
from tests.engines.interrupted_run import go_on, kill_after
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


@pytest.mark.parametrize(("num_questions", "options", "killed_fracs"), CASES.values(), ids=CASES)
def test_a_run_that_is_killed_ends_as_if_it_never_was(tmp_path, num_questions, options, killed_fracs):
    inputs = [*write_inputs(tmp_path, num_questions=num_questions, word="slow"), *options]
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "killed"
    assert (outcome := run_fake(*inputs, f"hydra.run.dir={undisturbed}")).status == 0, outcome.err
    draw = random.Random(5)
    for frac in killed_fracs:
        kill_after(folder, inputs, frac * num_finished(undisturbed), 0.1 * draw.random())
    go_on(folder, inputs)
    assert final(folder) == final(undisturbed)
    assert calls_of(folder).keys() == calls_of(undisturbed).keys()
    assert summary_of(folder)["num_failed_calls"] == 0
    assert bool(cancelled_of(undisturbed)) == ("pipeline.quorum=true" in options)
    for what in journals_of(undisturbed):
        finished = finished_of(folder, what)
        assert len(finished) == len(set(finished)), what
        if not cancelled_of(undisturbed):
            assert set(finished) == set(finished_of(undisturbed, what))
    if not cancelled_of(undisturbed):
        assert responses_of(folder) == responses_of(undisturbed)
    assert not processes_of(folder)


def cancelled_of(folder: Path) -> list[tuple]:
    return [key for key, row in calls_of(folder).items() if row["status"] == "cancelled"]


def journals_of(folder: Path) -> list[str]:
    """List the journals of a run, less those whose calls follow from what an interrupted run had measured."""
    names = [path.name for path in (folder / "journal").iterdir() if path.is_dir()]
    return [name for name in names if not name.startswith("profile_aggregate")]
