"""The option pipeline.prefill_ahead, from the command line to the run folder; simulated."""

from pathlib import Path

import pytest

from mosaic.core.commands import Prefill, decode_action
from tests.commands.command_line import run_point
from tests.config.test_overlap_option import FEW, rows, run_into, summary_of

OVERLAP = ("backend.order=mixed", "gate=never", "pipeline.overlap=true")
AHEAD = "pipeline.prefill_ahead=true"


def test_answers_are_those_without_and_the_work_is_counted(tmp_path: Path) -> None:
    without, ahead = run_into(tmp_path / "without", *OVERLAP), run_into(tmp_path / "ahead", *OVERLAP, AHEAD)
    keys = ("question", "answer", "source", "gold", "correct")
    assert [[row[key] for key in keys] for row in rows(ahead, "answers")] == [
        [row[key] for key in keys] for row in rows(without, "answers")
    ]
    before, summary = summary_of(without), summary_of(ahead)
    assert "prefill_ahead" not in before
    assert {key: summary[key] for key in ("num_calls", "output_tokens", "skip_frac")} == {
        key: before[key] for key in ("num_calls", "output_tokens", "skip_frac")
    }
    report = summary["prefill_ahead"]
    actions = [decode_action(line) for line in (ahead / "actions.jsonl").read_bytes().splitlines()]
    num_asked = sum(isinstance(action.command, Prefill) for action in actions)
    assert 0 < report["num_prefills"] <= num_asked
    assert report["wasted_tokens"] == max(0, report["computed_tokens"] - report["reused_tokens"])
    merged = [row for row in rows(ahead, "calls") if row["node"] == "aggregate"]
    assert sum(row["cached_tokens"] for row in merged) >= report["reused_tokens"] > 0
    assert {row["node"] for row in rows(ahead, "calls")} == {"propose", "aggregate"}


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (OVERLAP[:2], "pipeline.prefill_ahead must be false unless pipeline.overlap=true or pipeline.barrier=false"),
        (OVERLAP[1:], "pipeline.prefill_ahead must be false where engines cache no prefixes"),
        ((OVERLAP[0], "aggregator=none"), "pipeline.prefill_ahead must be false where no call reads others"),
    ],
)
def test_where_it_could_have_no_effect_it_is_refused(tmp_path: Path, overrides: tuple[str, ...], reason: str) -> None:
    outcome = run_point(*FEW, *overrides, AHEAD, f"hydra.run.dir={tmp_path / 'refused'}")
    assert outcome.status == 2
    assert reason in outcome.err
