r"""Parses expressions: '2^{n+1} - 2', 'n(n-1)/2', '\frac{\sqrt{3}}{2}', 'sin(x)^2'.

NOTE: a text that two readers may read differently does not parse: `1/2x`, `2^n!`, `f(x)` as a product. A number does
not multiply what is before it without a sign, so '1 or 6' is no product either.
"""

import re
from fractions import Fraction

from mosaic.answers.math_tree import INFINITY, Expression, Operation, leaves
from mosaic.answers.math_units import Unit, read_unit

MAX_NESTING = 20
MAX_TENS = 400
SCALES = {
    "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12,
}  # fmt: skip
FUNCTIONS = {
    **{name: name for name in ("sin", "cos", "tan", "sec", "csc", "cot", "sinh", "cosh", "tanh", "exp", "ln", "log")},
    **{f"{prefix}{name}": f"a{name}" for name in ("sin", "cos", "tan") for prefix in ("arc", "a")},
}
"""Names as answers write them, and as they are evaluated."""
_NUMBER = r"(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,4}(?!\w))?"
_PLAIN = re.compile(_NUMBER)
_GROUPED = re.compile(rf"\d{{1,3}}(?:,\d{{3}})+(?![\d,])(?:\.\d+)?|{_NUMBER}")
_RADIX = re.compile(r"0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO][0-7]+")
_BASE = re.compile(r"_\s*(?:(\d)|\{\s*(\d{1,2})\s*\})")
_MIXED = re.compile(r"\\frac\s*\{\s*(\d{1,9})\s*\}\s*\{\s*(\d{1,9})\s*\}")
_WORD = re.compile(r"[A-Za-z]+")
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_FUNCTION = re.compile(rf"\\?({'|'.join(sorted(FUNCTIONS, key=len, reverse=True))})(?![A-Za-z])")
_SUBSCRIPT = re.compile(r"_\s*(?:([A-Za-z0-9])|\{([^{}]{1,20})\})")
_APPLIED = re.compile(r"(?:[fghFGHOPQT]|\\(?:[pP]hi|[pP]si|Gamma|zeta|sigma|tau|Theta|Omega))\s*(?=\()")
"""Letters that name a function if a bracket follows."""
_FACTOR = re.compile(
    r"(?!(?:or|and|mod|percent|per|(?:" + "|".join(SCALES) + r")s?)\b)[A-Za-z(\[{]"
    r"|\\(?!(?:in|equiv|cup|rfloor|rceil|end)(?![A-Za-z]))[A-Za-z]",
    re.IGNORECASE,
)
_NO_PRODUCT = frozenset({
    "to", "of", "in", "is", "by", "at", "as", "an", "no", "not", "if", "on", "the", "for", "per", "mod", "and", "or",
    "gcd", "lcm", "max", "min", "det", "lim", "sup", "inf", "deg", "dim", "arg", "var", "any", "all", "are", "be", "we",
    "it", "so", "am", "pm", "yes", "nor", "but", "its", "was", "has", "new", "one", "two", "six", "ten",
})  # fmt: skip
"""Short words that are no product of variables."""
_LETTERS = frozenset({
    "alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta", "vartheta", "iota", "kappa",
    "lambda", "mu", "nu", "xi", "rho", "sigma", "tau", "upsilon", "phi", "varphi", "chi", "psi", "omega", "Gamma",
    "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Upsilon", "Phi", "Psi", "Omega", "ell", "hbar", "infty",
    "emptyset",
})  # fmt: skip
_CLOSING = {"(": r"\)", "[": r"\]", "{": r"\}", "|": r"\|"}
_ROUNDED = {"lfloor": r"\\rfloor(?![A-Za-z])", "lceil": r"\\rceil(?![A-Za-z])"}


class NoParseError(Exception):
    """The text, or its rest, is not mathematics that can be read in one way only."""


