"""The study of predicted and measured times: plans are kept, repeats measured, and calls finish as predicted."""

import json
from pathlib import Path
from statistics import median

import pytest

from experiments.lab.study import Point, Row
from experiments.studies import validation
from mosaic.config import engines
from tests.engines.executor_runs import FAKE_ENGINE, has_vllm
from tests.engines.kept_launcher import kept_launchers
from tests.engines.tiny_checkpoint import write_tiny_checkpoint

pytestmark = pytest.mark.slow

EXPERTS = ("TinySage", "TinyDart", "TinyOwl", "TinyFinch", "TinySwift")


def make_small_points(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Point]:
    """36 calls of three experts of the tiny pool, with random weights; two plans, twice each."""
    monkeypatch.setattr(validation, "FOLDER", folder / "runs")
    monkeypatch.setattr(validation, "NUM_REPEATS", 2)
    lines = [
        {"id": f"q{i}", "experts": [EXPERTS[i % 3]], "prompt_tokens": 20 + i % 7, "output_tokens": 3 + 5 * i % 17}
        for i in range(36)
    ]
    (folder / "calls.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    checkpoints = [
        f"pool.experts.{name}.checkpoint={write_tiny_checkpoint(folder / name, seed=ord(name[4]))}" for name in EXPERTS
    ]
    overrides = [
        "workload=file", f"workload.path={folder / 'calls.jsonl'}", "pool=tiny", "cluster=local", "aggregator=none",
        "hardware=cpu_core", "backend.device=cpu", "backend.engine.max_num_seqs=4",
        "profile.sweep={shard_sizes: [4, 8], num_repeats: 1}", *checkpoints,
    ]  # fmt: skip
    return validation.make_points(overrides, ("round_robin", "data_parallel"))


def measure(points: list[Point]) -> list[list[Row]]:
    with kept_launchers:
        return [validation.measure_run(point, 0) for point in points]


def served(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["part"] == "serve"]


def test_a_plan_is_kept_and_every_repeat_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an engine that has no model."""
    monkeypatch.setattr(engines, "VLLM_ENGINE", FAKE_ENGINE)
    points = make_small_points(tmp_path, monkeypatch)
    runs = measure(points)
    assert [point.labels["plan"] for point in points] == ["round_robin", "data_parallel"] * 2
    assert [len(served(rows)) for rows in runs] == [3, 6] * 2
    plan = (tmp_path / "runs" / "round_robin.json").read_bytes()
    for first, again in zip(runs[0], runs[2], strict=True):
        assert (first["planned_s"], first["simulated_s"]) == (again["planned_s"], again["simulated_s"])
    assert [row["measured_s"] for row in runs[0]] != [row["measured_s"] for row in runs[2]]
    measure(points[:1])
    assert (tmp_path / "runs" / "round_robin.json").read_bytes() == plan


@pytest.mark.alone
@pytest.mark.skipif(not has_vllm(), reason="vLLM is not installed")
def test_calls_finish_in_the_order_that_the_simulator_predicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = measure(make_small_points(tmp_path, monkeypatch))
    sessions = [row for rows in runs for row in served(rows)]
    assert [row["num_calls"] for row in sessions] == ([12] * 3 + [6] * 6) * 2
    order_taus = [row["order_tau"] for row in sessions]
    assert median(order_taus) > 0.95
    assert min(order_taus) > 0.7, "of six calls, a busy machine may let a few change places"
    assert all(rows[0]["cpu_frac"] > 0 for rows in runs)
