"""The parts of a parsed mathematical answer: quantities, relations, and groups of them."""

from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

from mosaic.answers.math_units import Unit


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation, function or constant, with its arguments."""

    name: str
    args: tuple["Expression", ...] = ()


Expression: TypeAlias = Fraction | str | Operation
"""A number, a variable, or an operation."""
INFINITY = r"\infty"
"""A variable that only equals itself."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """An expression with its unit."""

    amount: Expression
    slack: Fraction = Fraction(0)
    """Error that the last digit of a plain decimal allows; 0: exact."""
    unit: Unit | None = None
    is_percent: bool = False


@dataclass(frozen=True, slots=True)
class Relation:
    """Sides joined by one sign: '=', '!=', '<' or '<='."""

    sign: str
    sides: tuple["Answer", ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Several answers; kind: ',' a bare list, '{}' a set, brackets as in '[)', 'union', 'matrix', 'row' or 'mod'."""

    kind: str
    items: tuple["Answer", ...]


Answer: TypeAlias = Quantity | Relation | Group


def expressions(answer: Answer) -> list[Expression]:
    """List the expressions of an answer."""
    if isinstance(answer, Quantity):
        return [answer.amount]
    parts = answer.sides if isinstance(answer, Relation) else answer.items
    return [found for part in parts for found in expressions(part)]


def leaves(expression: Expression) -> list[Fraction | str]:
    """List the numbers and variables of an expression."""
    if isinstance(expression, Operation):
        return [leaf for arg in expression.args for leaf in leaves(arg)]
    return [expression]


def variables(answer: Answer) -> set[str]:
    """Collect the variables of an answer."""
    return {leaf for expression in expressions(answer) for leaf in leaves(expression) if isinstance(leaf, str)}


def is_name(answer: Answer) -> bool:
    """Whether an answer is only a name, such as 'x', 'm + n' or 'f(x)': no number but e, and no unit."""
    if not isinstance(answer, Quantity) or answer.unit or answer.is_percent:
        return False
    found = leaves(answer.amount)
    return answer.amount == Operation("e") or (bool(found) and all(isinstance(leaf, str) for leaf in found))
