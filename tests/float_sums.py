"""Lets the built-in sum refuse floats where a run adds: what it rounds to depends on Python's version."""

import builtins
import sys
from typing import Any

GUARDED = ("mosaic.", "sim.")
"""Modules by which plans, calls, screens and summaries are made."""
_plain_sum = builtins.sum


def guarded_sum(iterable: Any, /, start: Any = 0) -> Any:
    """Add, unless a guarded module adds floats; torch compares the signature with that of the built-in function."""
    total = _plain_sum(iterable, start)
    if isinstance(total, float):
        caller = sys._getframe(1).f_globals["__name__"]
        assert not caller.startswith(GUARDED), f"{caller}: floats are added by mosaic.core.addition.add_in_order"
    return total


def guard_sums() -> None:
    """Put the guard in the place of the built-in function, for all tests of this process."""
    builtins.sum = guarded_sum
