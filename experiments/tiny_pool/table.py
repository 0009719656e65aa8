"""The tiny pool's results as text."""

from collections.abc import Mapping
from typing import Any

from experiments.tiny_pool.questions import SKILLS

_GROUPS = (*(skill.value for skill in SKILLS), "all")


def describe_pool(manifest: Mapping[str, Any]) -> str:
    """Write a pool's results as a table.

    Parameters
    ----------
    manifest
        Of the pool, as ``experiments/make_pool.py`` writes it.
    """
    results = manifest["results"]
    routed = results["routed"]
    lines = [
        f"right answers, {results['num_test']} held-out questions",
        _row("", [group.replace("_", " ") for group in _GROUPS], "tokens"),
    ]
    for name, expert in results["experts"].items():
        tokens = f"{expert['output_tokens']['mean']:.0f}"
        lines.append(_row(name, _shares(expert["right"]), tokens))
    lines += [
        _row("best expert of skill", _shares(results["best_routed_expert"])),
        _row("majority of three", _shares(routed["majority"])),
        _row("aggregator", _shares(routed["aggregator"])),
        _row("aggregator alone", _shares(results["aggregator_alone"])),
        _divisions(routed),
        _verdict(routed),
    ]
    return "\n".join(lines)


def _row(label: str, cells: list[str], last: str = "") -> str:
    return f"{label:<22}{''.join(f'{cell:>12}' for cell in cells)}{last:>9}".rstrip()


def _shares(right: Mapping[str, float]) -> list[str]:
    return [f"{right[group]:.1%}" for group in _GROUPS]


def _divisions(routed: Mapping[str, Any]) -> str:
    parts = [
        f"{division} on {share:.0%}, {routed['majority_by_division'][division]:.0%} right by majority and "
        f"{routed['aggregator_by_division'][division]:.0%} by aggregator"
        for division, share in sorted(routed["division_share"].items(), reverse=True)
    ]
    return "answers divide " + "; ".join(parts)


def _verdict(routed: Mapping[str, Any]) -> str:
    gain = routed["aggregator"]["all"] - routed["majority"]["all"]
    return (
        f"aggregator against majority: {100 * gain:+.1f} points, right alone on {routed['aggregator_only_right']} "
        f"questions against {routed['majority_only_right']} (p = {routed['p_value']:.2g})"
    )
