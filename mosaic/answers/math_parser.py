r"""Parses a whole answer, or nothing: 'x = \frac{1}{2}', '(0, 1]', '1 or 2', '5 million', '2 hours', '7 mod 3'."""

import re
from fractions import Fraction

from mosaic.answers.math_expressions import SCALES, ExpressionParser, NoParseError
from mosaic.answers.math_tree import (
    INFINITY,
    Answer,
    Group,
    Operation,
    Quantity,
    Relation,
    is_name,
    leaves,
    variables,
)

MAX_CHARACTERS = 300
"""Longer answers are compared as text only."""
_MIN_DIGITS = 6
"""A decimal with at least so many significant digits equals any number that rounds or truncates to it."""
_DECIMAL = re.compile(
    r"\s*[-+]?\s*(?P<digits>[\d,]*\.\d+)(?:[eE](?P<tens>[-+]?\d+)|\s*\*\s*10\s*(?:\^|\*\*)\s*\{?\s*(?P<power>[-+]?\d{1,3})\s*\}?)?\s*"
)
_CLOCK = re.compile(r"(?<!\d)\d{1,2}:\d{2}(?!\d)")
_NAMED = re.compile(r"(?P<name>[^=<>!:\d*/]{1,30})=(?P<value>[^=<>]+)")
_SIGN = re.compile(r"<=|>=|!=|=|<|>|\\(?:in|equiv)(?![A-Za-z])")
_SCALE = re.compile(rf"({'|'.join(SCALES)})s?\b", re.IGNORECASE)
_PERCENT = re.compile(r"%|percent\b|per cent\b", re.IGNORECASE)
_OPENING = re.compile(r"[(\[]|\\?\{")
_BRACKET = re.compile(r"\\?[{}]|[()\[\],;]")
_MATRIX = re.compile(r"\\begin\s*\{(?P<kind>[pbB]?matrix)\}")


def parse(text: str) -> Answer | None:
    """Parse a tidy answer; None: not all of it can be read.

    Examples
    --------
    >>> parse("2 x") == parse("2*x") == Quantity(Operation("*", (Fraction(2), "x")))
    True
    >>> parse("7 // 2") is None
    True
    """
    if len(text) > MAX_CHARACTERS or _CLOCK.search(text):
        return None
    if "\\pm" in text or "\\mp" in text:
        upper, lower = (
            parse(text.replace("\\pm", plus).replace("\\mp", minus)) for plus, minus in (("+", "-"), ("-", "+"))
        )
        return None if upper is None or lower is None else _bare_list([upper, lower])
    parser = _AnswerParser(text)
    try:
        found = parser.bare_list()
        parser.need(r"$")
    except NoParseError:
        named = _NAMED.fullmatch(text)
        value = parse(named["value"].strip()) if named else None
        return Relation("=", (Quantity(named["name"].strip()), value)) if named and value else None
    return found


def _bare_list(items: list[Answer]) -> Answer:
    flat: list[Answer] = []
    for item in items:
        flat += item.items if isinstance(item, Group) and item.kind == "," else (item,)
    return flat[0] if len(flat) == 1 else Group(",", tuple(flat))


