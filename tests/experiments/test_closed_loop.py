import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from experiments.check_loops import main
from experiments.hardware.closed_loop import (
    CLIENT_S,
    START_GAP_S,
    LoopPoint,
    fit_loops,
    is_full,
    read_points,
    run_loop,
    run_loops,
)
from mosaic.core.engine_options import EngineOptions, Order
from sim.hardware.hardware import Hardware
from sim.hardware.iteration_time import Chunks, IterationTime
from tests.sim.test_operators_by_size import SHAPE, make_hardware, make_operators

CONF = Path(__file__).resolve().parents[2] / "conf" / "hardware"
POINT = LoopPoint(100, 11, 1, 1, 0.0, 0.0)
OPTIONS = EngineOptions(order=Order.MIXED, max_num_batched_tokens=8192)


class FixedTime(IterationTime):
    """A step of decodes takes 10 ms, one with prompts 50 ms."""

    def decode_span_s(self, num_seqs: int, kv_tokens: float, num_steps: int, longest: int = 0) -> float:
        return 0.010 * num_steps

    def mixed_s(self, chunks: Chunks, num_decodes: int, decode_kv_tokens: float, longest: int = 0) -> float:
        return 0.050


def test_one_client_waits_for_nobody() -> None:
    again = run_loop(POINT, FixedTime(), 10_000, OPTIONS)
    assert (again.ttft_s, again.tpot_s) == pytest.approx((0.050, 0.010))
    assert again.tok_per_s == pytest.approx(11 / 0.150)


def test_clients_that_start_apart_stay_apart() -> None:
    """Each sees the prompt of the other once: a step of its ten is a mixed one; its own prompt waits for a step."""
    again = run_loop(POINT._replace(concurrency=2), FixedTime(), 10_000, OPTIONS)
    assert START_GAP_S > 0.050
    assert again.tpot_s == pytest.approx((9 * 0.010 + 0.050) / 10)
    assert again.ttft_s == pytest.approx(0.010 - CLIENT_S + 0.050)


def test_a_full_cache_makes_requests_wait() -> None:
    point = POINT._replace(concurrency=4)
    free, full = (run_loop(point, FixedTime(), kv_tokens, OPTIONS) for kv_tokens in (10_000, 240))
    assert full.ttft_s > free.ttft_s + 0.1
    assert [is_full(point, kv_tokens) for kv_tokens in (10_000, 493, 240)] == [False, True, True]


def slow(constants: Sequence[float]) -> Hardware:
    base_s, head_s = constants
    operators = make_operators(decode_head_s=head_s)
    return replace(make_hardware(operators), cpu_base_s=base_s)


def test_a_fit_finds_what_made_the_points() -> None:
    true = (2e-3, 1e-7)
    points = [POINT._replace(prompt_tokens=n, output_tokens=40, concurrency=c) for n in (100, 500) for c in (2, 8, 32)]
    points = run_loops(points, slow(true), SHAPE)
    found = fit_loops(points, SHAPE, slow, (1e-3, 2e-7))
    assert found.constants == pytest.approx(true, rel=0.1)
    assert found.error < 0.01
    assert found.left_out["concurrency"] < 0.02
    assert found.left_out["prompt_tokens"] < 0.05
    assert "output_tokens" not in found.left_out  # of one value nothing is left to fit


def write_points(path: Path, **changes: object) -> Path:
    row = {"isl": 1024, "osl": 64, "concurrency": 4, "tp": 2, "ttft_ms": 100.0, "tpot_ms": 16.0} | changes
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([row.keys(), row.values()])
    return path


def test_bad_points_are_named(tmp_path: Path) -> None:
    for column, value in (("osl", 1), ("concurrency", 0), ("tpot_ms", "x")):
        with pytest.raises(ValueError, match=rf"points.csv.*{column}"):
            read_points(write_points(tmp_path / "points.csv", **{column: value}))


def test_the_command_sets_what_was_measured_beside_what_is_simulated(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(main)
    points, page = write_points(tmp_path / "points.csv"), tmp_path / "h100_80gb_qwen3_32b.md"
    ended = CliRunner().invoke(
        app, [str(points), str(CONF / "h100_80gb.yaml"), "--shape", "qwen3_32b", "--out", str(tmp_path)]
    )
    assert ended.exit_code == 0, ended.stderr
    (point,) = read_points(points)
    assert point[:4] == (1024, 64, 4, 2)
    assert point.tpot_s == pytest.approx(0.016)
    text = page.read_text()
    assert "| 2 | 1,024 | 64 | 4 | 100 -> " in text
    assert "| 16.00 -> " in text
    assert "- TPOT, below saturation: 1 points" in text
    assert str(tmp_path) not in text
