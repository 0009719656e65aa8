"""Says whether two mathematical answers are equal: numbers by exact arithmetic, everything else by math-verify.

NOTE: a computer algebra system may run for ever, or eat all memory, on an answer as short as 9^(9^(9^9)). math-verify
guards itself by an alarm signal, which works in the main thread of a process only, and not inside one long operation on
big integers. So it runs in a process of its own (`math_judge`), which is started at the first question that
plain arithmetic cannot settle, asked with a time limit, and killed when it exceeds that. What could not be shown to be
equal counts as different: agreement must be proven, since it is what skips an aggregator.

Equality of answers is not transitive: 75% equals both 75 (the question asked for a percentage) and 0.75.
"""

import re
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from mosaic.answers.math_judge import ask

MAX_CHARACTERS = 300
"""Longer answers are no answers, and are compared as text only."""
_MIN_DIGITS = 6
"""A decimal written to so many significant digits stands for any number that it rounds or is cut from."""
_MAX_EXPONENT = 400
_UNICODE = str.maketrans({
    "\u2212": "-", "\u2013": "-", "\u00d7": r"\times ", "\u00b7": r"\cdot ", "\u03c0": r"\pi ", "\u00b2": "^{2}",
    "\u00b3": "^{3}", "\u00b0": "", "\u221e": r"\infty ", "\u2264": r"\le ", "\u2265": r"\ge ", "\u00f7": "/",
    "\u222a": r"\cup ",
})  # fmt: skip
_WORD = r"(?!(?:or|and|to|sin|cos|tan|log|ln|exp|mod|choose)\b)[A-Za-z]"
_REWRITES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right|displaystyle|[,;!:> ])|\$|\\[()\[\]]|~", ""),
        (r"\{,\}", ","),
        (r"\\[dtc]frac\b", r"\\frac"),
        (r"\\frac\s*(\d)\s*(\d)(?!\d)", r"\\frac{\1}{\2}"),
        (r"^([-+]?)\\frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}$", r"\1\2/\3"),
        (r"\^\s*\{?\s*\\circ\s*\}?|\\degree\b|\\circ\b", ""),
        (r"\\%", "%"),
        (r"\u221a\s*\(([^()]*)\)|(?<!\\)\bsqrt\(([^()]*)\)", r"\\sqrt{\1\2}"),
        (r"\u221a\s*(\w+)", r"\\sqrt{\1}"),
        (r"(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi "),
        (r"(?<=.)\s*\\(?:text|mathrm|textrm|operatorname)\s*\{[^{}]*\}(?:\s*\^\s*\{?-?\d\}?)?\s*$", ""),
        (r"^\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}$", r"\1"),
        (rf"(?<=\d)\s+(?:{_WORD}{{2,}}|[mgsklh])(?:[\s/]+{_WORD}[0-9^]*)*\s*$", ""),
        (r"^[\u20ac\u00a3]|[\u20ac\u00a3]$", ""),
        (r"\.\s*$", ""),
    )
)
_NUMBER = re.compile(
    r"(?P<mantissa>[-+]?(?=\.?\d)(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?)"
    r"(?:(?:[eE]|\s*(?:\\times|\\cdot|\*|x)\s*10\s*\^\s*\{?\s*)(?P<power>[-+]?\d{1,4})\s*\}?)?(?P<percent>\s*%)?"
)
_QUOTIENT = re.compile(r"[-+]?\d{1,40}\s*/\s*0*[1-9]\d{0,39}")
_NAMED = re.compile(r"(?P<name>[^=<>]{1,30}?)(?<![<>!:])=(?P<value>[^=]+)")
_FORMULA = re.compile(r"\d|[\\^_+*/=<>(\[{|-]|^[A-Za-z]$")


class Number(NamedTuple):
    """A number as an answer writes it."""

    value: Fraction
    slack: Fraction
    """How far off its last digit lets it be; 0: exact."""
    percent: bool


def same_value(one: str, other: str) -> bool:
    r"""Say whether two answers are the same number or expression; units are not compared.

    Examples
    --------
    >>> same_value(r"\frac{3}{4}", "0.75"), same_value("1,234", "1234"), same_value("3", "4")
    (True, True, False)
    """
    first, second = sorted((tidy(one), tidy(other)))
    if first == second:
        return True
    numbers = number(first), number(second)
    if numbers[0] is not None and numbers[1] is not None:
        return _same_number(numbers[0], numbers[1])
    if max(len(first), len(second)) > MAX_CHARACTERS or not (_FORMULA.search(first) and _FORMULA.search(second)):
        return False
    return _proven(first, second)


def tidy(expression: str) -> str:
    """Write an answer in one form: no markup, no unit, no name in front of an equals sign, single spaces."""
    text = expression.strip().translate(_UNICODE)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text).strip()
    named = _NAMED.fullmatch(text)
    if named and not re.search(r"[\d*/]", re.sub(r"_\{?\d+\}?", "", named["name"])):
        text = named["value"].strip()
    return re.sub(r"\s+", " ", text)


def number(text: str) -> Number | None:
    """Read a plain number: whole, decimal, scientific, a fraction, or one of these as a percentage."""
    if len(text) > MAX_CHARACTERS:
        return None
    if _QUOTIENT.fullmatch(text):
        return Number(Fraction("".join(text.split())), Fraction(0), percent=False)
    found = _NUMBER.fullmatch(text)
    power = int(found["power"] or 0) if found else 0
    if found is None or abs(power) > _MAX_EXPONENT:
        return None
    mantissa = Decimal(found["mantissa"].replace(",", ""))
    _, digits, last = mantissa.as_tuple()
    assert isinstance(last, int), "finite"
    scale = Fraction(10) ** power
    exact = "." not in found["mantissa"] or len(digits) < _MIN_DIGITS
    slack = Fraction(0) if exact else Fraction(10) ** last * scale
    return Number(Fraction(mantissa) * scale, slack, percent=bool(found["percent"]))


def _same_number(one: Number, other: Number) -> bool:
    if _close(one, other):
        return True
    one, other = (Number(x.value / 100, x.slack / 100, percent=False) if x.percent else x for x in (one, other))
    return _close(one, other)


def _close(one: Number, other: Number) -> bool:
    gap = abs(one.value - other.value)
    return gap == 0 or gap < max(one.slack, other.slack)


@lru_cache(maxsize=4096)
def _proven(first: str, second: str) -> bool:
    return ask(first, second)
