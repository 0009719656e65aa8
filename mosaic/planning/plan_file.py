"""Plans on disk: JSON with equal bytes for equal plans, and an error that says what is wrong with a broken file."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from mosaic.core.checks import require_number
from mosaic.core.errors import PlanError
from mosaic.core.plan import Plan, PredictedTimes, Session, SolveReport, SolveStatus
from mosaic.core.prediction import LengthPrediction
from mosaic.core.workload import CallKey

SCHEMA_VERSION = 1

Value = TypeVar("Value")


def plan_to_json(plan: Plan) -> str:
    """Serialise a plan, one session a line; wall seconds are left out, so equal plans are equal bytes."""
    head = {
        "schema_version": SCHEMA_VERSION,
        "scheduler": plan.scheduler,
        "costs": plan.costs,
        "problem_fingerprint": plan.problem_fingerprint,
        "num_workers": plan.num_workers,
        "predicted_makespan_s": plan.predicted_makespan_s,
        "lower_bound_s": plan.lower_bound_s,
        "solve": {
            "status": plan.solve.status.value,
            "objective_s": plan.solve.objective_s,
            "bound_s": plan.solve.bound_s,
            "gap_frac": plan.solve.gap_frac,
            "num_vars": plan.solve.num_vars,
            "num_constraints": plan.solve.num_constraints,
        },
        "lengths": {
            name: {"mean": lengths.mean, "max": lengths.max, "std": lengths.std}
            for name, lengths in plan.lengths.items()
        },
        "notes": list(plan.notes),
    }
    lines = [f"{json.dumps(key)}: {_dumps(value)},\n" for key, value in head.items()]
    sessions = ",\n".join(
        _dumps(_session_to_dict(session, times)) for session, times in zip(plan.sessions, plan.predicted, strict=True)
    )
    return "{\n" + "".join(lines) + '"sessions": [\n' + sessions + "\n]\n}\n"


def load_plan(path: str | Path) -> Plan:
    """Read a plan written by ``plan_to_json``.

    Whether it fits a problem is ``check_plan``'s question, not asked here.

    Raises
    ------
    PlanError
        If the file cannot be read or is not a plan; the message names the key at fault.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise PlanError(f"plan {path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise PlanError(f"plan {path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    try:
        return _plan_from_dict(_as(dict, json.loads(text), "the file"))
    except json.JSONDecodeError as error:
        raise PlanError(f"plan {path}: not JSON (line {error.lineno}: {error.msg})") from error
    except (ValueError, TypeError) as error:
        raise PlanError(f"plan {path}: {error}") from error


def _dumps(value: object) -> str:
    return json.dumps(value, allow_nan=False, separators=(", ", ": "))


def _session_to_dict(session: Session, times: PredictedTimes) -> dict[str, object]:
    return {
        "id": session.id,
        "expert": session.expert,
        "node": session.node,
        "workers": list(session.workers),
        "after": list(session.after),
        "start_s": times.start_s,
        "load_s": times.load_s,
        "end_s": times.end_s,
        "shard": [[key.question, key.node, key.slot] for key in session.shard],
    }


def _plan_from_dict(data: Mapping[str, Any]) -> Plan:
    version = _get(data, "schema_version", int)
    if version != SCHEMA_VERSION:
        raise ValueError(f"schema_version must be {SCHEMA_VERSION}, got {version}")
    rows = [_as(dict, row, f"sessions[{number}]") for number, row in enumerate(_get(data, "sessions", list))]
    return Plan(
        scheduler=_get(data, "scheduler", str),
        costs=_get(data, "costs", str),
        problem_fingerprint=_get(data, "problem_fingerprint", str),
        num_workers=_get(data, "num_workers", int),
        sessions=tuple(_session(row, f"sessions[{number}].") for number, row in enumerate(rows)),
        predicted=tuple(
            PredictedTimes(*(_seconds(row, key, f"sessions[{number}].") for key in ("start_s", "load_s", "end_s")))
            for number, row in enumerate(rows)
        ),
        lengths={
            name: _lengths(_as(dict, row, f"lengths.{name}"), f"lengths.{name}.")
            for name, row in _get(data, "lengths", dict).items()
        },
        lower_bound_s=_seconds(data, "lower_bound_s"),
        solve=_solve(_get(data, "solve", dict)),
        notes=tuple(_as(str, note, "notes") for note in _get(data, "notes", list)),
    )


def _session(row: Mapping[str, Any], where: str) -> Session:
    return Session(
        id=_get(row, "id", int, where),
        expert=_get(row, "expert", str, where),
        node=_get(row, "node", str, where),
        workers=tuple(_as(int, worker, f"{where}workers") for worker in _get(row, "workers", list, where)),
        shard=tuple(_key(key, f"{where}shard") for key in _get(row, "shard", list, where)),
        after=tuple(_as(int, needed, f"{where}after") for needed in _get(row, "after", list, where)),
    )


def _key(value: object, where: str) -> CallKey:
    parts = _as(list, value, where)
    if len(parts) != 3:
        raise ValueError(f"{where} must hold [question, role, slot], got {parts!r}")
    return CallKey(_as(str, parts[0], where), _as(str, parts[1], where), _as(int, parts[2], where))


def _solve(row: Mapping[str, Any]) -> SolveReport:
    numbers = {key: row.get(key) for key in ("objective_s", "bound_s", "gap_frac", "num_vars", "num_constraints")}
    for key, value in numbers.items():
        if value is not None:
            require_number(value, f"solve.{key}")
    status = _choice(SolveStatus, _get(row, "status", str, "solve."), "solve.status")
    return SolveReport(status=status, **numbers)


def _lengths(row: Mapping[str, Any], where: str) -> LengthPrediction:
    return LengthPrediction(**{key: _seconds(row, key, where) for key in ("mean", "max", "std")})


def _get(data: Mapping[str, Any], key: str, kind: type[Value], where: str = "") -> Value:
    if key not in data:
        raise ValueError(f"{where}{key} must be present, got keys {sorted(data)}")
    return _as(kind, data[key], f"{where}{key}")


def _as(kind: type[Value], value: object, where: str) -> Value:
    """Check a value's JSON type exactly: true is no integer."""
    if type(value) is not kind:
        raise TypeError(f"{where} must be of type {kind.__name__}, got {value!r}"[:300])
    return value


def _seconds(data: Mapping[str, Any], key: str, where: str = "") -> float:
    if key not in data:
        raise ValueError(f"{where}{key} must be present, got keys {sorted(data)}")
    require_number(data[key], f"{where}{key}", at_least=0)
    return data[key]  # type: ignore[no-any-return]


def _choice(kind: Callable[[str], Value], value: str, where: str) -> Value:
    try:
        return kind(value)
    except ValueError:
        allowed = [member.value for member in kind]  # type: ignore[attr-defined]
        raise ValueError(f"{where} must be one of {allowed}, got {value!r}") from None
