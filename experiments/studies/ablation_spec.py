"""Reads what the figure of a sweep shows, as a preset under conf/experiment says it."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.analysis.ablation_spec import AblationSpec, Axis, Line, Name, Panel, Reference
from experiments.config.instantiation import call
from mosaic.core.checks import require


def read_spec(config: Mapping[str, Any]) -> AblationSpec:
    """Build the description of a figure from plain values.

    Raises
    ------
    ValueError, TypeError
        Naming the field, the rule and the value.
    """
    keys = {"title", "about", "x", "panels", "lines", "finding"}
    given = {key for key in config if not key.startswith("_")}
    require(given == keys, "figure: keys", f"{sorted(keys)}", sorted(given))
    x = dict(_mapping(config["x"], "figure.x"))
    for part in ("names", "ticks"):
        label = f"figure.x.{part}"
        x[part] = tuple(call(Name, label, **_mapping(name, label)) for name in _listed(x.get(part, []), label))
    return AblationSpec(
        title=config["title"],
        about=config["about"],
        finding=config["finding"],
        x=call(Axis, "figure.x", **x),
        panels=tuple(_panel(entry) for entry in _listed(config["panels"], "figure.panels")),
        lines=tuple(
            Line(label=label, where=dict(_mapping(where, f"figure.lines.{label}")))
            for label, where in _mapping(config["lines"], "figure.lines").items()
        ),
    )


def _panel(entry: object) -> Panel:
    values = dict(_mapping(entry, "figure.panels"))
    if values.get("relative_to") is not None:
        label = "figure.panels: relative_to"
        values["relative_to"] = call(Reference, label, **_mapping(values["relative_to"], label))
    panel: Panel = call(Panel, "figure.panels", **values)
    return panel


def _mapping(value: object, label: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{label} must be a mapping, got {value!r}")
    return value


def _listed(value: object, label: str) -> Sequence[Any]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{label} must be a list, got {value!r}")
    return value
