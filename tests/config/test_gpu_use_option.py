"""The keys that say how sessions share GPUs and their host, from the command line to the run folder."""

import json
from pathlib import Path

import pytest

from tests.commands.command_line import QUICK, SMALL, run_point

FEW = (*SMALL, *QUICK, "cluster.num_workers=2", "aggregator=dp")
SAME = ("num_calls", "skip_frac", "accuracy_frac", "num_aggregator_calls", "accuracy_change_pp")


def summary_of(folder: Path, *overrides: str) -> dict:
    outcome = run_point(*FEW, *overrides, f"hydra.run.dir={folder}")
    assert outcome.status == 0, outcome.err
    found: dict = json.loads((folder / "summary.json").read_text())
    return found


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return summary_of(tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("reactions", [(), ("pipeline.quorum=true", "pipeline.overlap=true", "pipeline.moves=true")])
@pytest.mark.parametrize(
    "chosen", ["backend.keep=weights", "backend.keep=engines", "backend.load_ahead_gib=20", "backend.experts_per_gpu=2"]
)
def test_answers_are_the_same_and_loads_are_not(
    plain: dict, tmp_path: Path, chosen: str, reactions: tuple[str, ...]
) -> None:
    summary = summary_of(tmp_path, chosen, *reactions)
    assert {key: summary[key] for key in SAME} == {key: plain[key] for key in SAME}
    assert 0 <= summary["gpu_idle_frac"] < 1
    if not reactions:
        assert summary["end_to_end_s"] <= plain["end_to_end_s"], "this batch is mostly loads"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("backend.keep=all",), "backend.keep must be one of"),
        (("backend.experts_per_gpu=0",), "backend.experts_per_gpu must be at least 1"),
        (("backend.experts_per_gpu=2", "backend.load_ahead_gib=9"), "backend.load_ahead_gib must be null where"),
        (("backend.keep=engines", "hardware.host=null"), "hardware.host must be given"),
        (("backend.keep=engines", "hardware.host.load_fixed_s=-1"), "load_fixed_s must be"),
    ],
)
def test_what_makes_no_sense_is_refused(overrides: tuple[str, ...], message: str, tmp_path: Path) -> None:
    outcome = run_point(*FEW, *overrides, f"hydra.run.dir={tmp_path}")
    assert outcome.status == 2
    assert message in outcome.err
