"""Reads which option's letter a response to a multiple-choice question chooses.

NOTE: a response mentions many letters: options it discards, options it quotes, first thoughts that it corrects, and
words ("A patient", "I think", "hepatitis B"). Only letters that a *cue* declares count. Strong cues state the answer
("the answer is", a box, "C is the best choice"). Weak cues conclude ("so B", "I would go with option B"). The last
strong cue counts, unless the text then doubts it. After a doubt, a later conclusion replaces it. A retracted cue
without a later conclusion leaves no answer. A response without any cue is read from a line that is only an option, or
from its last paragraph if that affirms one option. Two letters in one declaration, or a letter beyond the options, are
no answer.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from operator import attrgetter
from typing import NamedTuple

from mosaic.answers import choice_cues as cues
from mosaic.answers.response_text import boxes, doubted, plain_characters, retracted
from mosaic.core.workload import OPTION_LETTERS

_WRAPPED = re.compile(r"\\(?:text\w*|math\w+|bold\w*|operatorname|underline)\s*\{([^{}]*)\}")
_BOLD_LETTER = re.compile(r"(?:\*\*|__)\s*[(\[]?([A-Za-z])(?:[)\].:]+(?=[\s*])|(?=\*\*|__))")
_QUOTED_LETTER = re.compile(
    r"[\[{<\"'\u201c\u2018\u00ab\u300c\u3010\u3014]\s*([A-Za-z])\s*[\]}>\"'\u201d\u2019\u00bb\u300d\u3011\u3015]"
)
_MARKUP = re.compile(
    r"(?=[\\*_`$#> \t])(?:\\(?:left|right|displaystyle|q?quad|[()\[\],;!])|\*+|__|`+|\$+|^[ \t]*[#>]+)", re.MULTILINE
)
_TAG = re.compile(r"<(/?)([A-Za-z]\w{1,20})>")
_CYRILLIC_AND_GREEK = "\u0410\u0412\u0421\u0415\u041d\u0406\u0408\u0391\u0392\u0395\u0397\u0399"
_LOOK_ALIKE = str.maketrans(_CYRILLIC_AND_GREEK, "ABCEHIJABEHI")
_LONE_LOOK_ALIKE = re.compile(rf"(?<!\w)[{_CYRILLIC_AND_GREEK}](?!\w|\s+[\u0430-\u045f\u03b1-\u03c9])")
_FINISHED = re.compile(r"[.!?)\]}\"'\u3002]\s*$")
_SENTENCES = re.compile(r"(?<=[.!?])\s+(?=[A-Z(])")
_MAX_GAP = 80
"""Characters between 'answer' and its verb."""
_MAX_SENTENCE = 300
"""Characters read around a cue: without a limit, the time for a repetitive response would grow with its square."""


class Declared(NamedTuple):
    """A declaration: its end and its letter; None: it declares no single option."""

    end: int
    letter: str | None


def choice_letter(visible: str, num_options: int) -> str | None:
    """Return the letter that a response chooses, thinking removed; None where it chooses no single option.

    Examples
    --------
    >>> choice_letter("A is wrong because it lacks units. C confuses the signs, so B.", 4)
    'B'
    """
    text = _plain_text(visible)
    declared = _declared(text)
    letter = declared.letter if declared else _undeclared(text)
    return letter if letter is not None and letter in OPTION_LETTERS[:num_options] else None


def _plain_text(visible: str) -> str:
    """Remove the typography, so that a letter is bare or in round brackets; a box becomes a line of its own.

    The options were named to the model in Latin letters. So a single Cyrillic or Greek capital that looks like a Latin
    one is read as the Latin one. Before a word in its own script it is a preposition, and is left as it is.
    """
    text = unicodedata.normalize("NFKC", plain_characters(visible))
    if not text.isascii():
        text = _LONE_LOOK_ALIKE.sub(lambda match: match[0].translate(_LOOK_ALIKE), text)
    for _ in range(4):
        text = _WRAPPED.sub(r"\1", text)
    for box in reversed(boxes(text)):
        text = f"{text[: box.start]}\nAnswer: {box.content or ''}\n{text[box.end :]}"
    text = _TAG.sub(lambda match: "\n" if match[1] else f"\n{match[2]}: ", text)
    return _QUOTED_LETTER.sub(r"(\1)", _MARKUP.sub("", _BOLD_LETTER.sub(r"(\1) ", text)))


def _declared(text: str) -> Declared | None:
    strong = _last([*_stated(text), *_letter_first(text)])
    if strong is None:
        return _last(_concluded(text))
    doubt = strong.end if strong.letter is None else doubted(text, strong.end)
    if doubt is None:
        return strong
    weak = _last(_concluded(text))
    if weak and weak.end > doubt:
        return weak
    return Declared(strong.end, None) if retracted(text, strong.end) else strong


def _last(found: Iterable[Declared]) -> Declared | None:
    return max(found, key=attrgetter("end"), default=None)


def _stated(text: str) -> Iterator[Declared]:
    """Read declarations that name the answer first and its letter second: 'the answer is C'."""
    for cue in cues.STATED.finditer(text):
        start = cue.start()
        if _hypothetical(text, start, start):
            continue
        for at, joint in _joints(text, start, cue.end()):
            found = _letter_at(text, at)
            if found is None or (joint.startswith("would") and _conditional(text, start, found.end)):
                continue
            # Without a joining word, as in a heading, the letter must be the rest of its line or begin the next one.
            rest = text[found.end : found.end + _MAX_GAP].partition("\n")[0]
            if joint or not text[start].isascii() or "\n" in text[at : found.end] or not rest.strip(" .)"):
                yield found
                break


def _joints(text: str, start: int, stop: int) -> Iterator[tuple[int, str]]:
    """List where the letter may follow a name of the answer in text[start:stop], with the joining word."""
    if not text[start].isascii() or cues.LINE_START.search(text, max(0, start - _MAX_GAP), start):
        yield stop, ""
    if text[stop - 1] == ".":  # "Ans."
        yield stop, "."
    end = min(stop + _MAX_GAP, len(text))
    sentence = cues.SENTENCE_END.search(text, stop, end)
    for found in cues.JOINT.finditer(text, stop, sentence.start() if sentence else end):
        if cues.NEGATED.search(text, stop, found.start()):
            return
        yield found.end(), found[0].lower()


def _letter_first(text: str) -> Iterator[Declared]:
    """Read declarations that name the letter first: 'C is the best choice'."""
    for found in cues.DECLARED.finditer(text):
        if not _hypothetical(text, found.start(), found.start()) and not _conditional(text, found.start(), found.end()):
            yield Declared(found.end(), (found["marked"] or found["bare"]).upper())


def _concluded(text: str) -> Iterator[Declared]:
    """Read conclusions: 'so B', 'I would go with option B', and 'option B is correct' if only one option is."""
    for cue in cues.WEAK.finditer(text):
        found = _letter_at(text, cue.end(), concluding=True)
        if found and not _hypothetical(text, *cue.span()) and not _conditional(text, cue.start(), found.end):
            yield found
    called = [Declared(found.end(), found["marked"] or found["bare"]) for found in cues.CORRECT.finditer(text)]
    if len({declared.letter for declared in called}) == 1:
        yield from called


def _letter_at(text: str, at: int, *, concluding: bool = False) -> Declared | None:
    """Read the letter after a cue, unless it is a word, a name or an unanswered question.

    With ``concluding``, as after "so", the letter must also end its clause and not be the subject of what follows.
    """
    fill = cues.FILL.match(text, at)
    at = fill.end() if fill else at
    if not concluding and (none := cues.NO_OPTION.match(text, at)):
        return Declared(none.end(), none["letter"])
    bracketed = cues.BRACKETED.match(text, at)
    found = bracketed or cues.UPPER.match(text, at) or (None if concluding else cues.LOWER.match(text, at))
    if found is None or cues.QUESTION.match(text, found.end()):
        return None
    if found[0] == "I" and (concluding or cues.ROMAN.search(text, max(0, at - 10 * _MAX_SENTENCE), at + _MAX_SENTENCE)):
        return None
    another = cues.ANOTHER.match(text, found.end())
    end = another.end() if another else found.end()
    if concluding and (cues.DISCUSSED.match(text, end) or not (bracketed or cues.ENDED.match(text, end))):
        return None
    return Declared(found.end(), None if another else found["letter"].upper())


def _hypothetical(text: str, start: int, stop: int) -> bool:
    """Whether the cue text[start:stop] is only assumed, or reports what others answer."""
    first = _sentence_start(text, start)
    reported = cues.REPORTED.search(text, first, stop) and not cues.ENDORSED.search(text, first, start)
    return bool(reported or cues.ASSUMED.search(text[first:start]))


def _conditional(text: str, start: int, end: int) -> bool:
    """Whether the sentence around text[start:end] is about another case than the question."""
    after = cues.SENTENCE_END.search(text, end, end + _MAX_SENTENCE)
    stop = after.start() if after else end + _MAX_SENTENCE
    return bool(cues.CONDITION.search(text[_sentence_start(text, start) : stop]))


def _sentence_start(text: str, at: int) -> int:
    earliest = max(0, at - _MAX_SENTENCE)
    return max((match.end() for match in cues.SENTENCE_END.finditer(text, earliest, at)), default=earliest)


def _undeclared(text: str) -> str | None:
    """Read a first or last line that is only an option, or the one option that the last paragraph affirms."""
    lines = [line for line in text.splitlines() if line.strip()]
    found = {number: cues.OPTION_LINE.match(line) for number, line in enumerate(lines)}
    marked = {number: (match[1] or match[2] or match[3]).upper() for number, match in found.items() if match}
    if len(set(marked.values())) == 1 and marked.keys() & {0, len(lines) - 1}:
        return next(iter(marked.values()))
    paragraph = text.rstrip().rsplit("\n\n", 1)[-1]
    if not _FINISHED.search(paragraph):
        return None
    sentences = _SENTENCES.split(paragraph)
    return _only_letter(sentences, cues.MENTION) or _only_letter(sentences[-1:], cues.LONE)


def _only_letter(sentences: list[str], pattern: re.Pattern[str]) -> str | None:
    mentions = [sentence for sentence in sentences if pattern.search(sentence)]
    letters = {match[match.lastindex or 0] for sentence in mentions for match in pattern.finditer(sentence)}
    return letters.pop() if len(letters) == 1 and all(map(_is_sure, mentions)) else None


def _is_sure(sentence: str) -> bool:
    end = len(sentence.rstrip(" .!?)"))
    return not (cues.NEGATED.search(sentence) or cues.UNSURE.search(sentence) or _hypothetical(sentence, end, end))
