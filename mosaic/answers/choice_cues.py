"""Lists the phrases around an option's letter: those that declare it, and those that only mention it.

NOTE: some patterns begin with a lookahead for a few characters, the first ones of their alternatives. It changes no
match, but skips most positions of a long text, in half the time or less.
"""

import re

from mosaic.answers.response_text import ANSWER, IS, START, STOP

_NOUN = r"(?:option|choice|statement|letter|match|selection|alternative|description|explanation|pair|combination|one)"
_QUALITY = (
    r"(?:correct|right|best|final|true|false|incorrect|only|my|appropriate|likely|accurate|suitable|closest|nearest"
    r"|better|remaining)"
)
_LETTER_NAME = r"(?:opci[o\u00f3]n|op[c\u00e7][a\u00e3]o|alternativa|proposition|lettre|letra)"
STATED = re.compile(
    rf"{ANSWER}|{START}(?:ans\b\.?|{_QUALITY}\s+{_NOUN}s?|exception|odd one out"
    rf"|{_NOUN}\s+(?:that|which)\s+(?:is|isn't|was|does)\s+(?:not\s+)?\w+|(?:richtige|korrekte|bonne)\s+option|l\u00f6sung"
    rf"|(?:option|{_LETTER_NAME})\s+(?:corr\w+|exacte)){STOP}"
    r"|\u6b63\u786e\u9009\u9879|\u6b63\u89e3|[\u9009\u9078][\u62e9\u64c7]?(?![\u9879\u9805])",
    re.IGNORECASE,
)
"""Names of the answer, before it."""
JOINT = re.compile(
    rf"{START}(?:would(?: have)? be(?:en)?|(?:change[sd]?|switch\w*) to|becomes|w\u00e4re|serait|ser\u00eda){STOP}"
    rf"|{IS}|[>\u2192\u9009\u9078]|,(?=\s\(?[A-Z]\)?,)|(?<=\s)[-\u2013\u2014]+(?=\s)",
    re.IGNORECASE,
)
"""What joins a name of the answer to the letter."""
FILL = re.compile(
    r"(?:[\s:=>(,\-\u2013\u2014\u2192\"'\u201c]+"
    rf"|{START}(?:the|{_NOUN}|{_LETTER_NAME}|{ANSWER}|number|\w+ly|most|thus|therefore|hence|then|indeed|also|still|now"
    rf"|either|both|between|in fact|die|der|das|la|le|el|il|\u0432\u0430\u0440\u0438\u0430\u043d\u0442){STOP}"
    rf"|a (?={_LETTER_NAME})|\u9009\u9879|\u9078\u9805|\u9078\u629e\u80a2|\u5e94?[\u4e3a\u662f]){{0,24}}",
    re.IGNORECASE,
)
"""What may stand between a cue and its letter."""
WEAK = re.compile(
    r"\b(?=[acghilmnopstw])"
    r"(?:so|thus|therefore|hence|consequently|leav(?:es|ing)(?: us)?(?: with)?(?: only)?|(?:must|has to) be"
    r"|(?:go|going|went) (?:with|for)|choos(?:e|ing)|pick|select|opt for|(?:it|this|that|which) is|it's"
    r"|i(?:'d| would) (?:say|guess)|inclined to say|guess is|i\.e\.|namely|conclude|(?:listed|given) (?:as|in|by)"
    r"|(?:correspond|point|amount)(?:s|ing)? to|match(?:es|ing)?|consistent with)(?=[\s,:(])",
    re.IGNORECASE,
)
"""Words that conclude with the answer."""
_ADVERBS = r"(?:(?:\w+ly|indeed|therefore|thus|hence|then)\s+)*"
_NAMED = r"(?:(?:[Oo]ption|[Cc]hoice|[Aa]nswer)\s+\(?|\()"
_NOT_SECOND = r"(?<!or )(?<![A-Z)] and )"
DECLARED = re.compile(
    rf"(?=[A-Zaco(])"
    rf"(?:{_NOT_SECOND}{_NAMED}(?P<marked>[A-Za-z])(?![\w'])[.):]*\s(?:(?!\b(?:is|are|not|[A-Z])\b)[^.\n]){{0,60}}?"
    rf"|(?<![\w']){_NOT_SECOND}(?P<bare>[A-Z])\s+)"
    rf"\b(?:is|remains|seems|appears to be|(?:would|must|has to) be)\s+{_ADVERBS}(?:the|our|my)\s+"
    r"(?:(?!not\b)\w+\s+){0,3}?(?:answer|choice|option|one|match|fit|candidate|exception|odd one out)\b"
)
"""The letter, and then that it is the answer."""
CORRECT = re.compile(
    rf"(?=[A-Zaco(])(?:{_NAMED}(?P<marked>[A-Z])\)?[.:]?|(?<![\w'.])(?P<bare>[A-Z]))(?:\s+is\s+{_ADVERBS}"
    r"(?:correct|right|true|(?:the )?(?:best|most \w+))\b|\s+(?:best|correctly|accurately)\s+\w+"
    r"|(?<=\bonly [A-Z])\s+(?!is\b|was\b)[a-z]+s\b|(?:\u9009?\u9879)?\u6b63\u786e)"
)
"""The letter, and then that it is right; a text may say this of several options in turn."""

