"""Placement problems as they are drawn, and what is believed of CP-SAT's process: nothing but its shards."""

from pathlib import Path

import polars as pl
import pytest

from experiments.studies import solver
from experiments.studies.cp_sat_process import UNITS_PER_S
from experiments.studies.solver import CP_SAT, MOSAIC, STUDY, contradictions, draw_instance, solve_by_cp_sat


def test_drawn_problems_are_the_same_for_a_seed_and_follow_equation_8() -> None:
    problem = draw_instance(12, 8, 3)
    assert problem == draw_instance(12, 8, 3) != draw_instance(12, 8, 4)
    costs = zip(problem.num_calls, problem.setup_s, problem.per_call_s, problem.max_replicas, strict=True)
    for num_calls, (load_s, *_), (call_s, *_), cap in costs:
        assert cap == min(8, max(1, int(num_calls * call_s / load_s)))
        for seconds in (load_s, call_s):  # CP-SAT's whole numbers are exact
            assert seconds * UNITS_PER_S == pytest.approx(round(seconds * UNITS_PER_S), abs=1e-6)


@pytest.fixture
def peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in place of CP-SAT's."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec /bin/sh $1\n")
    python.chmod(0o755)
    monkeypatch.setattr(solver, "CP_SAT_PYTHON", python)
    monkeypatch.setattr(solver, "CP_SAT_PROGRAM", tmp_path / "peer.sh")
    return tmp_path / "peer.sh"


def test_a_placement_of_cp_sat_is_priced_anew(peer: Path) -> None:
    problem = draw_instance(3, 2, 0)
    counts = [[number, 0] for number in problem.num_calls]
    peer.write_text(f'echo \'{{"counts": {counts}, "bound_s": 1.0, "wall_s": 2.0, "cpu_s": 3.0}}\'')
    found = solve_by_cp_sat(problem, 10.0)
    whole_s = [problem.session_s(expert, 0, number) for expert, number in enumerate(problem.num_calls)]
    assert found == {"makespan_s": pytest.approx(sum(whole_s)), "bound_s": 1.0, "wall_s": 2.0, "cpu_s": 3.0}


def test_a_process_that_fails_or_is_not_there_is_named(peer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peer.write_text("echo no solver here >&2; exit 1")
    with pytest.raises(RuntimeError, match="CP-SAT failed with status 1: no solver here"):
        solve_by_cp_sat(draw_instance(3, 2, 0), 10.0)
    monkeypatch.setattr(solver, "CP_SAT_PYTHON", Path("nowhere/python"))
    with pytest.raises(ValueError, match="nowhere/python must be a Python with OR-Tools"):
        solve_by_cp_sat(draw_instance(3, 2, 0), 10.0)


def outcome(name: str, makespan_s: float | None, bound_s: float, seed: int = 0) -> dict[str, object]:
    labels = {"num_experts": 12, "num_workers": 8, "solver": name, "seed": seed}
    return labels | {"makespan_s": makespan_s, "bound_s": bound_s, "wall_s": 9.0, "cpu_s": 8.0}


def test_gaps_aims_and_missing_placements_are_counted() -> None:
    runs = pl.DataFrame([
        outcome(MOSAIC, 100.0, 99.8), outcome(MOSAIC, 100.0, 99.0, seed=1),
        outcome(CP_SAT, 102.0, 51.0), outcome(CP_SAT, None, 1.0, seed=1),
    ])  # fmt: skip
    page = STUDY.report({"solver": runs})
    assert "| 2 | mosaic | 10 | 0.60%, 1.00% | 1 of 2 (at most 0.5%) | 1.0000 |" in page
    assert "| 2 | CP-SAT | 10 | 75.00%, 100.00% (1 without a placement) | 0 of 2 (at most 0.5%) | 1.0200 |" in page
    assert "| 2 | mosaic |" in STUDY.report({"solver": runs.filter(solver=MOSAIC)})


def test_a_bound_above_the_others_placement_is_reported() -> None:
    right, wrong = outcome(CP_SAT, 100.0, 99.8), outcome(MOSAIC, 101.5, 101.0)
    found = contradictions(pl.DataFrame([right, wrong]))
    assert found == ["12 experts, seed 0: mosaic's bound is above a placement of CP-SAT"]
    assert contradictions(pl.DataFrame([right, outcome(MOSAIC, 100.0, 99.8)])) == []
