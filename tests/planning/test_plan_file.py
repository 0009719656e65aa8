"""Plans on disk."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mosaic.core.errors import PlanError
from mosaic.planning.ilp.ilp import Ilp
from mosaic.planning.plan_check import check_plan
from mosaic.planning.plan_file import load_plan, plan_to_json
from mosaic.planning.schedulers.data_parallel import DataParallel
from tests.factories import make_problem

PROBLEM = make_problem({"A": 30, "B": 2}, remarks=('a "note"',))


@pytest.mark.parametrize("scheduler", [Ilp(), DataParallel()], ids=["ilp", "data_parallel"])
def test_round_trip_keeps_the_plan(tmp_path: Path, scheduler: Ilp | DataParallel) -> None:
    plan = scheduler.plan(PROBLEM)
    path = tmp_path / "plan.json"
    path.write_text(plan_to_json(plan), encoding="utf-8")
    loaded = load_plan(path)
    assert loaded == plan
    assert loaded.costs == "table"
    assert loaded.solve.wall_s is None
    check_plan(loaded, PROBLEM)
    assert plan_to_json(loaded) == plan_to_json(plan)


def test_wall_seconds_stay_out_of_the_file() -> None:
    plan = Ilp().plan(PROBLEM)
    assert plan.solve.wall_s is not None
    assert plan.solve.wall_s > 0
    assert DataParallel().plan(PROBLEM).solve.wall_s is None
    slower = replace(plan, solve=replace(plan.solve, wall_s=99.0))
    assert plan_to_json(slower) == plan_to_json(plan)
    assert "wall_s" not in plan_to_json(plan)


def test_file_is_plain_json() -> None:
    data = json.loads(plan_to_json(Ilp().plan(PROBLEM)))
    assert data["scheduler"] == "ilp"
    assert data["sessions"][0]["shard"][0][1:] == ["propose", 0]


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
        (drop("sessions"), "sessions must be present"),
        (drop("costs"), "costs must be present"),
        (put(None, "costs"), "costs must be of type str, got None"),
        (drop("lower_bound_s"), "lower_bound_s must be present"),
        (drop("schema_version"), "schema_version must be present"),
        (put(2, "schema_version"), "schema_version must be 1, got 2"),
        (put("4", "num_workers"), "num_workers must be of type int, got '4'"),
        (put(True, "num_workers"), "num_workers must be of type int, got True"),
        (put({}, "sessions"), "sessions must be of type list"),
        (put(3, "sessions", 0), r"sessions\[0\] must be of type dict, got 3"),
        (put("x", "sessions", 0, "id"), r"sessions\[0\]\.id must be of type int, got 'x'"),
        (put("judge", "sessions", 0, "role"), r"sessions\[0\]\.role must be one of \['propose', 'aggregate'\]"),
        (put([], "sessions", 0, "workers"), "workers must be at least one worker"),
        (put([0.5], "sessions", 0, "workers"), r"sessions\[0\]\.workers must be of type int, got 0\.5"),
        (put([], "sessions", 0, "shard"), "shard must be at least one call"),
        (put([["q0", "propose"]], "sessions", 0, "shard"), r"must hold \[question, role, slot\]"),
        (put([["q0", "x", 0]], "sessions", 0, "shard"), r"shard must be one of \['propose', 'aggregate'\], got 'x'"),
        (put(-1.0, "sessions", 0, "end_s"), r"sessions\[0\]\.end_s must be at least 0, got -1\.0"),
        (put(float("nan"), "sessions", 0, "end_s"), r"sessions\[0\]\.end_s must be finite, got nan"),
        (put("soon", "sessions", 0, "load_s"), r"sessions\[0\]\.load_s must be a number, got 'soon'"),
        (put(0, "lengths", "A", "mean"), "mean must be above 0"),
        (put("lucky", "solve", "status"), r"solve\.status must be one of \['optimal'"),
        (put("x", "solve", "gap_frac"), r"solve\.gap_frac must be a number, got 'x'"),
        (put([1], "notes"), "notes must be of type str, got 1"),
    ],
)
def test_broken_plan_names_the_key(tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    data = json.loads(plan_to_json(Ilp().plan(PROBLEM)))
    change(data)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(PlanError, match=message) as raised:
        load_plan(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not JSON .line 1"),
        (b"[]", "the file must be of type dict"),
        (b"\xff\xfe", "not UTF-8 text"),
    ],
)
def test_file_that_is_no_plan_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(PlanError, match=message):
        load_plan(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"absent\.json: cannot be read"):
        load_plan(tmp_path / "absent.json")
    with pytest.raises(PlanError, match="cannot be read"):
        load_plan(tmp_path)
