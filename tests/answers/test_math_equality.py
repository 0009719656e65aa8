"""Mathematical answers: what is equal in other words, and that nothing else is, with sympy as the judge."""

import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import pytest
import sympy
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mosaic.answers import math_values
from mosaic.answers.math_equality import same_value
from mosaic.answers.math_parser import parse
from mosaic.answers.math_text import tidy

EQUAL = [
    ("3/4", "0.75"), ("3/4", r"\frac{3}{4}"), (r"\dfrac34", "0.75"), ("-1/2", r"-\frac{1}{2}"), ("1,234", "1234"),
    ("1{,}234", "1234.0"), ("75%", "0.75"), (r"75\%", "75"), ("75%", r"75 \%"), ("50 percent", "1/2"), ("007", "7"),
    ("42 cm", "42"), ("42cm", "42"), ("$42$", "42"), (r"110^\circ", "110"), ("30 degrees", r"30^\circ"), ("5.", "5"),
    (r"3 \times 10^{8}\text{ m/s}", "3e8"), (r"2\text{ N}", "2"), ("18 eggs", "18"),
    ("4\\pi\\text{ square units}", "4\\pi"), ("\u22122", "-2"), ("--5", "5"), ("1e-3", "0.001"),
    ("6.02 \\times 10^{23}", "6.02e23"), (r"3\frac{1}{2}", "7/2"), ("2\u221a3", r"2\sqrt{3}"),
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"), (r"\sqrt{8}", r"2\sqrt2"), (r"\sqrt[3]{8}", "2"),
    ("8^{1/3}", "2"), (r"\sqrt{3+2\sqrt2}", r"1+\sqrt2"), (r"\sqrt{2}", "1.41421356"), ("e^2", "7.3890561"),
    ("2**10", "1024"), ("2^10", "2**10"), ("2^{1012}-1", "4^{506}-1"), ("2^{n+1}-2", "2(2^n-1)"),
    ("(-1)^{n+2}", "(-1)^n"), ("2^(n(n-1)/2)", r"2^{\frac{n(n-1)}{2}}"), ("10^{10^{10}}", "10^(10^10)"),
    ("5!", "120"), (r"\binom{5}{2}", "10"), ("(n+1)!", "(n+1) n!"), (r"\frac{n(n+1)}{2}", r"\binom{n+1}{2}"),
    (r"\frac{n!}{k!(n-k)!}", r"{n \choose k}"), ("(x+1)^2", "x^2 + 2x + 1"), ("2 x", r"2\cdot x"),
    ("1/(2x)", r"\frac{1}{2x}"), ("ab+ba", "2ab"), ("0.5x", "x/2"), ("x_1+x_2", "x_2+x_{1}"), ("|x-1|", "|1-x|"),
    ("|2x|", "2|x|"), (r"\lfloor 3.5\rfloor", "3"), ("pi/2", r"\frac{\pi}{2}"), (r"\sin^2 x+\cos^2 x", "1"),
    ("sin(x)^2+cos(x)^2", "1"), (r"\sin 2x", r"2\sin x\cos x"), (r"\ln 4", r"2\ln 2"), (r"\log_2 8", "3"),
    (r"\log 100", "2"), (r"\log_a b", r"\frac{\ln b}{\ln a}"), (r"\sin^{-1}(1)", r"\pi/2"),
    (r"\cos\frac{\pi}{5}", r"\frac{1+\sqrt5}{4}"), (r"\arctan 1+\arctan 2+\arctan 3", r"\pi"), (r"\exp(2)", "e^2"),
    ("x = 5", "5"), ("area = 5", "5"), ("e = 1/2", "0.5"), ("f(x)=x^2", "x^2"), ("x = 2+3 = 5", "5"),
    ("y=2x+3", "y-2x=3"),
    ("2x+3y=6", "4x+6y=12"), (r"\{1, 2\}", r"\{2, 1\}"), ("1, 2", "2, 1"), ("1 or 2", "2, 1"), (r"\{5\}", "5"),
    ("1,2,3", "(1,2,3)"), ("(3,4)", "(3.0, 4)"), ("x=1, y=2", "(1,2)"), ("x = 5, x = 3", r"\{3, 5\}"),
    (r"1\pm\sqrt{2}", r"1+\sqrt2, 1-\sqrt2"), (r"x=\pm 2", r"2, -2"), (r"\{1,2\}\cup\{3\}", r"\{1,2,3\}"),
    ("(1,2),(3,4)", "(3,4),(1,2)"), ("x>3", r"(3,\infty)"), ("1<x<3", "(1,3)"), ("x > 3", "3 < x"),
    (r"-1 \le x \le 2", "[-1,2]"), (r"x\in[0,1]", "[0,1]"), (r"(-\infty,1)\cup(2,3)", r"(2,3)\cup(-\infty,1)"),
    (r"\begin{pmatrix} 1/2 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{bmatrix}0.5&2\\3&4\end{bmatrix}"), ("3:4", "3/4"),
    (r"\mathbb{R}", r"(-\infty,\infty)"), (r"\text{none}", "none"), (r"\mathrm{e}^2", "e^2"),
    (r"\alpha+\beta", r"\beta+\alpha"), ("0xFF", "255"), ("101_2", "5"), ("0b101", "101_{2}"),
    ("1 mod 3", r"x \equiv 4 \pmod{3}"), ("5 million", "5,000,000"), (r"5\text{ million}", "5000000"),
    ("$1.5 billion", "1,500 million dollars"), ("2 dozen", "24"), ("2 hours", "120 minutes"),
    (r"40\text{ minutes}", r"\frac{2}{3}\text{ hours}"), ("2 hours 30 minutes", "2.5 hours"), ("36 km/h", "10 m/s"),
    ("5 km", "5000 m"), ("3 square feet", "3 ft^2"), ("50 cents", r"\$0.50"), ("7 apples", "7 apple"),
]  # fmt: skip
FIBONACCI = (
    r"\sqrt{538522340430300790495419781092981030533/332825110087067562321196029789634457848}",
    r"\sqrt{871347450517368352816615810882615488381/538522340430300790495419781092981030533}",
)
UNEQUAL = [
    ("2**10", "2**11"), ("2^(n(n-1)/2)", "2^(n(n+1)/2)"), ("0xFF", "0xFE"), ("5 million", "5 billion"),
    ("2 hours", "2 minutes"), ("7//2", "7//3"), ("7//2", "7"), ("2**10", "2"), ("5 million", "5"), ("5 squared", "5"),
    ("3/4", "0.76"), ("0.33", "1/3"), ("100000000001", "100000000002"), ("(1, 2)", "(2, 1)"), ("5", "-5"),
    ("2 sin x", "2 cos x"), ("x+1", "x+2"), ("Paris", "London"), ("Paris", "7"), ("5", "5.00001"), ("2 or 3", "2"),
    ("[0, 1)", "[0, 1]"), ("75%", "0.76"), ("1/0", "2/0"), ("1e999", "1e998"), (".", "1"), ("1" * 400, "x" * 400),
    ("1" * 301, "1" * 302), ("2^{100000}", "2^{100001}"), ("9^{9^{9^9}}", "8^{8^{8^8}}"), ("e^{1000}", "e^{1001}"),
    ("2^{-5000}", "2^{-5001}"), ("e^{-9000}", "0"), ("2^{200}+1", "2^{200}"), (r"2^{900}+\sqrt2", r"2^{900}+\sqrt3"),
    (r"\sqrt{2+10^{-2000}}", r"\sqrt{2}"), (r"\sin 30^\circ", r"\sin 30"), FIBONACCI,
    ("|x|", "x"), (r"\sqrt{x^2}", "x"), ("|n-10^9|", "10^9-n"), (r"\lfloor n/10^9\rfloor", "0"),
    ("|n/10^9-10^9|", "10^9-n/10^9"), ("f(2x)", "2f(x)"), ("f(x+1)", "f(x)+f(1)"), ("1/2x", "x/2"),
    ("1/2x", r"\frac{1}{2x}"), ("2^n!", "(2^n)!"), ("1 or 6", "2 or 3"), ("12:30", "12:40"), ("1:20", "2:40"),
    ("1:2:3", "1:6"), ("2 3", "6"), ("2 3", "23"), ("x2", "2x"), ("3 12", "3 21"), ("101_2", "101_3"),
    ("101_2", "101"), ("1 mod 3", "1 mod 5"), ("1 mod 3", "2 mod 3"), (r"x\equiv1\pmod 3", r"y\equiv1\pmod 3"),
    ("2mg", "2"), ("2 x", "2"), ("5 cm", "5 m"), ("5 apples", "5 oranges"), ("50%", "50 cm"),
    ("5 dollars", "5 euros"), ("$5", "\u20ac5"), ("30 degrees", "30 radians"), ("2 thirds", "2"), ("3 halves", "3"),
    ("5 m^2", "5 m"), ("10 m/s", "10 m"), ("x=5", "y=5"), ("x=5", "x=6"), ("y=2x+3", "y=2x+4"), ("x<3", "x>3"),
    ("x<3", r"x\le 3"), ("x<2y", "x>2y"), (r"\sin x^2", r"\sin^2 x"), (r"\log x", r"\ln x"), ("x^2+C", "x^2+c"),
    (r"\{1,1,2\}", r"\{1,2,2\}"), ("1,2", "1,2,3"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&3\\2&4\end{pmatrix}"), (r"\pm 2", "2"),
    ("x^{10}", "x^10+0x+1"), ("2\u20133", "-1"), ("-1", "2\u20133"), ("1,5", "15"), ("5 May", "5"),
    ("4 sin 2", "4 sin 3"), ("n^{n-2}", "n^{n-1}"),
]  # fmt: skip


@pytest.mark.parametrize("one, other", EQUAL)
def test_equal_forms_are_equal(one: str, other: str) -> None:
    assert same_value(one, other)
    assert same_value(other, one)


@pytest.mark.parametrize("one, other", UNEQUAL)
def test_different_values_are_different(one: str, other: str) -> None:
    assert not same_value(one, other)
    assert not same_value(other, one)
    assert same_value(one, one)


def test_a_decimal_of_six_digits_stands_for_what_it_is_cut_from() -> None:
    assert same_value("0.666666", "2/3")
    assert same_value("0.666667", "2/3")
    assert same_value("66.6667%", "2/3")
    assert same_value("0.333333 million", r"\frac{1000000}{3}")
    assert not same_value("0.66667", "2/3")
    assert not same_value("0.666666", "0.666667")


@pytest.mark.parametrize(
    "text",
    [
        "2**", "5 or so", "(1, 2", "2 +", "7//2", r"\frac{1}", r"\foo{2}", "3 4", "x := 5", "1 < 2 > 1", "5 cm by 7 cm",
        "12:30", "a" * 301, "5!!", "2^n!", "2^ab", "1/2x", "3 men 4", "12_2", "(" * 22 + "x" + ")" * 22,
    ],
)  # fmt: skip
def test_what_is_not_read_to_its_end_is_not_read(text: str) -> None:
    assert parse(tidy(text)) is None


def test_plain_numbers_need_no_arithmetic_library() -> None:
    code = (
        "import sys\nfrom mosaic.answers.extraction import comparison\n"
        "from mosaic.core.workload import AnswerKind\nsame = comparison(AnswerKind.MATH)\n"
        "assert same('33', '033') and not same('33', '34') and same('3/4', '0.75') and same('2 hours', '120 minutes')\n"
        "print('sympy' in sys.modules, 'mpmath' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]


class Drawn(NamedTuple):
    """An expression in the notations of programs and of LaTeX, and what sympy makes of it."""

    plain: str
    latex: str
    value: sympy.Expr


Join: TypeAlias = Callable[[Drawn, Drawn], Drawn]
N, X = sympy.symbols("n x", positive=True)
AT = {N: sympy.Rational(7, 3), X: sympy.Rational(8, 5)}
ATOMS = st.one_of(
    st.integers(1, 6).map(lambda n: Drawn(str(n), str(n), sympy.Integer(n))),
    st.sampled_from([Drawn("n", "n", N), Drawn("x", "x", X), Drawn("pi", r"\pi ", sympy.pi)]),
)
FUNCTIONS = {"sin": sympy.sin, "cos": sympy.cos, "ln": sympy.log, "sqrt": sympy.sqrt}


def power(one: Drawn, other: Drawn) -> Drawn:
    value = sympy.Pow(one.value, other.value, evaluate=False)
    return Drawn(f"({one.plain})**({other.plain})", rf"\left({one.latex}\right)^{{{other.latex}}}", value)


def quotient(one: Drawn, other: Drawn) -> Drawn:
    value = one.value * sympy.Pow(other.value, -1, evaluate=False)
    return Drawn(f"({one.plain})/({other.plain})", rf"\frac{{{one.latex}}}{{{other.latex}}}", value)


def joined(sign: str, latex: str, join: Callable[[sympy.Expr, sympy.Expr], sympy.Expr]) -> Join:
    return lambda one, other: Drawn(
        f"({one.plain}){sign}({other.plain})", f"({one.latex}){latex}({other.latex})", join(one.value, other.value)
    )


def applied(name: str, one: Drawn) -> Drawn:
    brackets = "{%s}" if name == "sqrt" else "(%s)"
    return Drawn(f"{name}({one.plain})", rf"\{name}{brackets % one.latex}", FUNCTIONS[name](one.value))


JOINS = (
    power, power, quotient, joined("+", "+", lambda a, b: a + b), joined("-", " - ", lambda a, b: a - b),
    joined("*", r"\cdot ", lambda a, b: a * b), joined("", "", lambda a, b: a * b),
)  # fmt: skip


def larger(smaller: st.SearchStrategy[tuple[Drawn, Drawn]]) -> st.SearchStrategy[tuple[Drawn, Drawn]]:
    """Build two expressions of one shape."""

    def join(how: Join, left: tuple[Drawn, Drawn], right: tuple[Drawn, Drawn]) -> object:
        return how(left[0], right[0]), how(left[1], right[1])

    def apply(name: str, pair: tuple[Drawn, Drawn]) -> object:
        return applied(name, pair[0]), applied(name, pair[1])

    joins = st.builds(join, st.sampled_from(JOINS), smaller, smaller)
    return st.one_of(joins, joins, st.builds(apply, st.sampled_from([*FUNCTIONS]), smaller))


ALIKE = st.recursive(st.tuples(ATOMS, ATOMS) | ATOMS.map(lambda atom: (atom, atom)), larger, max_leaves=6)


def digits(value: sympy.Expr) -> sympy.Expr:
    """Evaluate at one point to so many digits that two values that differ there do so."""
    found = value.subs(AT).evalf(30, maxn=60)
    assume(found.is_finite and found.is_comparable and abs(sympy.log(abs(found) + 1e-9, 10)) < 30)
    return found


@settings(max_examples=40, deadline=None)
@given(ALIKE, st.booleans())
def test_what_sympy_proves_unequal_is_not_equal(pair: tuple[Drawn, Drawn], is_latex: bool) -> None:
    one, other = pair
    assume(one != other)
    assume(abs(digits(one.value) - digits(other.value)) > 1e-20)
    assert not same_value(one.plain, other.latex if is_latex else other.plain)
    assert not same_value(one.latex, other.plain)
    assert not same_value(f"2^({one.plain})", f"2^({other.plain})")


@settings(max_examples=60, deadline=None)
@given(ALIKE)
def test_two_notations_of_an_expression_are_equal(pair: tuple[Drawn, Drawn]) -> None:
    one = pair[0]
    digits(one.value)
    assert same_value(one.plain, one.latex)


WORDS = {
    "second": ("time", 1), "minutes": ("time", 60), "hours": ("time", 3600), "days": ("time", 86400),
    "m": ("length", 1),
    "km": ("length", 1000), "centimeters": ("length", "1/100"), "inches": ("length", "127/5000"), "kg": ("mass", 1),
    "grams": ("mass", "1/1000"), "km/h": ("speed", "5/18"), "meters per second": ("speed", 1), "m^2": ("area", 1),
    "square feet": ("area", "145161/1562500"), "liters": ("volume", "1/1000"), "dollars": ("dollars", 1),
    "cents": ("dollars", "1/100"), "euros": ("euros", 1), "apples": ("apples", 1), "oranges": ("oranges", 1),
}  # fmt: skip
ENDINGS = (" mod 7", " hours", "//2", " or so", "x")
SCALES = {"": 1, "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}


class Counted(NamedTuple):
    text: str
    kind: str
    value: sympy.Expr


def counted(number: int, scale: str, unit: str) -> Counted:
    kind, factor = WORDS[unit]
    return Counted(" ".join(f"{number} {scale} {unit}".split()), kind, number * SCALES[scale] * sympy.Rational(factor))


def scaled(number: int, scale: str) -> Counted:
    return Counted(f"{number} {scale}".strip(), "number", sympy.Integer(number * SCALES[scale]))


def congruent(number: int, modulus: int) -> Counted:
    return Counted(f"{number} mod {modulus}", f"mod {modulus}", sympy.Mod(number, modulus))


def in_base(number: int, base: int) -> Counted:
    figures, rest = "", number
    while rest or not figures:
        figures, rest = str(rest % base) + figures, rest // base
    return Counted(f"{figures}_{{{base}}}", "number", sympy.Integer(number))


def hexadecimal(number: int) -> Counted:
    return Counted(hex(number), "number", sympy.Integer(number))


QUANTITIES = st.builds(counted, st.integers(1, 120), st.sampled_from([*SCALES]), st.sampled_from([*WORDS]))
RESIDUES = st.builds(congruent, st.integers(0, 20), st.integers(2, 7))
NUMERALS = st.builds(in_base, st.integers(1, 300), st.integers(2, 10)) | st.builds(hexadecimal, st.integers(1, 300))
SCALED = st.builds(scaled, st.integers(1, 120), st.sampled_from([*SCALES]))


@settings(max_examples=200, deadline=None)
@given(st.one_of(*[st.tuples(some, some) for some in (QUANTITIES, RESIDUES, NUMERALS | SCALED)]))
def test_units_scales_bases_and_congruences_are_equal_where_their_values_are(pair: tuple[Counted, Counted]) -> None:
    one, other = pair
    assert same_value(one.text, other.text) == (one.kind == other.kind and one.value == other.value)


@settings(max_examples=100, deadline=None)
@given(
    st.text("0123456789xn+-*/^(){}\\ .,_!=<|%", max_size=14),
    st.sampled_from(ENDINGS),
)
def test_an_ending_is_never_dropped(text: str, ending: str) -> None:
    """What stands behind an answer may be the unit that another leaves out, and nothing else."""
    if text.strip() and same_value(text, text + ending):
        assert ending in (" hours", "x")
        assert ending != "x" or parse(tidy(text)) is not None


@pytest.mark.parametrize(
    "text",
    [
        "9^{9^{9^9}}", "9" * 60 + "^" + "9" * 60, "(" * 60 + "x" + ")" * 60, "2^" * 80 + "2", "1234567^{2023}" * 12,
        "\\sin" * 60 + " x", "+".join(f"\\sin({n}x)" for n in range(1, 30)), "(3000!)" * 30, "e^{x^{x^{x^x}}}" * 12,
        "((x+1/3)^{99}+1/7)^{99}" * 8, ",".join(["sqrt(2)"] * 35), "\\binom{3000}{1500}" * 12,
    ],
)  # fmt: skip
def test_the_work_of_a_comparison_is_bounded(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the size of what is computed: no clock decides, so the same texts always compare the same."""
    evaluated: list[str] = []
    apply = math_values._apply

    def counting(name: str, *args: object) -> object:
        evaluated.append(name)
        return apply(name, *args)

    monkeypatch.setattr(math_values, "_apply", counting)
    assert not same_value(text, f"1 + {text}")
    assert len(evaluated) < 8000
