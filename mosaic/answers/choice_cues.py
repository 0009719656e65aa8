"""The phrases around an option's letter: which of them declare it, and which only mention it.

Languages: English, German, French, Spanish, Italian, Portuguese, Russian, Chinese, Japanese and Korean.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

# NOTE: `\b` and `\w` take ideographs for letters, and models write a Latin letter right behind them.
_START = r"(?<![^\W_])"
_STOP = r"(?![^\W_])"
_NOUN = (
    r"(?:option|choice|statement|response|letter|match|selection|alternative|description|explanation|pair|combination)"
)
_QUALITY = (
    r"(?:correct|right|best|final|true|false|incorrect|only|my|appropriate|likely|accurate|suitable|selected|chosen"
    r"|closest|nearest|better|remaining)"
)
STATED = re.compile(
    rf"{_START}(?:answers?|ans\b\.?|{_QUALITY}\s+(?:{_NOUN}s?|one)|exception|odd one out"
    rf"|{_NOUN}\s+(?:that|which)\s+(?:is|isn't|was|does)\s+(?:not\s+)?\w+"
    r"|(?:richtige[rs]?|korrekte)\s+option|antwort|l\u00f6sung"
    r"|r[e\u00e9]ponse|bonne\s+(?:option|proposition)|(?:option|proposition)\s+(?:correcte|exacte)"
    r"|respuesta|opci[o\u00f3]n\s+correcta|risposta|resposta|(?:op[c\u00e7][a\u00e3]o|alternativa)\s+correta"
    rf"|\u043e\u0442\u0432\u0435\u0442){_STOP}"
    r"|\u7b54\u6848|\u6b63\u786e\u9009\u9879|\u7b54\u3048|\u89e3\u7b54|\u6b63\u89e3|\uc815\ub2f5|\ub2f5(?=[\uc740:])"
    r"|[\u9009\u9078](?:\u62e9|\u64c7)?(?![\u9879\u9805])",
    re.IGNORECASE,
)
"""Names of the answer, in front of it."""
_CONNECTOR = re.compile(
    rf"{_START}(?:would(?: have)? be(?:en)?|(?:change[sd]?|switch(?:es|ed)?) to|becomes|is|are|be|was|ist|lautet"
    rf"|w\u00e4re|est|serait|es|ser\u00eda|\u00e8|\u00e9){_STOP}"
    r"|[:=>\u2192]|,(?=\s\(?[A-Z]\)?,)|(?<=\s)[-\u2013\u2014]+(?=\s)|\u662f|\u4e3a|\u70ba|\u9009|\u9078|\u306f"
    r"|\uc740|\ub294",
    re.IGNORECASE,
)
_FILL = re.compile(
    r"(?:[\s:=>(,\-\u2013\u2014\u2192\"'\u201c]+"
    rf"|{_START}(?:the|option|choice|letter|answer|statement|number|most likely|likely|probably|therefore|thus|hence"
    rf"|then"
    r"|indeed|clearly|definitely|simply|actually|also|still|now|only|either|both|between|in fact|die|der|das|antwort"
    rf"|la|le|el|il|opci[o\u00f3]n|lettre|letra|alternativa|r[e\u00e9]ponse|respuesta|proposition"
    rf"|\u0432\u0430\u0440\u0438\u0430\u043d\u0442){_STOP}"
    r"|a (?=letra|alternativa|op)|\u9009\u9879|\u9078\u9805|\u9078\u629e\u80a2|\u5e94\u4e3a|\u662f|\u4e3a){0,24}",
    re.IGNORECASE,
)
_LINK = (
    r"(?:because|since|as|and|but|not|or|which|is|was|are|due|rather|given|instead|for|so|though|although|while|whereas"
    r"|by|with|in|on|from|here|only|it is|und|oder|weil|da|denn|nicht|et|ou|car|puisque|y|o|porque|ya)\b"
)
_SPECIES = (
    r"\.\s(?:coli|elegans|difficile|aureus|cereus|pylori|melanogaster|albicans|influenzae|perfringens|botulinum|tetani"
    r"|burgdorferi|histolytica|granulosus|anthracis|fragilis|henselae|diphtheriae|jejuni|faecalis|sapiens|immitis"
    r"|neoformans|trachomatis|psittaci|cerevisiae|musculus)\b"
)
_IN_WORD = r"[A-Za-z0-9_\u00c0-\u024f\u0400-\u04ff'\u2019]|-[A-Za-z]|\s*[=^+<~\\]"
_BRACKETED = re.compile(r"\(?\s*(?P<letter>[A-Za-z])\s*\)")
_UPPER = re.compile(rf"(?P<letter>[A-Z])(?!{_IN_WORD}|{_SPECIES}|[^\S\n]+(?!{_LINK})[a-z])")
_LOWER = re.compile(r"(?P<letter>[a-z])(?=[.,;:]?(?:\s*$|\s*\n)|[.,;:]\s)")
_PRONOUN = re.compile(r"I(?:\s+(?!(?:because|since|as|which|is|not|but)\b)[a-z]|'|\u2019)")
_ROMAN = re.compile(r"(?<![\w'])I{2,3}(?![\w'])")
_ANOTHER = re.compile(
    r"(?:\s*,\s*\(?[A-Z]\)?(?![\w']))*"
    r"(?:\s*,?\s*(?:and|or|und|oder|et|ou|y|o|\u548c|\u6216|\u3068)\s*|\s*[&/]\s*)(?:(?:option|choice|answer)\s+)?"
    r"(?!I\s+[a-z])\(?[A-Z]\)?(?![\w'])(?!\s+(?:is|was|can|cannot|can't|does|doesn't|fails|has|would)\b)"
    r"|(?:\s*,\s*\(?[A-Za-z]\)?(?![\w'.]))+(?=\s*\.?\s*(?:\n|$))"
)
_QUESTION = re.compile(r"[\s)]*\?")
_ENDED = re.compile(r"[.:)]*\s*(?:[.!;,\n(]|$|(?:because|since|as|here|instead|in this|it is)\b)|\.?\s+[A-Z\"']|[.:]\s")
_DISCUSSED = re.compile(
    r"[^.;\n]{0,80}?\b(?:is|are|was|must be|can be) (?:\w+ )?(?:wrong|incorrect|false|excluded|eliminated|ruled out"
    r"|out)\b|"
    r"[)\s]+(?:is|are|was|were|can|cannot|could|does|doesn't|has|isn't|would|says|fails|violates|gives|refers|and|or)\b"
)
WEAK = re.compile(
    r"\b(?:so|thus|therefore|hence|consequently|leav(?:es|ing)(?: us)?(?: with)?(?: only)?|must be|has to be"
    r"|(?:go|going|went) (?:with|for)|choose|choosing|pick|select|opt for|settle (?:on|for)|it is|it's|this is|that is"
    r"|i(?:'d| would) (?:say|guess)|inclined to (?:say|choose|pick)|guess is|i\.e\.|namely|conclude|which is"
    r"|(?:listed|given) (?:as|in|by)|(?:correspond(?:s|ing)?|point(?:s|ing)?|amounts) to"
    r"|match(?:es|ing)?|agree(?:s|ing)? with|consistent with)(?=[\s,:(])",
    re.IGNORECASE,
)
"""Words that conclude with the answer."""
_ADVERBS = r"(?:(?:indeed|therefore|thus|hence|clearly|definitely|likely|probably|then)\s+)*"
_NAMED = r"(?:[Oo]ption|[Cc]hoice|[Aa]nswer)\s+\(?"
DECLARED = re.compile(
    rf"(?:(?<!or )(?<![A-Z)] and )(?:{_NAMED}|\()(?P<marked>[A-Za-z])(?![\w'])[.):]*\s(?:(?!\b(?:is|are|not"
    rf"|[A-Z])\b)[^.\n]){{0,60}}?"
    rf"|(?<![\w'])(?<!or )(?<![A-Z)] and )(?P<bare>[A-Z])\s+)"
    rf"\b(?:is|remains|seems|appears to be|would be|must be|has to be)\s+{_ADVERBS}(?:the|our|my)\s+"
    r"(?:(?!not\b)\w+\s+){0,3}?(?:answer|choice|option|one|match|fit|candidate|exception|odd one out)\b"
)
"""The letter, and then that it is the answer."""
CORRECT = re.compile(
    rf"(?:(?:{_NAMED}|\()(?P<marked>[A-Z])\)?[.:]?|(?<![\w'.])(?P<bare>[A-Z]))(?:\s+is\s+{_ADVERBS}"
    r"(?:correct|right|true|(?:the )?best|(?:the )?most (?:likely|appropriate|accurate|suitable))\b"
    r"|\s+(?:best|correctly|accurately)\s+\w+|(?<=\bonly [A-Z])\s+(?!is\b|was\b)[a-z]+s\b|(?:\u9009\u9879"
    r"|\u9879)?\u6b63\u786e)"
)
"""The letter, and then that it is right, which may be said of several options in turn."""
NEGATED = re.compile(
    r"\b(?:not|no|never|cannot|wrong|incorrect|false|rules? out|ruled out|eliminat\w*|exclud\w*|unlikely|except"
    r"|neither|nor"
    r"|rather than)\b|n't\b|n\u2019t\b",
    re.IGNORECASE,
)
_REPORTED = re.compile(
    r"\b(?:responses?|experts?|models?|solutions?|candidates?|students?|assistants?|agents?|some|many|people|(?:one"
    r"|you) (?:may|might|could|would))\b"
    r"[^,.]{0,30}?\b(?:say|claim|state|conclude|argue|suggest|give|choose|chose|answer|pick|select|think|believe|assert"
    r"|propose|report|assume)(?:s|d|es|ed)?\b|\bi (?:first |initially )?thought\b|\bat first\b|\binitially\b"
    r"|\btempt\w+\b",
    re.IGNORECASE,
)
_ENDORSED = re.compile(r"\b(?:all|every|both|majority|each|unanimous\w*)\b", re.IGNORECASE)
_ASSUMED = re.compile(
    r"\b(?:if|whether|suppos(?:e|ing)|assum(?:e|ing)|unless)(?: that)?(?: (?:the|my|our|final|correct|right"
    r"|best))*\s*$",
    re.IGNORECASE,
)
_CONDITION = re.compile(r"\b(?:if(?! i (?:had|have) to\b)|(?<!if i )had|were|unless)\b", re.IGNORECASE)
_LINE_START = re.compile(r"(?:^|\n)[\s\-]*(?:(?:the|my|final|correct|short|best)\s+)*$", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?;](?=\s|$)|[\n\u3002]")
_MAX_GAP = 80
"""Characters between 'answer' and its verb."""
_MAX_SENTENCE = 300
"""Characters looked at around a cue: a response that repeats itself up to the token limit must not cost its square."""


class Letter(NamedTuple):
    """A letter that stands where an answer would, and whether it stands there alone."""

    letter: str
    end: int
    single: bool


def connectors(text: str, start: int, stop: int) -> Iterator[tuple[int, str]]:
    """List where the letter may follow a name of the answer in text[start:stop], with the word that joins them."""
    if stop - start and (not text[start].isascii() or _LINE_START.search(text, max(0, start - _MAX_GAP), start)):
        yield stop, ""
    if text[stop - 1] == ".":  # "Ans."
        yield stop, "."
    end = min(stop + _MAX_GAP, len(text))
    sentence = _SENTENCE_END.search(text, stop, end)
    for found in _CONNECTOR.finditer(text, stop, sentence.start() if sentence else end):
        if NEGATED.search(text, stop, found.start()):
            return
        yield found.end(), found[0].lower()


def fill_end(text: str, at: int) -> int:
    """Skip the words and signs that may stand between a cue and its letter."""
    match = _FILL.match(text, at)
    assert match is not None, "it matches nothing, too"
    return match.end()


def letter_at(text: str, at: int, *, concluding: bool = False) -> Letter | None:
    """Read the letter that stands at a place, unless it is a word, a name or an unanswered question.

    ``concluding`` asks for more, as after "so": the letter ends its clause, and is not what the clause goes on about.
    """
    found = _BRACKETED.match(text, at) or _UPPER.match(text, at) or (None if concluding else _LOWER.match(text, at))
    if found is None or _QUESTION.match(text, found.end()):
        return None
    bracketed = found.re is _BRACKETED
    if (
        not bracketed
        and found["letter"] == "I"
        and (
            concluding
            or _PRONOUN.match(text, at)
            or _ROMAN.search(text, max(0, at - 10 * _MAX_SENTENCE), at + _MAX_SENTENCE)
        )
    ):
        return None
    another = _ANOTHER.match(text, found.end())
    end = another.end() if another else found.end()
    if concluding and (_DISCUSSED.match(text, end) or not (bracketed or _ENDED.match(text, end))):
        return None
    return Letter(found["letter"].upper(), found.end(), another is None)


def hypothetical(text: str, start: int, stop: int) -> bool:
    """Whether the cue text[start:stop] is only assumed, or reports what others answer."""
    first = _sentence_start(text, start)
    reported = _REPORTED.search(text, first, stop) and not _ENDORSED.search(text, first, start)
    return bool(reported or _ASSUMED.search(text[first:start]))


def conditional(text: str, start: int, end: int) -> bool:
    """Whether the sentence around text[start:end] speaks of another case than the one asked about."""
    after = _SENTENCE_END.search(text, end, end + _MAX_SENTENCE)
    sentence = text[_sentence_start(text, start) : after.start() if after else end + _MAX_SENTENCE]
    return bool(_CONDITION.search(sentence))


def _sentence_start(text: str, at: int) -> int:
    earliest = max(0, at - _MAX_SENTENCE)
    return max((match.end() for match in _SENTENCE_END.finditer(text, earliest, at)), default=earliest)
