"""The options pipeline.overlap and pipeline.moves, from the command line to the run folder; simulated."""

from pathlib import Path

import pytest

from mosaic.core.commands import Move, decode_action
from tests.commands.command_line import QUICK, SMALL, run_point
from tests.run_tables import rows, summary_of

FEW = (*SMALL, *QUICK, "cluster.num_workers=2", "aggregator=dp")
REACTIONS = ("pipeline.quorum=true", "pipeline.overlap=true", "pipeline.moves=true")
SAME = ("num_calls", "skip_frac", "accuracy_frac", "num_aggregator_calls", "accuracy_change_pp", "always_aggregate_s")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_into(tmp_path_factory.mktemp("plain"))


def run_into(folder: Path, *overrides: str) -> Path:
    outcome = run_point(*FEW, *overrides, f"hydra.run.dir={folder}")
    assert outcome.status == 0, outcome.err
    return folder


@pytest.mark.parametrize("chosen", [REACTIONS[1:2], REACTIONS[2:], REACTIONS], ids=["overlap", "moves", "all"])
def test_answers_and_what_is_counted_are_those_without(plain: Path, tmp_path: Path, chosen: tuple[str, ...]) -> None:
    folder = run_into(tmp_path / "reacting", *chosen)
    keys = ("question", "answer", "source", "gold", "correct")
    assert [[row[key] for key in keys] for row in rows(folder, "answers")] == [
        [row[key] for key in keys] for row in rows(plain, "answers")
    ]
    summary, before = summary_of(folder), summary_of(plain)
    assert {key: summary[key] for key in SAME} == {key: before[key] for key in SAME}
    assert summary["num_failed_calls"] == 0
    assert summary["expert_makespan_s"] + summary["aggregator_s"] == pytest.approx(summary["end_to_end_s"])
    if "pipeline.overlap=true" in chosen:
        ends = {node: [r for r in rows(folder, "calls") if r["node"] == node] for node in ("propose", "aggregate")}
        last_ts = max(row["finished_ts"] for row in ends["propose"])
        assert summary["expert_makespan_s"] == pytest.approx(last_ts)
        assert min(row["admitted_ts"] for row in ends["aggregate"]) < last_ts, "no barrier"
    actions = [decode_action(line) for line in (folder / "actions.jsonl").read_bytes().splitlines()]
    assert any(isinstance(action.command, Move) for action in actions) <= ("pipeline.moves=true" in chosen)


def test_without_an_aggregator_there_is_nothing_to_overlap(tmp_path: Path) -> None:
    outcome = run_point(*SMALL, *QUICK, "aggregator=none", "pipeline.overlap=true", f"hydra.run.dir={tmp_path}")
    assert outcome.status == 2
    assert "pipeline.overlap must be left out, it has no effect here (there is one layer of calls)" in outcome.err
