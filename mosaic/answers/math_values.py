"""Evaluates expressions, to compare them.

NOTE: two expressions are equal if they are equal at every point at which both can be evaluated. Without variables this
is one point; with variables it is at least four of `_points`. Rational arithmetic is exact. The rest is computed to so
many bits that no difference between possible answers is lost, under four rules. Each intermediate value lies between
2^-r and 2^r or is zero. A rational number is used only if its digits fit in 2r bits. Values are kept to more than 4r
bits. A difference below 2^-3r counts as zero. An expression outside these bounds is not evaluated, and equals only
itself. So the size of the numbers bounds the work, not a clock.
"""

import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

from mosaic.answers.math_tree import Expression

Value: TypeAlias = Fraction | Any
"""Exact, or a number of mpmath."""
_MAX_EXACT_BITS = 2**15
_MAX_COUNT = 3000
"""Largest n of n!."""
_MAX_WORK_US = 1_000_000
"""Most microseconds of one comparison, estimated from `_Precision.work_us` and the size of numbers."""
_MIN_POINTS = 4
_NUM_INTEGER_POINTS = 8
_SIZES = tuple(Fraction(2) ** power for power in (-3, 0, 3, -20, 20, -400, 400))


class _Precision(NamedTuple):
    range_bits: int
    bits: int
    work_us: int
    """Of one operation, approximately."""


_PRECISIONS = (_Precision(128, 640, 150), _Precision(1100, 4608, 3000))
"""The second is used if the first is too small."""


class UndecidedError(Exception):
    """A value is undefined, or too large or too small to be distinguished from others."""


@lru_cache(maxsize=2)
def _arithmetic(bits: int) -> Any:
    from mpmath.ctx_mp import MPContext

    context = MPContext()
    context.prec = bits
    return context


def _points(names: list[str]) -> list[dict[str, Fraction]]:
    """List the points to evaluate at: both signs and all sizes, so that each case is tried; then integers."""
    draw = random.Random("mosaic")
    found = []
    for size, sign in itertools.product(_SIZES, (1, -1)):
        sizes = [size, *draw.choices(_SIZES, k=len(names))]
        signs = [sign, *draw.choices((1, -1), k=len(names))]
        found.append({name: sizes[i] * signs[i] * _mantissa(draw) for i, name in enumerate(names)})
    return found + [{name: Fraction(draw.randrange(1, 14)) for name in names} for _ in range(_NUM_INTEGER_POINTS)]


def _mantissa(draw: random.Random) -> Fraction:
    return Fraction(draw.randrange(129, 256, 2), 128)


class Values:
    """Values of expressions at the points of one comparison."""

    def __init__(self, names: Iterable[str]) -> None:
        ordered = sorted(names)
        self._points: list[Mapping[str, Fraction]] = [*_points(ordered)] if ordered else [{}]
        self._work_us = 0
        self._known: dict[tuple[Expression, int, int], Value | None] = {}

    def are_equal(self, one: Expression, other: Expression, slack: Fraction = Fraction(0)) -> bool:
        """Whether two expressions are equal, up to less than the slack."""
        num_equal = 0
        for first, second, precision in self._pairs(one, other):
            if not _are_close(first, second, precision, slack):
                return False
            num_equal += 1
        return num_equal >= min(_MIN_POINTS, len(self._points)) and self._work_us <= _MAX_WORK_US

    def exact_ratio(self, one: Expression, other: Expression) -> Fraction | None:
        """Return the ratio of two expressions at a point at which both are rational and neither is zero."""
        exact = (x / y for x, y, _ in self._pairs(one, other) if _is_exact(x, y) and x and y)
        return next(exact, None)

    def _pairs(self, one: Expression, other: Expression) -> Iterator[tuple[Value, Value, _Precision]]:
        """Evaluate two expressions wherever both can be, and at integers only if other points are too few."""
        num_found = 0
        for place in range(len(self._points)):
            if num_found >= _MIN_POINTS and place >= len(self._points) - _NUM_INTEGER_POINTS:
                return
            for precision in _PRECISIONS:
                first, second = self._value(one, place, precision), self._value(other, place, precision)
                if first is not None and second is not None:
                    num_found += 1
                    yield first, second, precision
                    break

    def _value(self, expression: Expression, place: int, precision: _Precision) -> Value | None:
        key = (expression, place, precision.bits)
        if key not in self._known:
            try:
                self._known[key] = self._evaluate(expression, self._points[place], precision)
            except (UndecidedError, ArithmeticError, ValueError):
                self._known[key] = None
        return self._known[key]

    def _evaluate(self, expression: Expression, point: Mapping[str, Fraction], precision: _Precision) -> Value:
        if isinstance(expression, Fraction):
            return expression
        if isinstance(expression, str):
            return point[expression]
        args = [self._evaluate(arg, point, precision) for arg in expression.args]
        self._work_us += precision.work_us if not _is_exact(*args) else sum(map(_size_bits, args)) // 8
        if self._work_us > _MAX_WORK_US:
            raise UndecidedError
        return _apply(expression.name, args, precision)


