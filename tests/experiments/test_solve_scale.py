"""Placement problems for solvers alone, and the table that sets one solver beside the other."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from experiments.solve_scale import main
from experiments.studies import solver_scale
from experiments.studies.cp_sat_process import UNITS_PER_S
from experiments.studies.placement_instances import draw_problem, read_problem
from experiments.studies.solver_scale import (
    CP_SAT,
    MOSAIC,
    Outcome,
    Size,
    contradictions,
    keep_outcome,
    read_outcomes,
    solve_by_cp_sat,
    solve_by_mosaic,
    table_lines,
)
from mosaic.planning.schedulers.instance import Instance

SMALL = Size(num_experts=3, num_workers=2, time_limit_s=120.0, most_gap_frac=0.005)


def make_outcome(**changes: object) -> Outcome:
    values: dict[str, object] = {
        "size": "12 x 8",
        "problem": "drawn 0",
        "solver": MOSAIC,
        "time_limit_s": 10.0,
        "makespan_s": 100.0,
        "bound_s": 99.8,
        "wall_s": 9.0,
        "cpu_s": 8.0,
    }
    return Outcome(**{**values, **changes})  # type: ignore[arg-type]


def test_drawn_problems_are_the_same_for_a_seed_and_follow_equation_8() -> None:
    problem = draw_problem(12, 8, 3)
    assert problem == draw_problem(12, 8, 3) != draw_problem(12, 8, 4)
    for expert in problem.experts:
        worth = int(expert.num_calls * expert.cost_per_call_s / expert.load_s)
        assert expert.max_replicas == min(8, max(1, worth))
        for seconds in (expert.load_s, expert.cost_per_call_s):  # CP-SAT's whole numbers are exact
            assert seconds * UNITS_PER_S == pytest.approx(round(seconds * UNITS_PER_S), abs=1e-6)


def test_a_file_is_read_as_it_is_written(tmp_path: Path) -> None:
    problem = draw_problem(3, 2, 0)
    values = problem.to_json()
    del values["label"]
    (tmp_path / "drawn 0.json").write_text(json.dumps(values))
    assert read_problem(tmp_path / "drawn 0.json") == problem
    instance = problem.instance()
    assert isinstance(instance, Instance)
    assert instance.setup_s[1] == (problem.experts[1].load_s,) * 2


def test_a_file_with_other_keys_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('{"num_workers": 2}')
    with pytest.raises(ValueError, match=r"p\.json: keys must be exactly \['experts', 'max_experts_per_worker'"):
        read_problem(tmp_path / "p.json")
    (tmp_path / "p.json").write_text('{"num_workers": 2, "max_experts_per_worker": 3, "experts": [{"name": "A"}]}')
    with pytest.raises(ValueError, match="missing 4 required"):
        read_problem(tmp_path / "p.json")


def test_mosaic_solves_a_small_problem_to_its_end() -> None:
    outcome = solve_by_mosaic(draw_problem(3, 2, 0), SMALL)
    assert outcome.gap_frac == pytest.approx(0.0, abs=1e-6)


def test_a_process_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("raise SystemExit('no solver here')")
    monkeypatch.setattr(solver_scale, "CP_SAT_PROGRAM", broken)
    with pytest.raises(RuntimeError, match="CP-SAT failed with status 1: no solver here"):
        solve_by_cp_sat(draw_problem(3, 2, 0), SMALL, python=Path(sys.executable), num_threads=1)


@pytest.mark.skipif(find_spec("ortools") is None, reason="OR-Tools has an environment of its own")
def test_cp_sat_agrees() -> None:
    problem = draw_problem(3, 2, 0)
    peer = solve_by_cp_sat(problem, SMALL, python=Path(sys.executable), num_threads=1)
    assert peer.makespan_s == pytest.approx(solve_by_mosaic(problem, SMALL).makespan_s, rel=1e-6)


def test_what_the_peer_says_is_priced_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = draw_problem(3, 2, 0)
    counts = [[expert.num_calls, 0] for expert in problem.experts]
    peer = tmp_path / "peer.py"
    peer.write_text(
        "import json, sys; json.load(sys.stdin);"
        f"json.dump({{'counts': {counts}, 'bound_s': 1.0, 'wall_s': 2.0, 'cpu_s': 3.0}}, sys.stdout)"
    )
    monkeypatch.setattr(solver_scale, "CP_SAT_PROGRAM", peer)
    outcome = solve_by_cp_sat(problem, SMALL, python=Path(sys.executable), num_threads=1)
    assert outcome.makespan_s == pytest.approx(
        sum(expert.load_s + expert.num_calls * expert.cost_per_call_s for expert in problem.experts)
    )
    assert (outcome.bound_s, outcome.wall_s, outcome.cpu_s) == (1.0, 2.0, 3.0)


def test_outcomes_are_kept_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "outcomes.jsonl"
    assert read_outcomes(path) == []
    first, second = make_outcome(), make_outcome(solver=CP_SAT, makespan_s=None)
    keep_outcome(path, first)
    keep_outcome(path, second)
    assert read_outcomes(path) == [first, second]


def test_table_counts_gaps_aims_and_missing_placements() -> None:
    outcomes = [
        make_outcome(),
        make_outcome(problem="drawn 1", bound_s=99.0),
        make_outcome(solver=CP_SAT, makespan_s=102.0, bound_s=51.0),
        make_outcome(solver=CP_SAT, problem="drawn 1", makespan_s=None, bound_s=1.0),
    ]
    _, _, mosaic, peer = table_lines(outcomes)
    assert "| 2 | mosaic | 10 | 0.60%, 1.00% | 1 of 2 (at most 0.5%) | 1.0000 |" in mosaic
    assert "| 2 | CP-SAT | 10 | 75.00%, 100.00% (1 without a placement) | 0 of 2 (at most 0.5%) | 1.0200 |" in peer


def test_a_bound_above_the_others_placement_is_told() -> None:
    right, wrong = make_outcome(solver=CP_SAT), make_outcome(bound_s=101.0, makespan_s=101.5)
    assert contradictions([right, wrong]) == ["12 x 8, drawn 0: mosaic's bound is above CP-SAT's placement"]
    assert contradictions([right, make_outcome()]) == []


def test_command_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.solve_scale.SIZES", (SMALL,))
    monkeypatch.setattr(solver_scale, "SIZES", (SMALL,))
    main(["--drawn", "1", "--out", str(tmp_path)])
    (first,) = read_outcomes(tmp_path / "outcomes.jsonl")
    main(["--drawn", "2", "--out", str(tmp_path)])
    kept = read_outcomes(tmp_path / "outcomes.jsonl")
    assert kept[0] == first
    assert [outcome.problem for outcome in kept] == ["drawn 0", "drawn 1"]
    assert "| 3 x 2 | 2 | mosaic |" in (tmp_path / "solver.md").read_text()
