"""Plans on disk."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mosaic.core.errors import PlanError
from mosaic.planning.baselines import DataParallel
from mosaic.planning.plan_check import check_plan
from mosaic.planning.plan_file import load_plans, plans_to_json, save_plans
from mosaic.planning.program.schedulers import Ilp
from tests.factories import make_problem

PROBLEM = make_problem({"A": 30, "B": 2}, remarks=('a "note"',))


PLANS = (Ilp().plan(PROBLEM), DataParallel().plan(make_problem({"C": 3})))


def test_round_trip_keeps_the_plans_of_all_layers(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    save_plans(path, PLANS)
    loaded = load_plans(path)
    assert loaded == PLANS
    assert [plan.costs for plan in loaded] == ["table", "table"]
    assert loaded[0].solve.wall_s is None
    check_plan(loaded[0], PROBLEM)
    assert plans_to_json(loaded) == plans_to_json(PLANS) == path.read_text(encoding="utf-8")
    assert {type(session.workers) for session in loaded[1].sessions} == {tuple}


def test_wall_seconds_stay_out_of_the_file() -> None:
    plan = PLANS[0]
    assert plan.solve.wall_s is not None
    assert plan.solve.wall_s > 0
    assert PLANS[1].solve.wall_s is None
    slower = replace(plan, solve=replace(plan.solve, wall_s=99.0))
    assert plans_to_json([slower]) == plans_to_json([plan])
    assert "wall_s" not in plans_to_json(PLANS)


def test_file_is_plain_json_with_sorted_keys() -> None:
    layer = json.loads(plans_to_json(PLANS))["layers"][0]
    assert layer["scheduler"] == "ilp"
    assert layer["sessions"][0]["node"] == "propose"
    assert layer["sessions"][0]["shard"][0][1:] == ["propose", 0]
    for keys in (layer, layer["sessions"][0], layer["solve"]):
        assert list(keys) == sorted(keys)


def test_numbers_that_json_does_not_have_are_not_written() -> None:
    plan = replace(PLANS[0], solve=replace(PLANS[0].solve, gap_frac=float("nan")))
    with pytest.raises(ValueError, match="not JSON compliant"):
        plans_to_json([plan])


def drop(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda data: data.pop(key)


def put(value: object, *path: str | int) -> Callable[[dict[str, Any]], None]:
    def change(data: Any) -> None:
        for step in path[:-1]:
            data = data[step]
        data[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("sessions"), r"layers\[0\]: Object missing required field `sessions`"),
        (put(None, "costs"), r"layers\[0\]\.costs: Expected `str`, got `null`"),
        (put(-1, "lower_bound_s"), r"layers\[0\]: plan: lower_bound_s must be at least 0, got -1"),
        (put("4", "num_workers"), r"layers\[0\]\.num_workers: Expected `int`, got `str`"),
        (put({}, "sessions"), r"layers\[0\]\.sessions: Expected `array`, got `object`"),
        (put(3, "sessions", 0), r"layers\[0\]\.sessions\[0\]: Expected `object`, got `int`"),
        (put(1, "sessions", 0, "id"), r"layers\[0\]: plan: session id must be unique, got 1 twice"),
        (
            put("propose", "sessions", 0, "role"),
            r"layers\[0\]\.sessions\[0\]: unknown key 'role', known are \['after', ",
        ),
        (put(1, "colour"), r"layers\[0\]: unknown key 'colour', known are \['costs', "),
        (
            put([], "sessions", 0, "workers"),
            r"sessions\[0\]: session 0 of '.': workers must be at least one",
        ),
        (put([0.5], "sessions", 0, "workers"), r"sessions\[0\]\.workers\[0\]: Expected `int`, got `float`"),
        (
            put([["q0", "propose"]], "sessions", 0, "shard"),
            r"\.shard\[0\]: Expected `array` of length 3, got 2",
        ),
        (put(-1.0, "predicted", 0, "end_s"), r"predicted\[0\]: predicted times: end_s must be at least 0, got -1\.0"),
        (put(float("nan"), "predicted", 0, "end_s"), r"not JSON \(JSON is malformed: invalid character"),
        (put("soon", "predicted", 0, "load_s"), r"layers\[0\]\.predicted\[0\]\.load_s: Expected `float`, got `str`"),
        (put([], "predicted"), r"layers\[0\]: plan: predicted must be one entry for each of \d sessions, got 0"),
        (put(0, "lengths", "A", "mean"), r"layers\[0\]\.lengths\[\.\.\.\]: length prediction: mean must be above 0"),
        (put("lucky", "solve", "status"), r"layers\[0\]\.solve\.status: Invalid enum value 'lucky'"),
        (put("x", "solve", "gap_frac"), r"layers\[0\]\.solve\.gap_frac: Expected `float \| null`, got `str`"),
    ],
)
def test_broken_plan_names_the_key(tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    data = json.loads(plans_to_json(PLANS))
    change(data["layers"][0])
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(PlanError, match=message) as raised:
        load_plans(path)
    assert str(raised.value).startswith(f"plan {path}: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "the file: Expected `object`, got `array`"),
        (b"\xff\xfe", "not JSON"),
        (b'{"\xff": 1}', "not UTF-8 text"),
        (b'{"layers": [1e999]}', "Number out of range"),
        (b'{"layers": []}', "the file: layers must be the plans of one layer or more"),
        (b'{"layers": 3}', "layers: Expected `array`, got `int`"),
        (b'{"more": []}', "the file: layers must be the plans of one layer or more"),
        (
            plans_to_json(PLANS).encode().splitlines()[1].rstrip(b","),
            "a file of an earlier version has only one plan",
        ),
    ],
)
def test_file_that_is_no_plan_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(PlanError, match=message):
        load_plans(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"absent\.json: cannot be read"):
        load_plans(tmp_path / "absent.json")
    with pytest.raises(PlanError, match="cannot be read"):
        load_plans(tmp_path)


def test_a_file_that_was_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    whole = plans_to_json(PLANS).encode().rstrip()
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        with pytest.raises(PlanError, match="not JSON"):
            load_plans(path)
