"""What all readers of a response share: where its thinking ends, what it boxes, and what it takes back."""

import re
from typing import NamedTuple

_TAG = r"(?:seed:)?(?:think|thinking|thought|thoughts|reasoning)"
_OPENED = re.compile(rf"<{_TAG}>|\[THINK\]|<\|START_THINKING\|>", re.IGNORECASE)
_CLOSED = re.compile(rf"</{_TAG}>|\[/THINK\]|<\|END_THINKING\|>", re.IGNORECASE)
_SPECIAL_TOKEN = re.compile(r"<\|[A-Za-z_]{3,40}\|>|</s>")
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|(?P<bare>[A-Za-z0-9]+))")
_SOFT = re.compile(
    r"(?:^|(?<=[.!?\n(\u2014]))[\s*\"]*(?:(?:but|oh|hmm|no|and)\b[\s,]*)*(?:wait|hmm|actually|hold on"
    r"|let me (?:double|re)-?\s?check)\b",
    re.IGNORECASE,
)
_HARD = re.compile(
    r"\b(?:i (?:made|have made|see) (?:a|an|my) [\w-]{0,20} ?(?:mistake|error)|my mistake|apologies|i misread"
    r"|i was wrong|scratch that|on second thoughts?"
    r"|let me (?:reconsider|redo|recompute|recalculate|rethink|start over|correct)|i need to (?:reconsider|redo"
    r"|correct)"
    r"|(?:wait|no|hmm|oh|actually)\b[^.\n]{0,20}\bth(?:at|is)(?: is|'s| was|\u2019s)? (?:wrong|not right|incorrect"
    r"|not correct))",
    re.IGNORECASE,
)
_CONFIRMED = re.compile(
    r"\b(?:yes|indeed|confirm(?:s|ed)?|(?:still|it|answer|result|which) (?:holds|stands)|was right"
    r"|is right after all)\b",
    re.IGNORECASE,
)


class Box(NamedTuple):
    """A box of a response: its place in the text, and what it holds; None: cut off inside."""

    start: int
    end: int
    content: str | None


def without_thinking(text: str, *, thinking_opened: bool = False) -> str:
    r"""Return what a reader sees of a response: the text after its last closing think tag.

    A response that opens a think tag and never closes it was cut off while thinking, so nothing of it is visible.
    Where the prompt's template opened the tag, the response holds the closing one only; ``thinking_opened`` says so,
    since a response cut off in such thinking holds no tag at all.

    Examples
    --------
    >>> without_thinking("<think>B? No.</think>The answer is C.")
    'The answer is C.'
    >>> without_thinking("Hmm, so B, or", thinking_opened=True)
    ''
    """
    closed = list(_CLOSED.finditer(text))
    if closed:
        visible = text[closed[-1].end() :]
        reopened = _OPENED.search(visible)
        return visible[: reopened.start()] if reopened else visible
    if thinking_opened:
        return ""
    return "" if _OPENED.search(text) else text


def plain_characters(text: str) -> str:
    """Drop the engine's special tokens, and turn full-width letters, digits and signs into ASCII."""
    return _SPECIAL_TOKEN.sub("", text).translate(_FULL_WIDTH)


def boxes(text: str) -> list[Box]:
    r"""List the boxes of a text in order, braces balanced; one inside another is part of it.

    Examples
    --------
    >>> boxes(r"so \boxed{\frac{1}{2}}")
    [Box(start=3, end=22, content='\\frac{1}{2}')]
    """
    found: list[Box] = []
    at = 0
    while match := _BOX.search(text, at):
        if match["bare"] is not None:
            found.append(Box(match.start(), match.end(), match["bare"]))
        else:
            found.append(_braced_box(text, match.start(), match.end()))
        at = found[-1].end
    return found


def _braced_box(text: str, start: int, inside: int) -> Box:
    depth = 1
    at = inside
    while at < len(text):
        if text[at] == "\\":
            at += 2  # an escaped brace, as in \{1, 2\}, opens nothing
            continue
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        at += 1
        if depth == 0:
            return Box(start, at, text[inside : at - 1].strip())
    return Box(start, len(text), None)


def doubted(text: str, since: int) -> int | None:
    """Find where the text begins to doubt what it said before ``since``; None: nowhere."""
    found = [match.start() for pattern in (_SOFT, _HARD) if (match := pattern.search(text, since))]
    return min(found, default=None)


def retracted(text: str, since: int) -> bool:
    """Whether the text takes back what it said before ``since`` and does not confirm it afterwards."""
    last = max((match.end() for match in _HARD.finditer(text, since)), default=None)
    return last is not None and not _CONFIRMED.search(text, last)
