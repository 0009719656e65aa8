"""Reactions and the keys of GPU use, from the command line to the run folder; simulated."""

import json
from pathlib import Path

import pytest

from mosaic.core.commands import Action, Cancel, Move, Prefill, decode_action
from tests.commands.command_line import QUICK, SMALL, run_point
from tests.run_tables import rows, summary_of

FEW = (*SMALL, *QUICK, "cluster.num_workers=2", "aggregator=dp")
QUORUM, OVERLAP, MOVES = (f"pipeline.{name}=true" for name in ("quorum", "overlap", "moves"))
ALL = (QUORUM, OVERLAP, MOVES)
READERS = ("backend.order=mixed", "gate=never", OVERLAP)
PREFILL = "pipeline.prefill_ahead=true"
SAME = ("num_calls", "skip_frac", "accuracy_frac", "num_aggregator_calls", "accuracy_change_pp", "always_aggregate_s")


def run_into(folder: Path, *overrides: str) -> Path:
    outcome = run_point(*FEW, *overrides, f"hydra.run.dir={folder}")
    assert outcome.status == 0, outcome.err
    assert ("calls cancelled" in outcome.out) == (QUORUM in overrides)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_into(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def early(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_into(tmp_path_factory.mktemp("early"), QUORUM)


def check_same_answers(folder: Path, other: Path) -> None:
    keys = ("question", "answer", "source", "gold", "correct")
    ours, others = ([[row[key] for key in keys] for row in rows(each, "answers")] for each in (folder, other))
    assert ours == others


def actions_of(folder: Path) -> list[Action]:
    return [decode_action(line) for line in (folder / "actions.jsonl").read_bytes().splitlines()]


def plans_of(folder: Path) -> list[dict]:
    found: list[dict] = json.loads((folder / "plan.json").read_text())["layers"]
    return found


def test_a_quorum_keeps_answers_and_cancelled_calls_are_told_apart(plain: Path, early: Path) -> None:
    check_same_answers(early, plain)
    cancelled = {
        (row["question"], row["node"], row["slot"]) for row in rows(early, "calls") if row["status"] == "cancelled"
    }
    assert cancelled
    summary, whole = summary_of(early), summary_of(plain)
    assert (summary["num_cancelled_calls"], summary["num_failed_calls"]) == (len(cancelled), 0)
    assert {key: summary[key] for key in SAME} == {key: whole[key] for key in SAME}
    assert summary["output_tokens"] < whole["output_tokens"]


def test_a_run_that_cancels_leaves_the_log_of_its_commands_and_another_leaves_none(plain: Path, early: Path) -> None:
    assert not (plain / "actions.jsonl").exists()
    cancels = [action for action in actions_of(early) if isinstance(action.command, Cancel)]
    assert len(cancels) == summary_of(early)["num_cancelled_calls"]
    assert all(action.cause.startswith("finished ") for action in cancels)


def test_a_quorums_plan_has_all_calls_and_says_which_share_it_priced(plain: Path, early: Path) -> None:
    before, after = (plans_of(folder)[0] for folder in (plain, early))
    served = [sorted(str(key) for session in plan["sessions"] for key in session["shard"]) for plan in (before, after)]
    assert served[0] == served[1]
    assert any("expected to run" in note for note in after["notes"])
    assert not any("expected to run" in note for note in before["notes"])


def test_a_saved_plan_is_run_as_it_is_with_the_rule_alone(plain: Path, tmp_path: Path) -> None:
    ruled = run_into(tmp_path / "ruled", QUORUM, f"plan.path={plain / 'plan.json'}")
    assert plans_of(ruled)[0] == plans_of(plain)[0]
    check_same_answers(ruled, plain)


@pytest.mark.parametrize("chosen", [(OVERLAP,), (MOVES,), ALL], ids=["overlap", "moves", "all"])
def test_answers_and_what_is_counted_are_those_without(plain: Path, tmp_path: Path, chosen: tuple[str, ...]) -> None:
    folder = run_into(tmp_path / "reacting", *chosen)
    check_same_answers(folder, plain)
    summary, before = summary_of(folder), summary_of(plain)
    assert {key: summary[key] for key in SAME} == {key: before[key] for key in SAME}
    assert summary["num_failed_calls"] == 0
    assert summary["expert_makespan_s"] + summary["aggregator_s"] == pytest.approx(summary["end_to_end_s"])
    if OVERLAP in chosen:
        ends = {node: [r for r in rows(folder, "calls") if r["node"] == node] for node in ("propose", "aggregate")}
        last_ts = max(row["finished_ts"] for row in ends["propose"])
        assert summary["expert_makespan_s"] == pytest.approx(last_ts)
        assert min(row["admitted_ts"] for row in ends["aggregate"]) < last_ts, "no barrier"
    assert any(isinstance(action.command, Move) for action in actions_of(folder)) <= (MOVES in chosen)


def test_prefilling_ahead_keeps_answers_and_its_work_is_counted(tmp_path: Path) -> None:
    without, ahead = run_into(tmp_path / "without", *READERS), run_into(tmp_path / "ahead", *READERS, PREFILL)
    check_same_answers(ahead, without)
    before, summary = summary_of(without), summary_of(ahead)
    assert "prefill_ahead" not in before
    for key in ("num_calls", "output_tokens", "skip_frac"):
        assert summary[key] == before[key]
    report = summary["prefill_ahead"]
    num_sent = sum(isinstance(action.command, Prefill) for action in actions_of(ahead))
    assert 0 < report["num_prefills"] <= num_sent
    assert report["wasted_tokens"] == max(0, report["computed_tokens"] - report["reused_tokens"])
    merged = [row for row in rows(ahead, "calls") if row["node"] == "aggregate"]
    assert sum(row["cached_tokens"] for row in merged) >= report["reused_tokens"] > 0
    assert {row["node"] for row in rows(ahead, "calls")} == {"propose", "aggregate"}


@pytest.mark.parametrize("reactions", [(), ALL])
@pytest.mark.parametrize(
    "chosen", ["backend.keep=weights", "backend.keep=engines", "backend.load_ahead_gib=20", "backend.experts_per_gpu=2"]
)
def test_how_gpus_are_shared_changes_loads_and_no_answer(
    plain: Path, tmp_path: Path, chosen: str, reactions: tuple[str, ...]
) -> None:
    summary, before = summary_of(run_into(tmp_path, chosen, *reactions)), summary_of(plain)
    assert {key: summary[key] for key in SAME[:5]} == {key: before[key] for key in SAME[:5]}
    assert 0 <= summary["gpu_idle_frac"] < 1
    if not reactions:
        assert summary["end_to_end_s"] <= before["end_to_end_s"], "this batch is mostly loads"
