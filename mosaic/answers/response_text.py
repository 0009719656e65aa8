"""What all readers of a response share: its visible part, its boxes, the word "answer", and its retractions."""

import re
from typing import NamedTuple

# NOTE: `\b` and `\w` treat ideographs as letters, and models write a Latin letter or a digit directly after them.
START = r"(?<![^\W_])"
STOP = r"(?![^\W_])"
ANSWER = (
    rf"{START}(?:answers?|antwort|r[e\u00e9]ponse|respuesta|risposta|resposta|\u043e\u0442\u0432\u0435\u0442){STOP}"
    r"|\u7b54[\u6848\u3048]?|\uc815\ub2f5|\ub2f5(?=\s?[\uc740:])"
)
"""The word "answer" in English, German, French, Spanish, Italian, Portuguese, Russian, Chinese, Japanese and Korean."""
IS = rf"{START}(?:is|are|be|was|equals|ist|lautet|est|es|\u00e8|\u00e9){STOP}|[:=\u662f\u4e3a\u70ba\u306f\uc740\ub294]"
"""What joins a name of the answer to the answer."""

_TAG = r"(?:seed:)?(?:think(?:ing)?|thoughts?|reasoning)"
_OPENED = re.compile(rf"<{_TAG}>|\[THINK\]|<\|START_THINKING\|>", re.IGNORECASE)
_CLOSED = re.compile(rf"</{_TAG}>|\[/THINK\]|<\|END_THINKING\|>", re.IGNORECASE)
_SPECIAL_TOKEN = re.compile(r"<\|[A-Za-z_]{3,40}\|>|</s>")
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|(?P<bare>[A-Za-z0-9]+))")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_SECOND_THOUGHT = (
    r"(?:^|(?<=[.!?\n(\u2014]))[\s*\"]*(?:(?:but|oh|hmm|no|and)\b[\s,]*)*(?:wait|hmm|actually|hold on"
    r"|let me (?:double|re)-?\s?check)\b"
)
_RETRACTION = (
    r"\bi (?:have )?(?:made|see) (?:an?|my) [\w-]{0,20} ?(?:mistake|error)|\bmy mistake|\bapologies|\bi misread"
    r"|\bi was wrong|\bscratch that|\bon second thought"
    r"|\b(?:let me|i need to) (?:re(?:consider|do|compute|calculate|think)|start over|correct)"
    r"|\b(?:wait|no|hmm|oh|actually)\b[^.\n]{0,20}\bth(?:at|is)(?: is|['\u2019]s| was)? (?:wrong|not right|incorrect)"
)
_DOUBT = re.compile(f"{_SECOND_THOUGHT}|{_RETRACTION}", re.IGNORECASE)
_TAKEN_BACK = re.compile(_RETRACTION, re.IGNORECASE)
_CONFIRMED = re.compile(
    r"\b(?:yes|indeed|confirm(?:s|ed)?|(?:still|it|answer|result|which) (?:holds|stands)|(?:was|is) right)\b",
    re.IGNORECASE,
)


class Box(NamedTuple):
    """A box of a response: its span in the text, and its content; None: cut off inside."""

    start: int
    end: int
    content: str | None


def without_thinking(text: str, *, thinking_opened: bool = False) -> str:
    r"""Return the visible part of a response: the text after its last closing think tag.

    A response that opens a think tag and never closes it was cut off while thinking, so none of it is visible. If the
    prompt's template opened the tag, the response holds only the closing one. Such a response holds no tag at all if it
    was cut off while thinking, so ``thinking_opened`` must be given.

    Examples
    --------
    >>> without_thinking("<think>B? No.</think>The answer is C.")
    'The answer is C.'
    >>> without_thinking("Hmm, so B, or", thinking_opened=True)
    ''
    """
    *hidden, visible = _CLOSED.split(text)
    if not hidden and (thinking_opened or _OPENED.search(text)):
        return ""
    return _OPENED.split(visible, maxsplit=1)[0]


def plain_characters(text: str) -> str:
    """Drop the engine's special tokens, and turn full-width letters, digits and signs into ASCII."""
    return _SPECIAL_TOKEN.sub("", text).translate(_FULL_WIDTH)


def boxes(text: str) -> list[Box]:
    r"""List the boxes of a text in order, with balanced braces; a box inside another is part of it.

    Examples
    --------
    >>> boxes(r"so \boxed{\frac{1}{2}}")
    [Box(start=3, end=22, content='\\frac{1}{2}')]
    """
    found: list[Box] = []
    at = 0
    while match := _BOX.search(text, at):
        at, content = (match.end(), match["bare"]) if match["bare"] else _braced(text, match.end())
        found.append(Box(match.start(), at, content))
    return found


def _braced(text: str, inside: int) -> tuple[int, str | None]:
    depth = 1
    for sign in _BRACE.finditer(text, inside):  # an escaped brace, as in \{1, 2\}, opens nothing
        depth += {"{": 1, "}": -1}.get(sign[0], 0)
        if depth == 0:
            return sign.end(), text[inside : sign.start()].strip()
    return len(text), None


def doubted(text: str, since: int) -> int | None:
    """Find where the text begins to doubt a statement that it made before ``since``; None: nowhere."""
    found = _DOUBT.search(text, since)
    return found.start() if found else None


def retracted(text: str, since: int) -> bool:
    """Whether the text takes back a statement made before ``since`` and does not confirm it afterwards."""
    last = max((match.end() for match in _TAKEN_BACK.finditer(text, since)), default=None)
    return last is not None and not _CONFIRMED.search(text, last)
