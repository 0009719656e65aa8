"""Reads the number or expression that a response to a mathematical question gives.

NOTE: the last box counts, since models are trained to box their answer. Without a box, the text after the last "the
answer is" counts. Without that too, the last number counts, unless the response was cut off in the middle of a
sentence. If the text takes a box back ("wait, I made an error"), what is stated after it counts.
"""

import re
from typing import NamedTuple

from mosaic.answers.math_units import end_of_words
from mosaic.answers.response_text import ANSWER, IS, boxes, plain_characters, retracted

_CUE = re.compile(ANSWER, re.IGNORECASE)
_JOINT = re.compile(IS, re.IGNORECASE)
_UNDECIDED = re.compile(
    r"\W*(?:either|one of|between|unknown|undetermined|not (?:clear|known|possible|determined)|cannot|impossible)\b",
    re.IGNORECASE,
)
_NO_ANSWER = re.compile(
    r"\b(?:can(?:\s?not|['\u2019]t)|could(?: not|n['\u2019]t)|unable to|(?:im|not )possible to) (?:be )?"
    r"(?:determin|answer|solve|f[io]u?nd|provid|help|assist|comput|calculat)",
    re.IGNORECASE,
)
_SPAN = re.compile(
    r"\$\$([^$]{1,300}?)\$\$|(?<![\\$])\$(?![\s$])([^$\n]{0,300}?[^\s$\\])\$(?!\d)|\\\((.{1,300}?)\\\)|\\\[(.{1,300}?)\\\]",
    re.DOTALL,
)
_ATOM = (
    r"(?:0[xX][0-9a-fA-F]+|(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|\.\d+"
    r"|sqrt\([^()\n]{1,40}\)|\u221a\(?\w+\)?|\u03c0|pi\b|[\u00b2\u00b3])"
)
_FORMULA = re.compile(
    rf"(?<![\w.])[-\u2212]?{_ATOM}(?:(?:\s?(?:\*\*|[-+*/^\u00d7\u00b7\u2212])\s?|\s?){_ATOM})*(?:\s?\\?%)?"
)
_TOKEN = r"(?:[\w^+/.{}\\-]|\*\*|\((?:[^()\s]|\([^()\s]*\))*\))+"
_REST = re.compile(
    rf"(?!(?:st|nd|rd|th)\b)(?=[A-Za-z^]|_[\d{{]|\\[A-Za-z]){_TOKEN}"
    rf"(?:\s[-+*/^]\s(?=\S*\d|[A-Za-z]\b){_TOKEN})*(?<![-+/.])"
)
"""Characters that continue a number without a space: the number alone would be another answer."""
_BOLD = re.compile(r"(?<![\w)])\*\*|\*\*(?![\w(-])")
_LIST_MARKER = re.compile(
    r"^[^\S\n]*(?:#+ *)?\**(?:step|case|part)? *\(?\d{1,2}(?:[.):]|\*\*)+(?=\s)", re.IGNORECASE | re.MULTILINE
)
_GROUP = re.compile(r"\s*[(\[{][^\n]{1,80}[)\]}]\s*$")
_SENTENCE_END = re.compile(r"[.!?](?=\s|$|\*)|[\n\u3002]")
_EQUALS = re.compile(r"(?<![<>!:\\])=")
_NAME = re.compile(r"[^\W\d_]{2,}")
FUNCTIONS = frozenset({"sqrt", "pi", "sin", "cos", "tan", "log", "ln", "exp", "mod"})
"""Words that are part of a formula."""
_CUT_OFF = re.compile(
    r"(?:(?:[^\W\d_]{2,}[\s,]+){3}[^\W\d_]+|[-+*/=,(]|\b(?:and|then|that|the|of|to|so|is|we|which|with|for|a|by|in|as|get))\s*$",
    re.IGNORECASE,
)
_MAX_SENTENCE = 400
"""Characters read after a phrase that announces the answer."""


