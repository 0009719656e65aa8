"""Guesses how a question's answers compare, from its text and gold answer, for files without this information."""

import re
from collections.abc import Sequence

from mosaic.core.checks import require
from mosaic.core.workload import OPTION_LETTERS, AnswerKind

_ANNOUNCED = re.compile(r"\b(?:options|choices|alternatives)(?: are)?\s*:", re.IGNORECASE)
# NOTE: a marker stands behind white space and in front of the option's text, as formulas are full of "f(X)".
_IN_BRACKETS = re.compile(r"(?:^|(?<=\s))\(([A-Z])\)\s+(?=\S)")
_AT_LINE_START = re.compile(r"^[^\S\n]*([A-Z])[.)]\s+(?=\S)", re.MULTILINE)
_ONLY_NAMED = re.compile(r"(?:and|or)\b|[&,;]")
"""What follows an option that another one's text names: '(D) Both (A) and (B)'."""
_LETTER = re.compile(r"(?:[Oo]ption )?(?:\(?([A-Z])[.):]?|\(([a-z])\)|([a-z])[.)]?)")
_COUNTED = re.compile(r"(?P<number>.*\d)\s+(?!(?:or|and|to)\b)[A-Za-z]{2,}")
"""A number and what it counts."""
_MIN_OPTIONS = 4
"""Of a question whose gold is a letter and whose options are not in its text."""
_NAME = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_OPERATOR = re.compile(r"\d|\\[A-Za-z]+|[\^+*/=]")


def question_kind(
    text: str | None, gold: str | None, *, options: Sequence[str] = (), wanted: AnswerKind | None = None
) -> tuple[AnswerKind, int | None, str | None]:
    r"""Return how answers compare, the number of options (None but of a choice), and gold in its normal form.

    Options that the text lists make a choice, unless gold is neither one of their letters nor the text of one. A gold
    letter without options in the text makes one of four options, or more where the letter comes later. Gold that is a
    number or an expression is mathematics. Everything else, and a question without options and gold, is free text.

    Parameters
    ----------
    text, gold
        The question, and its right answer.
    options
        Where the file has them apart; none: the text may list some.
    wanted
        How answers compare, if the user gives it; None: guessed.

    Raises
    ------
    ValueError
        If gold is the letter of an option that the text does not list, or of options that are known to be none of them.

    Examples
    --------
    >>> question_kind("Which one? The options are: (A) red (B) green (C) blue", "(c)")
    (<AnswerKind.CHOICE: 'choice'>, 3, 'C')
    >>> question_kind("Find m + n.", "73")
    (<AnswerKind.MATH: 'math'>, None, '73')
    >>> question_kind("Who wrote Emma?", "Jane Austen")
    (<AnswerKind.TEXT: 'text'>, None, 'Jane Austen')
    """
    gold = (gold or "").strip().strip("*") or None
    if wanted in (AnswerKind.MATH, AnswerKind.TEXT):
        return wanted, None, gold
    is_choice = bool(options) or wanted is AnswerKind.CHOICE
    options = options or listed_options(text or "")
    if gold is None and (options or is_choice):
        return AnswerKind.CHOICE, len(options) or _MIN_OPTIONS, None
    letter = _gold_letter(gold, options) if gold else None
    if letter is not None:
        listed = OPTION_LETTERS[: len(options)]
        require(not options or letter in tuple(listed), "answer", f"one of the listed options {listed}", letter)
        least = len(options) or _MIN_OPTIONS
        return AnswerKind.CHOICE, max(least, OPTION_LETTERS.index(letter) + 1), letter
    require(not is_choice, "answer", "the letter or the text of an option", gold)
    if gold is not None and _is_mathematical(gold):
        return AnswerKind.MATH, None, gold
    return AnswerKind.TEXT, None, gold


def listed_options(text: str) -> list[str]:
    """List the texts of a question's options; empty where it has none."""
    announced = list(_ANNOUNCED.finditer(text))
    if announced:
        behind = text[announced[-1].end() :]
        for marker in (_IN_BRACKETS, _AT_LINE_START):
            if found := _option_texts(behind, list(marker.finditer(behind))):
                return found
    return _last_list(text)


def _last_list(text: str) -> list[str]:
    """Read the last list that starts with A, since an example or statements to judge may come before it."""
    for marker in (_IN_BRACKETS, _AT_LINE_START):
        places = [place for place in marker.finditer(text) if not _ONLY_NAMED.match(text, place.end())]
        for first in reversed(range(len(places))):
            if places[first][1] == "A" and (found := _option_texts(text, places[first:])):
                return found
    return []


def _option_texts(text: str, places: list[re.Match[str]]) -> list[str]:
    """Follow the letters A, B, C and so on; fewer than two are no list."""
    found: list[re.Match[str]] = []
    for place in places:
        if len(found) < len(OPTION_LETTERS) and place[1] == OPTION_LETTERS[len(found)]:
            found.append(place)
    ends = [place.start() for place in found[1:]] + [len(text)]
    return [text[place.end() : end].strip() for place, end in zip(found, ends, strict=True)] if len(found) >= 2 else []


def _gold_letter(gold: str, options: Sequence[str]) -> str | None:
    """Read gold as a letter: the letter itself, or the option with its text."""
    match = _LETTER.fullmatch(gold)
    if match is not None:
        letter = (match[1] or match[2] or match[3]).upper()
        # Without options a small letter is rather a variable.
        if match[1] or OPTION_LETTERS.index(letter) < len(options):
            return letter
    same = [number for number, option in enumerate(options) if option.casefold() == gold.casefold()]
    return OPTION_LETTERS[same[0]] if len(same) == 1 else None


def _is_mathematical(gold: str) -> bool:
    """Whether gold is a number or a formula; this needs no algebra."""
    # The mathematical parser takes a while to import, and most workloads do not need it.
    from mosaic.answers.math_answers import FUNCTIONS
    from mosaic.answers.math_parser import parse
    from mosaic.answers.math_text import tidy
    from mosaic.answers.math_tree import Quantity, Relation, variables

    text = tidy(gold)
    counted = _COUNTED.fullmatch(text)
    found = parse(counted["number"] if counted else text)
    value = found.sides[-1] if isinstance(found, Relation) else found
    if isinstance(value, Quantity) and not variables(value):
        return True
    return bool(_OPERATOR.search(text)) and {*_NAME.findall(re.sub(r"\\[A-Za-z]+", " ", text))} <= FUNCTIONS
