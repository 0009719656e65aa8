"""Reads a unit after a number: 'km/h', 'square feet', 'dollars per day'.

A word that is no known unit, as in '5 apples', is a dimension of its own. It equals itself only, and converts to no
other.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

Dimensions = frozenset[tuple[str, int]]
"""Powers by base dimension."""

_PREFIXES = {"n": -9, "u": -6, "m": -3, "c": -2, "d": -1, "k": 3, "M": 6, "G": 9}
_PREFIXED = {
    "m": ("length", 1, Fraction(1)), "g": ("mass", 1, Fraction(1, 1000)), "s": ("time", 1, Fraction(1)),
    "l": ("length", 3, Fraction(1, 1000)), "L": ("length", 3, Fraction(1, 1000)), "Hz": ("time", -1, Fraction(1)),
    "N": ("force", 1, Fraction(1)), "J": ("energy", 1, Fraction(1)), "W": ("power", 1, Fraction(1)),
    "V": ("voltage", 1, Fraction(1)), "Pa": ("pressure", 1, Fraction(1)),
}  # fmt: skip
_SYMBOLS = {
    **{symbol: base for symbol, base in _PREFIXED.items() if symbol not in ("N", "J", "W", "V")},
    **{
        prefix + symbol: (name, power, factor * Fraction(10) ** tens)
        for prefix, tens in _PREFIXES.items()
        for symbol, (name, power, factor) in _PREFIXED.items()
    },
    "h": ("time", 1, Fraction(3600)),
}
"""Units in which capitals and small letters differ."""
_WORDS = {
    "second": ("time", 1, Fraction(1)), "sec": ("time", 1, Fraction(1)), "minute": ("time", 1, Fraction(60)),
    "min": ("time", 1, Fraction(60)), "hour": ("time", 1, Fraction(3600)), "hr": ("time", 1, Fraction(3600)),
    "day": ("time", 1, Fraction(86400)), "week": ("time", 1, Fraction(604800)), "month": ("month", 1, Fraction(1)),
    "year": ("month", 1, Fraction(12)), "yr": ("month", 1, Fraction(12)), "decade": ("month", 1, Fraction(120)),
    "meter": ("length", 1, Fraction(1)), "metre": ("length", 1, Fraction(1)),
    "inch": ("length", 1, Fraction(254, 10**4)), "inche": ("length", 1, Fraction(254, 10**4)),
    "foot": ("length", 1, Fraction(3048, 10**4)), "feet": ("length", 1, Fraction(3048, 10**4)),
    "ft": ("length", 1, Fraction(3048, 10**4)), "yard": ("length", 1, Fraction(9144, 10**4)),
    "yd": ("length", 1, Fraction(9144, 10**4)), "mile": ("length", 1, Fraction(1609344, 1000)),
    "gram": ("mass", 1, Fraction(1, 1000)), "tonne": ("mass", 1, Fraction(1000)),
    "pound": ("mass", 1, Fraction(45359237, 10**8)), "lb": ("mass", 1, Fraction(45359237, 10**8)),
    "ounce": ("mass", 1, Fraction(45359237, 16 * 10**8)), "oz": ("mass", 1, Fraction(45359237, 16 * 10**8)),
    "liter": ("length", 3, Fraction(1, 1000)), "litre": ("length", 3, Fraction(1, 1000)),
    "hertz": ("time", -1, Fraction(1)), "newton": ("force", 1, Fraction(1)), "joule": ("energy", 1, Fraction(1)),
    "watt": ("power", 1, Fraction(1)), "volt": ("voltage", 1, Fraction(1)), "pascal": ("pressure", 1, Fraction(1)),
    "dollar": ("dollar", 1, Fraction(1)), "usd": ("dollar", 1, Fraction(1)), "cent": ("dollar", 1, Fraction(1, 100)),
    "euro": ("euro", 1, Fraction(1)), "eur": ("euro", 1, Fraction(1)), "degree": ("degree", 1, Fraction(1)),
    "radian": ("radian", 1, Fraction(1)), "rad": ("radian", 1, Fraction(1)), "mph": ("mph", 1, Fraction(1)),
    "mol": ("mol", 1, Fraction(1)),
}  # fmt: skip
_LONG_PREFIXES = {"nano": -9, "micro": -6, "milli": -3, "centi": -2, "kilo": 3, "mega": 6, "giga": 9}
_FACTOR = re.compile(
    r"\s*(?P<joint>/|per\b|a\b|\*|-)?\s*(?P<area>(?:square|sq|cubic|cu)\b\.?\s*)?(?P<word>[A-Za-z]+)"
    r"(?:\s*(?:\^|\*\*)\s*(?P<power>\d|-\d|\{-?\d\}))?"
)
_SCALE = re.compile(r"\s*(?:hundred|thousand|million|billion|trillion|dozen|percent)s?\b", re.IGNORECASE)
_END = re.compile(r"\s*(?:$|[,;)\]}<>=]|\\\}|\\cup|\d|(?:or|and|mod)\b)")
_NO_UNIT = frozenset({
    "or", "and", "to", "of", "in", "is", "by", "at", "as", "an", "no", "not", "if", "on", "the", "for", "from", "mod",
    "than", "with", "more", "less", "about", "out", "choose", "times", "over", "plus", "minus", "divided", "squared",
    "cubed", "factorial", "half", "halves", "third", "quarter", "pair", "score", "gross", "dozen", "fold", "negative",
    "remainder", "hundred", "thousand", "million", "billion", "trillion", "percent", "sin", "cos", "tan", "sec", "csc",
    "cot", "log", "ln", "exp", "sqrt", "pi", "gcd", "lcm", "max", "infinity", "infinite",
})  # fmt: skip
"""Words that join, or change the number, and are no units."""
_ORDINAL = re.compile(r"\w{2,}(?<!mon)ths?", re.IGNORECASE)
_TOUCHING = frozenset({
    "km", "cm", "mm", "kg", "ft", "lb", "lbs", "oz", "hr", "hrs", "min", "mins", "sec", "mL", "Hz", "kHz", "MHz", "GHz",
})  # fmt: skip
"""Short units that may follow the number without a space, as in '2mg'; other letters there are variables."""
_MAX_WORDS = 6


@dataclass(frozen=True, slots=True)
class Unit:
    """The unit of an amount."""

    factor: Fraction
    """The size of the unit, in units of its dimensions."""
    dimensions: Dimensions


def read_unit(text: str, at: int) -> tuple[Unit, int] | None:
    """Read the unit at an index of a text, and its end; None: the text there is not exactly one unit.

    Examples
    --------
    >>> read_unit("36 km/h", 2) == read_unit("36 kilometers per hour", 2)[:1] + (7,)
    True
    >>> read_unit("5 squared", 1) is None
    True
    """
    if not _is_first(text, at):
        return None
    factor, powers, num_words = Fraction(1), dict[str, int](), 0
    while not (num_words and _END.match(text, at)):
        found = _FACTOR.match(text, at)
        if found is None or num_words == _MAX_WORDS or _is_no_unit(found["word"]):
            return None
        base = _known(found["word"]) or (_singular(found["word"].lower()), 1, Fraction(1))
        power = int((found["power"] or "1").strip("{}")) * _area_power(found["area"])
        power *= -1 if found["joint"] in ("/", "per", "a") else 1
        if abs(power) > 9:
            return None
        factor *= base[2] ** power
        powers[base[0]] = powers.get(base[0], 0) + base[1] * power
        at, num_words = found.end(), num_words + 1
    return Unit(factor, frozenset((name, power) for name, power in powers.items() if power)), at


def end_of_words(text: str, at: int) -> int:
    """Find the end of the words of scale and the known units at an index of a text.

    Examples
    --------
    >>> text = "It takes 5 million hours as it seems"
    >>> text[10 : end_of_words(text, 10)]
    ' million hours'
    """
    while found := _SCALE.match(text, at):
        at = found.end()
    is_first = _is_first(text, at)
    while is_first and (found := _FACTOR.match(text, at)) and _known(found["word"]) and not _is_no_unit(found["word"]):
        at = found.end()
    return at


def _is_first(text: str, at: int) -> bool:
    """Whether a unit may begin there: a known unit, or after a space a word too long for a product of variables."""
    found = _FACTOR.match(text, at)
    if found is None or found["joint"] in ("/", "*", "-", "a"):
        return False
    word, is_spaced = found["word"], found.start("word") > at
    if _known(word) is None and not found["area"]:
        return is_spaced and len(word) > 3
    return is_spaced or len(word) > 3 or word in _TOUCHING


def _is_no_unit(word: str) -> bool:
    return _singular(word.lower()) in _NO_UNIT or word.lower() in _NO_UNIT or bool(_ORDINAL.fullmatch(word))


def _known(word: str) -> tuple[str, int, Fraction] | None:
    if word in _SYMBOLS:
        return _SYMBOLS[word]
    name = _singular(word.lower())
    if name in _WORDS:
        return _WORDS[name]
    for prefix, tens in _LONG_PREFIXES.items():
        if name.removeprefix(prefix) in _WORDS and name.startswith(prefix):
            dimension, power, factor = _WORDS[name.removeprefix(prefix)]
            return dimension, power, factor * Fraction(10) ** (tens * abs(power))
    return None


def _singular(word: str) -> str:
    return word[:-1] if word.endswith("s") and len(word) > 2 else word


def _area_power(area: str | None) -> int:
    return 1 if area is None else 2 if area.startswith("sq") else 3
