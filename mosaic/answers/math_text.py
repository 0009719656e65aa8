"""Writes a mathematical answer in one form: plain signs instead of LaTeX's, no markup, money and degrees as words."""

import re

_SIGNS = str.maketrans({
    "\u2212": "-", "\u00d7": "*", "\u00b7": "*", "\u22c5": "*", "\u00f7": "/", "\u00b2": "^{2}", "\u00b3": "^{3}",
    "\u2264": "<=", "\u2265": ">=", "\u2260": "!=", "\u2261": r"\equiv ", "\u00b1": r"\pm ", "\u222a": r"\cup ",
    "\u03c0": r"\pi ", "\u221e": r"\infty ", "\u2205": r"\emptyset ", "\u00b0": " degrees ", "\u00b5": "u",
    "\u03bc": "u", "\u00a0": " ", "\u2009": "", "\u202f": "",
})  # fmt: skip
_AMOUNT = r"((?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:\s*(?:hundred|thousand|million|billion|trillion)\b)?)"
_UPRIGHT_UNITS = {
    "A": "amperes", "C": "coulombs", "J": "joules", "K": "kelvins", "N": "newtons", "V": "volts", "W": "watts",
}  # fmt: skip
_REWRITES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^\\?\$\s*" + _AMOUNT + r"(?=[^$]*$)", r"\1 dollars "),
        (r"\\\$\s*" + _AMOUNT, r"\1 dollars "),
        (r"^\u20ac\s*" + _AMOUNT, r"\1 euros "),
        (r"^\u00a3\s*" + _AMOUNT, r"\1 sterling "),
        (r"\u20ac$", " euros"),
        (r"\u00a3$", " sterling"),
        (r"\\\\", " ; "),
        (r"\\(?:left|right|bigl?|bigr|Bigl?|Bigr)(?![A-Za-z])|\\displaystyle\b|\\[,;!:> ]|\$|\\[()\[\]]|~", ""),
        (r"\\q?quad\b", " "),
        (r"\{,\}", ","),
        (r"^\u2013", "-"),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\^\s*\{?\s*\\circ\s*\}?|\\degree\b|\\circ\b", " degrees "),
        (r"\\%", "%"),
        (r"\\(?:times|cdot|ast)(?![A-Za-z])", "*"),
        (r"\\div(?![A-Za-z])", "/"),
        (r"\\l(?:e|eq|eqslant)(?![A-Za-z])", "<="),
        (r"\\g(?:e|eq|eqslant)(?![A-Za-z])", ">="),
        (r"\\neq?(?![A-Za-z])", "!="),
        (r"\\[lg]t(?![A-Za-z])", lambda match: {"l": "<", "g": ">"}[match[0][1]]),
        (r"\\[lr]?vert(?![A-Za-z])", "|"),
        (r"\\[lr]angle(?![A-Za-z])", lambda match: {"l": "(", "r": ")"}[match[0][1]]),
        (r"\\varnothing(?![A-Za-z])", r"\\emptyset "),
        (r"\\mathbb\s*\{?R\}?", r"(-\\infty , \\infty )"),
        (r"\\pmod(?![A-Za-z])|\\b?mod(?![A-Za-z])", " mod "),
        (r"\(\s*mod\b([^()]*)\)", r" mod \1"),
        (r"\{([^{}]*)\\choose(?![A-Za-z])([^{}]*)\}", r"\\binom{\1}{\2}"),
        (
            r"(?<=[\d})])\s*\\(?:text|mathrm|textrm)\s*\{\s*([ACJKNVW])\s*\}",
            lambda match: f" {_UPRIGHT_UNITS[match[1]]} ",
        ),
        (r"\\(?:text(?:bf|rm|it|normal)?|math(?:rm|bf|it|sf)|operatorname|boldsymbol|bm)\s*\{([^{}]*)\}", r" \1 "),
        (r"\\(?:boxed|fbox)\s*\{([^{}]*)\}", r"(\1)"),
        (r"(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi "),
        (r"\u221a\s*(\w+)", r"\\sqrt{\1}"),
        (r"\u221a", r"\\sqrt "),
        (r"(?<=\d)\s*x\s*(?=10\s*(?:\^|\*\*))", "*"),
        (r"\.\s*$", ""),
    )
)


def tidy(expression: str) -> str:
    r"""Write an answer in one form.

    Examples
    --------
    >>> tidy(r"$\dfrac{3}{4} \times 10^{2}\text{ cm}$"), tidy("$5 million"), tidy(r"x \leq 2")
    ('\\frac{3}{4} * 10^{2} cm', '5 million dollars', 'x <= 2')
    """
    text = expression.strip().translate(_SIGNS).strip()
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text).strip()
    return re.sub(r"\s+", " ", text)
