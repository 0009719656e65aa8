"""Checks name the field, the rule and the value."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
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


def test_a_rule_that_holds_is_silent() -> None:
    require(True, "x", "true", 1)
    require_number(0.5, "x", above=0, at_least=0.5)
    require_number(3, "x")
    require_count(3, "x", at_least=3)
    require_name("a", "x")
    require_unique("abc", "x")


def test_a_broken_rule_names_field_rule_and_value() -> None:
    with pytest.raises(ValueError, match=r"^num_workers must be at least one, got 'none'$"):
        require(False, "num_workers", "at least one", "none")


@pytest.mark.parametrize("value", [True, "3", None, 1j, [1.0]])
def test_a_number_is_not_a_bool_or_text(value: object) -> None:
    with pytest.raises(TypeError, match="^x must be a number, got "):
        require_number(value, "x")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_is_finite(value: float) -> None:
    with pytest.raises(ValueError, match="^x must be finite, got "):
        require_number(value, "x", at_least=-1e9)


@given(value=st.floats(-1e6, 1e6), limit=st.floats(-1e6, 1e6))
def test_limits_of_numbers_are_exact(value: float, limit: float) -> None:
    for kind, holds in (("above", value > limit), ("at_least", value >= limit)):
        if holds:
            require_number(value, "x", **{kind: limit})  # type: ignore[arg-type]
        else:
            with pytest.raises(ValueError, match=f"^x must be {kind.replace('_', ' ')} "):
                require_number(value, "x", **{kind: limit})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [True, 3.0, "3", None])
def test_a_count_is_a_whole_number(value: object) -> None:
    with pytest.raises(TypeError, match="^x must be a whole number, got "):
        require_count(value, "x")


@given(value=st.integers(-5, 5), limit=st.integers(-5, 5))
def test_limits_of_counts_are_exact(value: int, limit: int) -> None:
    if value >= limit:
        require_count(value, "x", at_least=limit)
    else:
        with pytest.raises(ValueError, match=rf"^x must be at least {limit}, got {value}$"):
            require_count(value, "x", at_least=limit)


def test_a_count_is_not_negative_unless_told_otherwise() -> None:
    with pytest.raises(ValueError, match="^x must be at least 0, got -1$"):
        require_count(-1, "x")


def test_a_name_is_text_that_shows() -> None:
    with pytest.raises(TypeError, match="^x must be a string, got 7$"):
        require_name(7, "x")
    for blank in ("", " \t\n"):
        with pytest.raises(ValueError, match="^x must be a non-empty string, got "):
            require_name(blank, "x")


@given(st.lists(st.integers(0, 20), max_size=12))
def test_uniqueness_is_that_of_a_set(values: list[int]) -> None:
    if len(set(values)) == len(values):
        require_unique(iter(values), "x")
    else:
        with pytest.raises(ValueError, match=r"^x must be unique, got \d+ twice$"):
            require_unique(iter(values), "x")