class ExpressionParser:
    """Reads a text from left to right; each method reads what its name says and stops after it."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.nesting = self.num_bars = self.num_variables = self.num_groups = 0

    def peek(self, pattern: re.Pattern[str] | str) -> re.Match[str] | None:
        while self.text[self.at : self.at + 1] == " ":
            self.at += 1
        return re.compile(pattern).match(self.text, self.at)

    def take(self, pattern: re.Pattern[str] | str) -> re.Match[str] | None:
        found = self.peek(pattern)
        if found:
            self.at = found.end()
        return found

    def need(self, pattern: re.Pattern[str] | str) -> re.Match[str]:
        found = self.take(pattern)
        if found is None:
            raise NoParseError
        return found

    def refuse(self, pattern: re.Pattern[str] | str) -> None:
        if self.peek(pattern):
            raise NoParseError

    def sum(self) -> Expression:
        terms = [self.product()]
        while sign := self.take(r"[-+]"):
            term = self.product()
            terms.append(term if sign[0] == "+" else negative(term))
        return terms[0] if len(terms) == 1 else Operation("+", tuple(terms))

    def product(self) -> Expression:
        result, is_divided = self.signed(), False
        while True:
            if self.take(r"\*"):
                result, is_divided = Operation("*", (result, self.signed())), False
            elif self.take(r"/(?!/)"):
                result, is_divided = Operation("/", (result, self.signed())), True
            elif self.is_factor():
                if self.unit():
                    return result
                if is_divided:
                    raise NoParseError
                result = Operation("*", (result, self.power()))
            else:
                return result

    def is_factor(self) -> bool:
        return bool(self.peek(_FACTOR) or (not self.num_bars and self.peek(r"\|")))

    def unit(self) -> tuple[Unit, int] | None:
        """Find the unit that follows, and its end: only after a side without variables, and outside brackets."""
        if self.num_variables or self.nesting or self.peek(_FUNCTION):
            return None
        return read_unit(self.text, len(self.text[: self.at].rstrip()))

    def signed(self) -> Expression:
        signs = self.take(r"[-+ ]*")
        value = self.power()
        return negative(value) if signs and signs[0].count("-") % 2 else value

    def power(self) -> Expression:
        return self.raised(self.factorial())

    def raised(self, base: Expression) -> Expression:
        if not self.take(r"\^|\*\*"):
            return base
        is_negative = self.take("-")
        if not self.peek(_FUNCTION):
            self.refuse(r"(?!sqrt(?![A-Za-z]))[A-Za-z]{2}")  # LaTeX raises only the first letter of '2^ab'
        self.nest(1)
        exponent = self.primary()
        self.refuse("!")
        exponent = self.raised(exponent)
        self.nest(-1)
        return Operation("^", (base, negative(exponent) if is_negative else exponent))

    def nest(self, change: int) -> None:
        self.nesting += change
        if self.nesting > MAX_NESTING:
            raise NoParseError

    def factorial(self) -> Expression:
        value = self.primary()
        if self.take(r"!(?!=)"):
            self.refuse("!")
            return Operation("!", (value,))
        return value

    def primary(self) -> Expression:
        if bracket := self.peek(r"[(\[{|]"):
            return Operation("abs", (self.bracketed(),)) if bracket[0] == "|" else self.bracketed()
        if self.peek(r"[\d.]"):
            return self.number()
        if self.peek(_FUNCTION):
            return self.function()
        return self.command() if self.peek(_COMMAND) else self.letter()

    def bracketed(self) -> Expression:
        """Read the content of brackets of any kind but those of sets."""
        opening = self.need(r"[(\[{|]")[0]
        outer, self.num_bars = self.num_bars, int(opening == "|")
        value = self.inside(_CLOSING[opening])
        self.num_bars = outer
        return value

    def inside(self, closing: str) -> Expression:
        self.nest(1)
        value = self.sum()
        self.nest(-1)
        self.need(closing)
        return value

    def number(self) -> Expression:
        if radix := self.take(_RADIX):
            self.refuse(r"[\w.]")
            return Fraction(int(radix[0], 0))
        # NOTE: inside brackets a comma may also separate two numbers, and a group is read before an expression.
        digits = self.need(_PLAIN if self.nesting or self.num_groups else _GROUPED)[0].replace(",", "")
        if base := self.take(_BASE):
            return in_base(digits, int(base[1] or base[2]))
        if abs(int(digits.lower().partition("e")[2] or 0)) > MAX_TENS:
            raise NoParseError
        value = Fraction(digits)
        if digits.isdigit() and (mixed := self.take(_MIXED)):
            if int(mixed[1]) >= int(mixed[2]):
                raise NoParseError
            value += Fraction(int(mixed[1]), int(mixed[2]))
        return value

    def function(self) -> Expression:
        name = FUNCTIONS[self.need(_FUNCTION)[1]]
        power: Expression = Fraction(1)
        base: Expression = Fraction(10)
        if name == "log" and self.take("_"):
            base = self.argument()
        if self.take(r"\^|\*\*"):
            power = negative(self.argument()) if self.take("-") else self.argument()
        if power == Fraction(-1) or power == negative(Fraction(1)):
            if name not in ("sin", "cos", "tan"):
                raise NoParseError
            name, power = f"a{name}", Fraction(1)
        value = self.bracketed() if self.peek(r"[({]") else self.bare_argument()
        if name == "exp":
            result = Operation("^", (Operation("e"), value))
        elif name == "log":
            result = Operation("/", (Operation("ln", (value,)), Operation("ln", (base,))))
        else:
            result = Operation(name, (value,))
        return result if power == 1 else Operation("^", (result, power))

    def bare_argument(self) -> Expression:
        r"""Read the argument that '\sin 2x \cos x' gives to its first function."""
        self.num_variables += 1  # a unit after it would be the argument's
        self.nest(1)
        value = self.power()
        while self.is_factor() and not self.peek(_FUNCTION):
            self.refuse(r"[(\[]")
            value = Operation("*", (value, self.power()))
        self.nest(-1)
        return value

    def argument(self) -> Expression:
        r"""Read an argument of a command, such as those of '\frac12' and '\frac{1}{2}'."""
        if self.peek(r"[{(]"):
            return self.bracketed()
        if digit := self.take(r"\d"):
            return Fraction(digit[0])
        return self.command() if self.peek(_COMMAND) else self.letter()

    def command(self) -> Expression:
        if self.peek(_APPLIED):
            return self.applied()
        name = self.need(_COMMAND)[1]
        self.nest(1)
        value = self.of_command(name)
        self.nest(-1)
        return value

    def of_command(self, name: str) -> Expression:
        if name == "frac":
            return Operation("/", (self.argument(), self.argument()))
        if name == "binom":
            return Operation("binom", (self.argument(), self.argument()))
        if name == "sqrt":
            index = self.bracketed() if self.peek(r"\[") else Fraction(2)
            return root(self.argument(), index)
        if name in _ROUNDED:
            return Operation(name.removeprefix("l"), (self.inside(_ROUNDED[name]),))
        if name == "pi":
            return Operation("pi")
        if name not in _LETTERS:
            raise NoParseError
        return self.variable(f"\\{name}")

    def letter(self) -> Expression:
        """Read one letter of a short word, or the root if the word is one."""
        word = self.need(_WORD)
        start = word.start()
        while self.text[start - 1 : start].isalpha():
            start -= 1
        name = self.text[start : word.end()]
        if name == "sqrt":
            return root(self.bracketed(), Fraction(2))
        self.at = word.start()
        if self.peek(_APPLIED):
            return self.applied()
        self.at += 1
        if len(name) > 3 or name.lower() in _NO_PRODUCT:
            raise NoParseError
        if word[0][0] == "e" and not self.peek("_"):
            return Operation("e")
        return self.variable(word[0][0])

    def variable(self, name: str) -> Expression:
        self.num_variables += name != INFINITY
        found = self.take(_SUBSCRIPT)
        return f"{name}_{(found[1] or found[2]).replace(' ', '')}" if found else name

    def applied(self) -> Expression:
        self.num_variables += 1
        name = self.need(_APPLIED)[0].strip()
        return Operation("apply", (name, self.bracketed()))


def negative(value: Expression) -> Expression:
    """Return the negative of an expression."""
    return -value if isinstance(value, Fraction) else Operation("*", (Fraction(-1), value))


def root(radicand: Expression, index: Expression) -> Expression:
    """Return a root; an odd root of a number is real, as taught in school."""
    is_odd = isinstance(index, Fraction) and index > 2 and index % 2 == 1
    if is_odd and not any(isinstance(leaf, str) for leaf in leaves(radicand)):
        return Operation("odd root", (radicand, index))
    return Operation("^", (radicand, Operation("/", (Fraction(1), index))))


def in_base(digits: str, base: int) -> Fraction:
    """Read digits in a base."""
    if not (digits.isdigit() and 2 <= base <= 36 and all(int(digit) < base for digit in digits)):
        raise NoParseError
    return Fraction(int(digits, base))