class Announced(NamedTuple):
    """The answer that an announcement names; None: it names no single one."""

    expression: str | None


def math_expression(visible: str) -> str | None:
    r"""Return the expression that a response gives as its answer, thinking removed; None where it gives none.

    Examples
    --------
    >>> math_expression(r"First \boxed{2}, and then \boxed{\frac{\sqrt{2}}{2}}.")
    '\\frac{\\sqrt{2}}{2}'
    >>> math_expression("The answer is $x = 5$ cm.")
    '5 cm'
    """
    text = plain_characters(visible)
    found = boxes(text)
    full = [box for box in found if box.content]
    if full and not retracted(text, full[-1].end):
        return full[-1].content
    cut_off = found[-1].start if found and found[-1].content is None else None
    announced = _announced(text[full[-1].end if full else 0 : cut_off])
    if announced:
        return announced.expression
    # A stray number is no answer if a box was taken back, or was cut off inside.
    return None if full or cut_off is not None else _last_formula(text)


def _announced(text: str) -> Announced | None:
    """Read the text after the last phrase that announces the answer and is followed by an expression."""
    for cue in reversed(list(_CUE.finditer(text))):
        limit = cue.end() + _MAX_SENTENCE
        end = _SENTENCE_END.search(text, cue.end(), limit)
        stop = end.start() if end else limit
        joint = _JOINT.search(text, cue.end(), stop)
        if joint is None and text[cue.end() : stop].strip(" *_#"):
            continue
        behind = text[joint.end() if joint else stop : limit].lstrip(" *_#:\n\t")
        if _UNDECIDED.match(behind):
            return Announced(None)
        if expression := _first_expression(behind):
            return Announced(expression)
    return None


def _first_expression(behind: str) -> str | None:
    sentence = _SENTENCE_END.split(behind, maxsplit=1)[0]
    if span := _SPAN.match(behind) or _SPAN.search(sentence):
        unit = behind[span.end() : end_of_words(behind, span.end())]
        return f"{_result(_content(span))}{unit}"
    plain = _result(_BOLD.sub(" ", sentence))
    if _GROUP.match(plain) or (plain and {*_NAME.findall(plain.lower())} <= FUNCTIONS and len(plain) <= 60):
        return plain
    last = plain.rpartition(" is ")[2]
    return _formula(last) or _formula(plain)


def _formula(plain: str) -> str | None:
    """Read the first formula of a sentence, with its scale and unit."""
    found = _FORMULA.search(plain)
    return _whole(plain, found) if found else None


def _whole(text: str, formula: re.Match[str]) -> str:
    """Extend a formula to the characters that continue it without a space, and to its scale and unit."""
    rest = _REST.match(text, formula.end())
    return text[formula.start() : end_of_words(text, rest.end() if rest else formula.end())].strip()


def _content(span: re.Match[str]) -> str:
    return span[span.lastindex or 0].strip().rstrip(".,;")


def _result(expression: str) -> str:
    """Keep the part after the last equals sign, unless there are several equations side by side."""
    sides = _EQUALS.split(expression)
    kept = expression if len(sides) > 2 and "," in expression else sides[-1]
    return kept.strip().rstrip(",;:").removeprefix("$")


def _last_formula(text: str) -> str | None:
    if _NO_ANSWER.search(text.rstrip().rsplit("\n\n", 1)[-1]) or _CUT_OFF.search(text[-_MAX_SENTENCE:]):
        return None
    text = _LIST_MARKER.sub(lambda marker: " " * len(marker[0]), text)
    spans = [span for span in _SPAN.finditer(text) if re.search(r"\d|\\pi", _content(span))]
    formulas = list(_FORMULA.finditer(text, spans[-1].end() if spans else 0))
    if formulas:
        return _whole(text, formulas[-1])
    if not spans:
        return None
    end = spans[-1].end()
    return f"{_result(_content(spans[-1]))}{text[end : end_of_words(text, end)]}"
