"""Checks name the field, the rule and the value."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic.core.checks import (
    AtLeast1,
    Limit,
    Name,
    Positive,
    Share,
    check_fields,
    require,
    require_count,
    require_name,
    require_number,
    require_unique,
)  # fmt: skip


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A field of each kind that `check_fields` knows, and one that it leaves alone."""

    name: Name = "a"
    count: AtLeast1 | None = 1
    price: Annotated[float, Limit(above=0, below=2)] = 1.0
    share: Share = 0.5
    colour: Colour = Colour.RED
    kind: Literal["x", "y"] = "x"
    loud: bool = True
    sizes: tuple[AtLeast1, ...] = ()
    others: tuple[str, ...] = ()
    prices: Mapping[str, Positive] = field(default_factory=dict)
    free: object = None

    def __post_init__(self) -> None:
        check_fields(self, "value.")


def test_fields_become_what_their_types_say() -> None:
    value = Value(colour="blue", sizes=[1, 2], others=iter("ab"), prices={"a": 1}, count=None, free=-1)  # type: ignore[arg-type]
    assert (value.colour, value.sizes, value.others, value.prices) == (Colour.BLUE, (1, 2), ("a", "b"), {"a": 1})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": " "}, "value.name must be a non-empty string, got ' '"),
        ({"count": 0}, "value.count must be at least 1, got 0"),
        ({"count": "1"}, "value.count must be a whole number, got '1'"),
        ({"price": 2}, "value.price must be below 2, got 2"),
        ({"price": 0.0}, "value.price must be above 0, got 0.0"),
        ({"share": 1.5}, "value.share must be at most 1, got 1.5"),
        ({"share": None}, "value.share must be a number, got None"),
        ({"colour": "green"}, r"value.colour must be one of \['red', 'blue'\], got 'green'"),
        ({"kind": "z"}, r"value.kind must be one of \['x', 'y'\], got 'z'"),
        ({"loud": 1}, "value.loud must be true or false, got 1"),
        ({"sizes": "12"}, "value.sizes must be a list of whole numbers, got '12'"),
        ({"sizes": 12}, "value.sizes must be a list of whole numbers, got 12"),
        ({"sizes": [1, 0]}, "value.sizes must be at least 1, got 0"),
        ({"prices": [1]}, r"value.prices must be a mapping, got \[1\]"),
        ({"prices": {"a": 1, "b": 0}}, "value.prices.b must be above 0, got 0"),
    ],
)
def test_fields_are_checked_by_their_types(changes: dict[str, object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^{message}$"):
        Value(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("check", "value", "message"),
    [
        (partial(require, False, "x", "at least one"), "none", "x must be at least one, got 'none'"),
        *(
            (partial(require_number, field="x"), bad, "x must be a number, got ")
            for bad in (True, "3", None, 1j, [1.0])
        ),
        *(
            (partial(require_number, field="x", at_least=-1e9), bad, "x must be finite, got ")
            for bad in (math.nan, math.inf, -math.inf)
        ),
        *((partial(require_count, field="x"), bad, "x must be a whole number, got ") for bad in (True, 3.0, "3", None)),
        (partial(require_count, field="x"), -1, "x must be at least 0, got -1$"),
        (partial(require_name, field="x"), 7, "x must be a string, got 7$"),
        *((partial(require_name, field="x"), blank, "x must be a non-empty string, got ") for blank in ("", " \t\n")),
    ],
)
def test_a_broken_rule_names_field_rule_and_value(check: Callable[..., None], value: object, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^{message}"):
        check(value=value)


def refuses(check: Callable[[], None]) -> bool:
    try:
        check()
    except ValueError:
        return True
    return False


@given(value=st.floats(-1e6, 1e6), limit=st.floats(-1e6, 1e6), whole=st.integers(-5, 5), least=st.integers(-5, 5))
def test_limits_are_exact(value: float, limit: float, whole: int, least: int) -> None:
    assert refuses(lambda: require_number(value, "x", above=limit)) == (value <= limit)
    assert refuses(lambda: require_number(value, "x", at_least=limit)) == (value < limit)
    assert refuses(lambda: require_number(limit, "x", above=limit))
    assert refuses(lambda: require_count(whole, "x", at_least=least)) == (whole < least)


@given(st.lists(st.integers(0, 20), max_size=12))
def test_uniqueness_is_that_of_a_set(values: list[int]) -> None:
    assert refuses(lambda: require_unique(iter(values), "x")) == (len(set(values)) < len(values))
    with pytest.raises(ValueError, match="^x must be unique, got 7 twice$"):
        require_unique([7, 7], "x")
