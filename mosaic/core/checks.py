"""Checks shared by the value types: each names the field, the rule and the value received."""

import math
from collections.abc import Iterable


def require(condition: bool, field: str, rule: str, value: object) -> None:
    """Raise ``ValueError`` naming the field, the rule and the value unless the condition holds."""
    if not condition:
        raise ValueError(f"{field} must be {rule}, got {value!r}")


def require_number(value: object, field: str, *, above: float | None = None, at_least: float | None = None) -> None:
    """Check a finite real number (not a bool) against optional lower limits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{field} must be a number, got {value!r}")
    require(math.isfinite(value), field, "finite", value)
    if above is not None:
        require(value > above, field, f"above {above:g}", value)
    if at_least is not None:
        require(value >= at_least, field, f"at least {at_least:g}", value)


def require_count(value: object, field: str, *, at_least: int = 0) -> None:
    """Check a whole number (not a bool) that is not below the limit."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{field} must be a whole number, got {value!r}")
    require(value >= at_least, field, f"at least {at_least}", value)


def require_name(value: object, field: str) -> None:
    """Check a non-empty string."""
    if not isinstance(value, str):
        raise TypeError(f"{field} must be a string, got {value!r}")
    require(bool(value.strip()), field, "a non-empty string", value)


def require_unique(values: Iterable[object], field: str) -> None:
    """Check that no value occurs twice."""
    seen: set[object] = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{field} must be unique, got {value!r} twice")
        seen.add(value)