_LINK = (
    r"(?:because|since|as|and|but|not|or|which|is|was|due|rather|given|instead|for|so|though|although|while|whereas|by"
    r"|with|in|on|from|here|only|it is|und|oder|weil|da|denn|nicht|et|ou|car|y|o|porque)\b"
)
_SPECIES = r"\.\s(?:coli|elegans|difficile|cereus|pylori|melanogaster|albicans|influenzae|botulinum|tetani|anthracis)\b"
_IN_WORD = r"[A-Za-z0-9_\u00c0-\u024f\u0400-\u04ff'\u2019]|-[A-Za-z]|\s*[=^+<~\\]"
BRACKETED = re.compile(r"\(?\s*(?P<letter>[A-Za-z])\s*\)")
UPPER = re.compile(rf"(?P<letter>[A-Z])(?!{_IN_WORD}|{_SPECIES}|[^\S\n]+(?!{_LINK})[a-z])")
"""A letter alone: part of no word, formula or name, as in "B cells"."""
LOWER = re.compile(r"(?P<letter>[a-z])(?=[.,;:]?\s*(?:$|\n)|[.,;:]\s)")
ROMAN = re.compile(r"(?<![\w'])I{2,3}(?![\w'])")
ANOTHER = re.compile(
    r"(?:\s*,\s*\(?[A-Z]\)?(?![\w']))*(?:\s*,?\s*(?:and|or|und|oder|et|ou|y|o|\u548c|\u6216|\u3068)\s*|\s*[&/]\s*)"
    r"(?:(?:option|choice|answer)\s+)?(?!I\s+[a-z])\(?[A-Z]\)?(?![\w'])(?!\s+(?:is|was|can|does|fails|has|would))"
    r"|(?:\s*,\s*\(?[A-Za-z]\)?(?![\w'.]))+(?=\s*\.?\s*(?:\n|$))"
)
"""A second letter after the first."""
NO_OPTION = re.compile(
    r"(?:none|neither|no (?:option|answer|correct)|unknown|undetermined|not (?:listed|given|available|among)|n/a"
    r"|cannot be determined)\b(?:[^.\n()]{0,30}(?:\(|\boption )(?P<letter>[A-Z])(?![\w']))?",
    re.IGNORECASE,
)
"""A statement that no option is right, which may be an option itself: "none of the above (D)"."""
QUESTION = re.compile(r"[\s)]*\?")
ENDED = re.compile(r"[.:)]*\s*(?:[.!;,\n(]|$|(?:because|since|as|here|instead|in this|it is)\b)|\.?\s+[A-Z\"']|[.:]\s")
DISCUSSED = re.compile(
    r"[^.;\n]{0,80}?\b(?:is|are|was|be) (?:\w+ )?(?:wrong|incorrect|false|excluded|eliminated|ruled out|out)\b"
    r"|[)\s]+(?:is|isn't|are|was|were|can|cannot|could|does|doesn't|has|would|says|fails|gives|and|or)\b"
)

NEGATED = re.compile(
    r"\b(?:not|no|never|cannot|wrong|incorrect|false|rule[sd]? out|eliminat\w*|exclud\w*|unlikely|except|neither|nor"
    r"|rather than)\b|n['\u2019]t\b",
    re.IGNORECASE,
)
REPORTED = re.compile(
    r"\b(?:responses?|experts?|models?|solutions?|candidates?|students?|some|many|people|(?:one|you) m(?:ay|ight))"
    r"\b[^,.]{0,30}?\b(?:say|claim|state|conclude|argue|suggest|give|cho+se|answer|pick|select|think|believe)(?:s|d|ed)?\b"
    r"|\b(?:i (?:first |initially )?thought|at first|initially|tempt\w+)\b",
    re.IGNORECASE,
)
ENDORSED = re.compile(r"\b(?:all|every|both|majority|each|unanimous\w*)\b", re.IGNORECASE)
ASSUMED = re.compile(
    r"\b(?:if|whether|suppos(?:e|ing)|assum(?:e|ing)|unless)(?: (?:that|the|my|our|final|correct|right|best))*\s*$",
    re.IGNORECASE,
)
CONDITION = re.compile(r"\b(?:if(?! i (?:had|have) to\b)|(?<!if i )had|were|unless)\b", re.IGNORECASE)
UNSURE = re.compile(r"\b(?:could|might|may|perhaps|maybe|if|either|would)\b", re.IGNORECASE)

LINE_START = re.compile(r"(?:^|\n)[\s\-]*(?:(?:the|my|final|correct|short|best)\s+)*$", re.IGNORECASE)
SENTENCE_END = re.compile(r"[.!?;](?=\s|$)|[\n\u3002]")
OPTION_LINE = re.compile(r"[\s\-]*(?:\(([A-Za-z])\)|([A-Z])(?:[.):]+(?=\s|$)|\s*$)|([a-z])[.)]?\s*$)")
MENTION = re.compile(r"\(([A-Z])\)|\b(?:[Oo]ption|[Cc]hoice)\s+([A-Z])(?![\w'])")
LONE = re.compile(
    "".join(rf"(?<!{noun} )" for noun in ("vitamin", "hepatitis", "group", "type", "factor", "point", "figure"))
    + r"(?<![\w'-])(?:\(([A-Z])\)|([B-HJ-Z])(?=[.,;:!]|\s+(?:it|as|because|since|seems|remains|fits|and|or)\b)"
    r"|(A)(?=\s+(?:and|or)\b))"
)
"""A letter on its own, without a cue: no article, no pronoun, and no part of a name as in "hepatitis B"."""
