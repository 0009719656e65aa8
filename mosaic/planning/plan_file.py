"""Saves and loads plans: the plans of all layers of a run in one JSON file, equal bytes for equal plans."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mosaic.core.checks import require
from mosaic.core.errors import PlanError
from mosaic.core.json_file import read_json
from mosaic.core.plan import Plan


@dataclass(frozen=True, slots=True)
class _PlanFile:
    """The content of the file."""

    layers: tuple[Plan, ...] = ()

    def __post_init__(self) -> None:
        rule = "the plans of one layer or more (a file of an earlier version has only one plan: plan again)"
        require(len(self.layers) > 0, "layers", rule, self.layers)


def replans_to_jsonl(replans: Sequence[tuple[Plan, Mapping[int, str]]]) -> bytes:
    """Encode new plans, one per line, with the lost workers."""
    lines = ({"lost_workers": lost, "plan": json.loads(plans_to_json([plan]))["layers"][0]} for plan, lost in replans)
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def plans_to_json(plans: Sequence[Plan]) -> str:
    """Serialise the plans of a run's layers, one layer per line; without wall seconds, so equal plans give equal bytes.

    Raises
    ------
    ValueError
        If a number is not finite.
    """
    layers = [msgspec.to_builtins(plan) for plan in plans]
    for layer in layers:
        del layer["solve"]["wall_s"]
    lines = ",\n".join(json.dumps(layer, allow_nan=False, sort_keys=True) for layer in layers)
    return f'{{"layers": [\n{lines}\n]}}\n'


def save_plans(path: str | Path, plans: Sequence[Plan]) -> None:
    """Write the plans of a run's layers for ``load_plans``."""
    Path(path).write_text(plans_to_json(plans), encoding="utf-8")


def load_plans(path: str | Path) -> tuple[Plan, ...]:
    """Read the plans of a run's layers.

    ``check_plan`` tests whether they fit their problems.

    Raises
    ------
    PlanError
        If the file cannot be read or holds no plans; the message names the position in the file.
    """
    return read_json(path, _PlanFile, "plan", PlanError).layers
