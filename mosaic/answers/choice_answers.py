"""Reads the option's letter that a response to a multiple-choice question chooses.

NOTE: a response mentions many letters: options it discards, options it quotes, first thoughts that it corrects, and
words ("A patient", "I think", "hepatitis B"). Only letters that a *cue* declares count. Strong cues state the answer
("the answer is", a box, "C is the best choice"), weak ones conclude ("so B", "I would go with option B"). The last
strong one counts, unless the text goes on to doubt it: then a later conclusion replaces it, and one that is taken back
leaves no answer. Without any cue, a line that is only an option counts, or the one option that the last paragraph
affirms. Two letters in one declaration, or a letter beyond the options, are no answer.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from mosaic.answers.choice_cues import (
    CORRECT,
    DECLARED,
    NEGATED,
    STATED,
    WEAK,
    conditional,
    connectors,
    fill_end,
    hypothetical,
    letter_at,
)  # fmt: skip
from mosaic.answers.choice_text import plain_text
from mosaic.answers.response_text import doubted, retracted
from mosaic.core.workload import OPTION_LETTERS

_NO_OPTION = re.compile(
    r"(?:none|neither|no (?:option|answer|correct)|unknown|undetermined|not (?:listed|given|available|among)|n/a"
    r"|cannot be determined)\b(?:[^.\n()]{0,30}(?:\(|\boption )(?P<letter>[A-Z])(?![\w']))?",
    re.IGNORECASE,
)
_OPTION_LINE = re.compile(r"[\s\-]*(?:\(([A-Za-z])\)|([A-Z])(?:[.):]+(?=\s|$)|\s*$)|([a-z])[.)]?\s*$)")
_MENTION = re.compile(r"\(([A-Z])\)|\b(?:[Oo]ption|[Cc]hoice)\s+([A-Z])(?![\w'])")
_OF_A_NAME = "".join(
    rf"(?<!{noun} )" for noun in ("vitamin", "hepatitis", "group", "type", "factor", "point", "figure")
)
_LONE = re.compile(
    rf"{_OF_A_NAME}(?<![\w'-])(?:\(([A-Z])\)|([B-HJ-Z])(?=[.,;:!]|\s+(?:it|as|because|since|seems|remains|fits|and"
    rf"|or)\b)"
    r"|(A)(?=\s+(?:and|or)\b))"
)
_UNSURE = re.compile(r"\b(?:could|might|may|perhaps|maybe|if|either|would)\b", re.IGNORECASE)
_SENTENCES = re.compile(r"(?<=[.!?])\s+(?=[A-Z(])")
_FINISHED = re.compile(r"[.!?)\]}\"'\u3002]\s*$")


class Declared(NamedTuple):
    """A declaration: where it ends, and its letter; None: it declares no single option."""

    end: int
    letter: str | None


def choice_letter(visible: str, num_options: int) -> str | None:
    """Return the letter that a response chooses, thinking removed; None where it chooses no single option.

    Examples
    --------
    >>> choice_letter("A is wrong because it lacks units. C confuses the signs, so B.", 4)
    'B'
    """
    text = plain_text(visible)
    declared = _declared(text)
    letter = declared.letter if declared else _undeclared(text)
    return letter if letter is not None and letter in OPTION_LETTERS[:num_options] else None


def _declared(text: str) -> Declared | None:
    strong = max([*_stated(text), *_letter_first(text)], key=lambda found: found.end, default=None)
    weak = sorted(_concluded(text), key=lambda found: found.end)
    if strong is None:
        return weak[-1] if weak else None
    doubt = strong.end if strong.letter is None else doubted(text, strong.end)
    if doubt is None:
        return strong
    if weak and weak[-1].end > doubt:
        return weak[-1]
    return Declared(strong.end, None) if retracted(text, strong.end) else strong


def _stated(text: str) -> Iterator[Declared]:
    """Read declarations that name the answer first and its letter then: 'the answer is C'."""
    for cue in STATED.finditer(text):
        if not hypothetical(text, cue.start(), cue.start()):
            yield from _first_target(text, cue.start(), cue.end())


def _first_target(text: str, start: int, stop: int) -> Iterator[Declared]:
    for at, joint in connectors(text, start, stop):
        place = fill_end(text, at)
        found = _no_option(text, place) if joint else None
        if found is None and (letter := letter_at(text, place)):
            found = Declared(letter.end, letter.letter if letter.single else None)
        if found is None or (joint.startswith("would") and conditional(text, start, found.end)):
            continue
        if joint or not text[start].isascii() or "\n" in text[at:place] or _ends_line(text, found.end):
            yield found
            return


def _no_option(text: str, at: int) -> Declared | None:
    found = _NO_OPTION.match(text, at)
    return Declared(found.end(), found["letter"]) if found else None


def _ends_line(text: str, at: int) -> bool:
    return not text[at : at + 80].partition("\n")[0].strip(" .)")


def _letter_first(text: str) -> Iterator[Declared]:
    """Read declarations that name the letter first: 'C is the best choice'."""
    for found in DECLARED.finditer(text):
        if not hypothetical(text, found.start(), found.start()) and not conditional(text, found.start(), found.end()):
            yield Declared(found.end(), (found["marked"] or found["bare"]).upper())


def _concluded(text: str) -> Iterator[Declared]:
    """Read conclusions: 'so B', 'I would go with option B', 'option B is correct' where only one is called so."""
    for cue in WEAK.finditer(text):
        letter = letter_at(text, fill_end(text, cue.end()), concluding=True)
        if letter is None or hypothetical(text, cue.start(), cue.end()):
            continue
        if not conditional(text, cue.start(), letter.end):
            yield Declared(letter.end, letter.letter if letter.single else None)
    called = [Declared(found.end(), found["marked"] or found["bare"]) for found in CORRECT.finditer(text)]
    if len({declared.letter for declared in called}) == 1:
        yield from called


def _undeclared(text: str) -> str | None:
    lines = [line for line in text.splitlines() if line.strip()]
    found = {number: _OPTION_LINE.match(line) for number, line in enumerate(lines)}
    marked = {number: (match[1] or match[2] or match[3]).upper() for number, match in found.items() if match}
    if len(set(marked.values())) == 1 and marked.keys() & {0, len(lines) - 1}:
        return next(iter(marked.values()))
    paragraph = text.rstrip().rsplit("\n\n", 1)[-1]
    if not _FINISHED.search(paragraph):
        return None
    sentences = _SENTENCES.split(paragraph)
    return _only_letter(sentences, _MENTION) or _only_letter(sentences[-1:], _LONE)


def _only_letter(sentences: list[str], pattern: re.Pattern[str]) -> str | None:
    """Read the one letter that the sentences mention, where all that mention it are sure of it."""
    found = {
        sentence: {letter for match in pattern.finditer(sentence) for letter in match.groups() if letter}
        for sentence in sentences
    }
    mentions = {sentence: letters for sentence, letters in found.items() if letters}
    letters = set().union(*mentions.values())
    return letters.pop() if len(letters) == 1 and all(map(_is_sure, mentions)) else None


def _is_sure(sentence: str) -> bool:
    end = len(sentence.rstrip(" .!?)"))
    return not (NEGATED.search(sentence) or _UNSURE.search(sentence) or hypothetical(sentence, end, end))