def _are_close(one: Value, other: Value, precision: _Precision, slack: Fraction) -> bool:
    """Whether two values differ by no visible amount, or by less than the slack."""
    if _is_exact(one, other):
        return one == other or bool(abs(one - other) < slack)
    try:
        gap = abs(_converted(one, precision) - _converted(other, precision))
    except UndecidedError:  # only one of them is within the bounds
        return False
    context = _arithmetic(precision.bits)
    return not gap or context.mag(gap) < -3 * precision.range_bits or bool(slack and gap < _converted(slack, precision))


def _is_exact(*values: Value) -> bool:
    return all(isinstance(value, Fraction) for value in values)


def _size_bits(value: Fraction) -> int:
    return value.numerator.bit_length() + value.denominator.bit_length()


def _converted(value: Value, precision: _Precision) -> Any:
    if not isinstance(value, Fraction):
        return value
    if _size_bits(value) > 2 * precision.range_bits:
        raise UndecidedError
    context = _arithmetic(precision.bits)
    return _in_range(context.mpf(value.numerator) / value.denominator, precision)


def _in_range(value: Value, precision: _Precision, *, may_vanish: bool = False) -> Value:
    """Return a value that is within the bounds; with ``may_vanish``, zero for a value that is zero but for rounding."""
    if isinstance(value, Fraction):
        if _size_bits(value) > _MAX_EXACT_BITS:
            raise UndecidedError
        return value
    context = _arithmetic(precision.bits)
    if not context.isfinite(value):
        raise UndecidedError
    size_bits = context.mag(value) if value else 0
    if may_vanish and size_bits < -3 * precision.range_bits:
        return Fraction(0)
    if abs(size_bits) > precision.range_bits:
        raise UndecidedError
    return value


def _add(args: list[Value], precision: _Precision) -> Value:
    if _is_exact(*args):
        return _in_range(sum(args, Fraction(0)), precision)
    total = _converted(args[0], precision)
    for arg in args[1:]:
        total = _converted(_in_range(total + _converted(arg, precision), precision, may_vanish=True), precision)
    return _in_range(total, precision, may_vanish=True)


def _apply(name: str, args: list[Value], precision: _Precision) -> Value:
    if name == "+":
        return _add(args, precision)
    if name in _EXACT:
        if not _is_exact(*args):
            raise UndecidedError
        return _in_range(_EXACT[name](*args), precision)
    if name in ("*", "/") and _is_exact(*args):
        return _in_range(args[0] * args[1] if name == "*" else args[0] / args[1], precision)
    if name == "^" and _is_exact(*args) and (exact := _exact_power(*args)) is not None:
        return exact
    if name == "abs":
        return abs(args[0])
    return _in_range(
        _inexact(name, [_converted(arg, precision) for arg in args], _arithmetic(precision.bits)),
        precision,
        may_vanish=name in _MAY_VANISH,
    )


def _exact_power(base: Fraction, exponent: Fraction) -> Fraction | None:
    """Return a power that is rational by its form and fits; None: it must be computed inexactly."""
    if base == 0 and exponent == 0:
        raise UndecidedError
    if exponent.denominator != 1 or _size_bits(base) * abs(exponent.numerator) > _MAX_EXACT_BITS:
        return None
    return Fraction(base**exponent.numerator)


def _inexact(name: str, args: list[Any], context: Any) -> Any:
    if name == "*":
        return args[0] * args[1]
    if name == "/":
        return args[0] / args[1]
    if name == "^":
        return context.power(*args)
    if name == "odd root":
        return -context.power(-args[0], 1 / args[1]) if context.re(args[0]) < 0 else context.power(args[0], 1 / args[1])
    if name in ("pi", "e"):
        return +getattr(context, name)
    if name in _FUNCTIONS:
        return getattr(context, name)(*args)
    raise UndecidedError


def _factorial(number: Fraction) -> Fraction:
    if number.denominator != 1 or not 0 <= number <= _MAX_COUNT:
        raise UndecidedError
    return Fraction(math.factorial(number.numerator))


def _binomial(total: Fraction, chosen: Fraction) -> Fraction:
    if total.denominator == 1 and 0 <= total <= _MAX_COUNT and chosen.denominator == 1 and chosen >= 0:
        return Fraction(math.comb(total.numerator, chosen.numerator))
    if chosen.denominator != 1 or not 0 <= chosen <= 50:
        raise UndecidedError
    return math.prod((total - i for i in range(chosen.numerator)), start=Fraction(1)) / math.factorial(chosen.numerator)


_EXACT: dict[str, Callable[..., Fraction]] = {
    "!": _factorial,
    "binom": _binomial,
    "floor": lambda value: Fraction(math.floor(value)),
    "ceil": lambda value: Fraction(math.ceil(value)),
    "mod": lambda value, modulus: value % abs(modulus),
}
"""Functions that are evaluated for rational numbers only."""
_FUNCTIONS = frozenset({
    "sin", "cos", "tan", "sec", "csc", "cot", "sinh", "cosh", "tanh", "asin", "acos", "atan", "ln",
})  # fmt: skip
_MAY_VANISH = frozenset({
    "sin", "cos", "tan", "cot", "sinh", "tanh", "asin", "acos", "atan", "ln",
})  # fmt: skip
"""Functions whose result may be zero but for rounding."""