class _AnswerParser(ExpressionParser):
    """Parses what may surround expressions: relations, groups and units."""

    def bare_list(self) -> Answer:
        items = [self.relation()]
        while self.take(r"[,;]\s*(?:(?:and|or)\b)?|(?:and|or)\b"):
            items.append(self.relation())
        return _bare_list(items)

    def relation(self) -> Answer:
        sides, signs = [self.union()], []
        while sign := self.take(_SIGN):
            signs.append(sign[0].replace("\\equiv", "="))
            sides.append(self.union())
        found = _related(signs, sides)
        if self.take(r"mod\b"):
            return _congruence(found, self.quantity())
        return found

    def union(self) -> Answer:
        parts = [self.part()]
        while self.take(r"\\cup(?![A-Za-z])"):
            parts.append(self.part())
        sets = [part for part in parts if isinstance(part, Group) and part.kind == "{}"]
        if len(sets) == len(parts):
            items = tuple(item for part in sets for item in part.items)
            return items[0] if len(items) == 1 else Group("{}", items)
        return parts[0] if len(parts) == 1 else Group("union", tuple(parts))

    def part(self) -> Answer:
        if matrix := self.take(_MATRIX):
            return self.matrix(matrix["kind"])
        return self.group() if self.is_group() else self.quantity()

    def is_group(self) -> bool:
        """Whether the brackets that follow hold several items, or mark a set."""
        opening = self.peek(_OPENING)
        if opening is None:
            return False
        depth = 0
        for sign in _BRACKET.finditer(self.text, self.at):
            if depth == 1 and sign[0] in ",;":
                return True
            depth += (sign[0] in ("(", "[", "{", r"\{")) - (sign[0] in (")", "]", "}", r"\}"))
            if depth == 0:
                break
        return opening[0] == r"\{"

    def group(self) -> Answer:
        opening = self.need(_OPENING)[0]
        self.num_groups += 1
        self.nest(1)
        self.nesting, outer = 0, self.nesting
        items = [] if self.peek(r"\\\}") else [self.relation()]
        while self.take("[,;]"):
            items.append(self.relation())
        self.nesting = outer
        self.nest(-1)
        self.num_groups -= 1
        if opening in ("{", r"\{"):
            self.need(r"\\?\}")
            return Group("{}", tuple(items)) if items else Quantity("\\emptyset")
        return Group(opening + self.need(r"[)\]]")[0], tuple(items))

    def matrix(self, kind: str) -> Answer:
        rows: list[Answer] = []
        while not rows or self.take(";"):
            if self.peek(r"\\end"):
                break
            cells = [self.quantity()]
            while self.take("&"):
                cells.append(self.quantity())
            rows.append(Group("row", tuple(cells)))
        self.need(rf"\\end\s*\{{{kind}\}}")
        return Group("matrix", tuple(rows))

    def quantity(self) -> Quantity:
        self.num_variables = 0
        first = self.one_quantity()
        total, unit = first.amount, first.unit
        while unit and self.peek(r"\d"):  # '2 hours 30 minutes'
            further = self.one_quantity()
            if further.unit is None or further.unit.dimensions != unit.dimensions:
                raise NoParseError
            more = Operation("*", (further.amount, further.unit.factor / unit.factor))
            total = Operation("+", (total, more))
        return Quantity(total, first.slack, unit, first.is_percent)

    def one_quantity(self) -> Quantity:
        start = self.at
        amount = self.sum()
        slack = _slack(self.text[start : self.at])
        if self.take(":"):
            amount = Operation("/", (amount, self.sum()))
            self.refuse(":")
        while self.num_variables == 0 and (scale := self.take(_SCALE)):
            factor = SCALES[scale[1].lower()]
            amount, slack = Operation("*", (amount, Fraction(factor))), slack * factor
        if self.take(_PERCENT):
            return Quantity(amount, slack, is_percent=True)
        found = self.unit()
        if found is None:
            return Quantity(amount, slack)
        self.at = found[1]
        return Quantity(amount, slack, found[0])


def _slack(written: str) -> Fraction:
    found = _DECIMAL.fullmatch(written)
    if found is None:
        return Fraction(0)
    whole, _, decimals = found["digits"].replace(",", "").partition(".")
    tens = int(found["tens"] or found["power"] or 0)
    num_digits = len((whole + decimals).lstrip("0"))
    return Fraction(0) if num_digits < _MIN_DIGITS else Fraction(10) ** (tens - len(decimals))


def _related(signs: list[str], sides: list[Answer]) -> Answer:
    """Join sides by their signs; bounds of one variable become an interval, and 'x in S' means S."""
    if not signs:
        return sides[0]
    if {*signs} == {"="}:
        return Relation("=", tuple(sides))
    if signs == [r"\in"] and is_name(sides[0]):
        return sides[1]
    if signs == ["!="]:
        return Relation("!=", tuple(sides))
    if {*signs} <= {">", ">="}:
        signs, sides = [sign.replace(">", "<") for sign in reversed(signs)], sides[::-1]
    if not {*signs} <= {"<", "<="} or len(signs) > 2:
        raise NoParseError
    return _interval(signs, sides) or (Relation(signs[0], tuple(sides)) if len(signs) == 1 else _chain(signs, sides))


def _interval(signs: list[str], sides: list[Answer]) -> Answer | None:
    """Return the interval of a variable, if only its bounds are named."""
    is_bound = [not (variables(side) - {INFINITY}) for side in sides]
    minus = Quantity(Operation("*", (Fraction(-1), INFINITY)))
    low, high = ("(" if signs[0] == "<" else "["), (")" if signs[-1] == "<" else "]")
    if len(sides) == 3 and is_bound == [True, False, True] and _is_variable(sides[1]):
        return Group(low + high, (sides[0], sides[2]))
    if len(sides) == 2 and is_bound == [True, False] and _is_variable(sides[1]):
        return Group(f"{low})", (sides[0], Quantity(INFINITY)))
    if len(sides) == 2 and is_bound == [False, True] and _is_variable(sides[0]):
        return Group(f"({high}", (minus, sides[1]))
    return None


def _is_variable(side: Answer) -> bool:
    return isinstance(side, Quantity) and isinstance(side.amount, str) and side.unit is None


def _chain(signs: list[str], sides: list[Answer]) -> Answer:
    pairs = zip(signs, sides, sides[1:], strict=False)
    return Group("chain", tuple(Relation(sign, (left, right)) for sign, left, right in pairs))


def _congruence(found: Answer, modulus: Quantity) -> Answer:
    """Return a class of residues, each number in it reduced."""

    def reduced(part: Answer) -> Answer:
        if isinstance(part, Relation):
            return Relation(part.sign, tuple(side if is_name(side) else reduced(side) for side in part.sides))
        if not isinstance(part, Quantity) or part.unit or part.is_percent:
            raise NoParseError
        has_variables = any(isinstance(leaf, str) for leaf in leaves(part.amount))
        return part if has_variables else Quantity(Operation("mod", (part.amount, modulus.amount)))

    return Group("mod", (reduced(found), modulus))
