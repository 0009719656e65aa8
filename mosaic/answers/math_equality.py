"""Tests whether two mathematical answers are equal.

NOTE: an answer is parsed whole or not at all (`math_parser`); an answer that is not parsed equals its own text only.
Expressions are equal if their values are (`math_values`), exactly or to thousands of bits. Expressions that cannot be
evaluated, or cannot be shown to be equal, count as different: agreement must be proven, since agreement skips an
aggregator.

Equality of answers is not transitive. 75% equals both 75 (the question wants a percentage) and 0.75; '2 hours'
equals '120 minutes', and '2' where the question names the unit; 'x = 5' equals '5'.
"""

import re
from fractions import Fraction
from functools import lru_cache

from mosaic.answers.math_parser import parse
from mosaic.answers.math_text import tidy
from mosaic.answers.math_tree import Answer, Expression, Group, Operation, Quantity, Relation, is_name, variables
from mosaic.answers.math_values import Values

_PERCENT = (Fraction(1), Fraction(1, 100))
_UNORDERED = ({",", "{}"}, {"union"})
_FORMULA = re.compile(r"\d|[\\^_+*/=<>(\[{|-]|^[A-Za-z]$")
"""Without any of these a text is prose."""


def same_value(one: str, other: str) -> bool:
    r"""Return whether two answers are the same number, expression, quantity, or group of them.

    Examples
    --------
    >>> same_value(r"\frac{3}{4}", "0.75"), same_value("1,234", "1234"), same_value("2**10", "2**11")
    (True, True, False)
    >>> same_value("5 million", "5,000,000"), same_value("2 hours", "120 minutes"), same_value("2 hours", "2 minutes")
    (True, True, False)
    """
    first, second = sorted((tidy(one), tidy(other)))
    return first == second or (bool(_FORMULA.search(first) and _FORMULA.search(second)) and _compared(first, second))


@lru_cache(maxsize=4096)
def _compared(first: str, second: str) -> bool:
    one, other = parse(first), parse(second)
    return one is not None and other is not None and _same(one, other, Values(variables(one) | variables(other)))


def _same(one: Answer, other: Answer, values: Values) -> bool:
    if one == other:
        return True
    if isinstance(one, Relation) and isinstance(other, Relation):
        return _same_relation(one, other, values)
    if isinstance(one, Relation):
        return _is_value_of(one, other, values)
    if isinstance(other, Relation):
        return _is_value_of(other, one, values)
    if isinstance(one, Quantity) and isinstance(other, Quantity):
        return _same_quantity(one, other, values)
    return isinstance(one, Group) and isinstance(other, Group) and _same_group(one, other, values)


def _is_value_of(relation: Relation, value: Answer, values: Values) -> bool:
    """Whether a relation only names the value: 'x = 5' means 5, and so does 'x = 2 + 3 = 5'."""
    name, *sides = relation.sides
    return relation.sign == "=" and is_name(name) and all(_same(side, value, values) for side in sides)


def _same_relation(one: Relation, other: Relation, values: Values) -> bool:
    if one.sign != other.sign or len(one.sides) != len(other.sides):
        return False
    if all(_same(*pair, values) for pair in zip(one.sides, other.sides, strict=True)):
        return True
    first, second = _difference(one), _difference(other)
    if first is None or second is None or not variables(one):
        return False
    is_equation = one.sign in ("=", "!=")
    factors = {Fraction(1), values.exact_ratio(first, second)} | ({Fraction(-1)} if is_equation else set())
    return any(
        values.are_equal(first, Operation("*", (factor, second)))
        for factor in factors
        if factor is not None and (factor > 0 or is_equation)
    )


def _difference(relation: Relation) -> Expression | None:
    """Return the left side less the right one; None: they are no plain expressions."""
    left, right = relation.sides[0], relation.sides[-1]
    if len(relation.sides) != 2 or not (isinstance(left, Quantity) and isinstance(right, Quantity)):
        return None
    if left.unit or right.unit or left.is_percent or right.is_percent:
        return None
    return Operation("+", (left.amount, Operation("*", (Fraction(-1), right.amount))))


def _same_quantity(one: Quantity, other: Quantity, values: Values) -> bool:
    if one.is_percent != other.is_percent:
        percent, plain = (one, other) if one.is_percent else (other, one)
        return plain.unit is None and any(_same_amount(percent, plain, scale, values) for scale in _PERCENT)
    if one.unit is None or other.unit is None:  # the question names it
        return _same_amount(one, other, Fraction(1), values)
    if one.unit.dimensions != other.unit.dimensions:
        return False
    return _same_amount(one, other, one.unit.factor / other.unit.factor, values)


def _same_amount(one: Quantity, other: Quantity, scale: Fraction, values: Values) -> bool:
    """Whether one amount times the scale is the other."""
    slack = max(one.slack * scale, other.slack)
    return values.are_equal(Operation("*", (one.amount, scale)), other.amount, slack)


def _same_group(one: Group, other: Group, values: Values) -> bool:
    if len(one.items) != len(other.items):
        return False
    kinds = {one.kind, other.kind}
    if any(kinds <= unordered for unordered in _UNORDERED):
        return _same_items(one.items, other.items, values)
    if len(kinds) == 1 or kinds == {",", "()"}:
        return all(_same(*pair, values) for pair in zip(one.items, other.items, strict=True))
    return False


def _same_items(one: tuple[Answer, ...], other: tuple[Answer, ...], values: Values) -> bool:
    """Whether each item of one has its own equal among the other's."""
    left = list(other)
    for item in one:
        found = next((place for place, candidate in enumerate(left) if _same(item, candidate, values)), None)
        if found is None:
            return False
        del left[found]
    return True
