"""Writes a conf/hardware file, with tables as text blocks."""

from typing import Any

import yaml

from sim.hardware.curves import Curve, curve_to_text, grid_to_text
from sim.hardware.hardware import FittedAttention, MeasuredAttention

PAIRS_PER_LINE = 10
LEGEND = "# In microseconds: curves are count:time; grids have the columns' counts in line one, each row's in front.\n"


def attention_config(attention: FittedAttention | MeasuredAttention) -> dict[str, Any]:
    """Write fitted attention as ``hardware_from_config`` reads it."""
    if isinstance(attention, FittedAttention):
        names = [name.removesuffix("_s") for name in attention.__slots__]
        return {f"{name}_us": microseconds(getattr(attention, f"{name}_s")) for name in names}
    grids = {"decode": attention.decode, "prefill": attention.prefill, "beside": attention.beside}
    return {
        **{f"{name}_us": grid_to_text(grid) for name, grid in grids.items()},
        "beside_per_token_pair_us": microseconds(attention.beside_per_token_pair_s),
    }


def microseconds(seconds: float) -> float:
    """Convert and round to four digits."""
    return float(f"{seconds * 1e6:.4g}")


def curve_block(curve: Curve) -> str:
    """Write a curve as a text block."""
    pairs = curve_to_text(curve).split()
    return "".join(" ".join(pairs[i : i + PAIRS_PER_LINE]) + "\n" for i in range(0, len(pairs), PAIRS_PER_LINE))


class _Dumper(yaml.SafeDumper):
    """Writes tables as blocks, every shape in full."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def to_yaml(config: dict[str, Any]) -> str:
    """Serialise a configuration; equal ones are equal bytes."""
    return yaml.dump(config, Dumper=_Dumper, sort_keys=False, width=118, allow_unicode=False)
