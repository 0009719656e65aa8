"""Takes a response's typography off, so that a letter stands either bare or in round brackets."""

import re
import unicodedata

from mosaic.answers.response_text import boxes, plain_characters

_WRAPPED = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathsf|mathit|bold|boldsymbol|operatorname|underline)\s*\{([^{}]*)\}"
)
_BOLD_LETTER = re.compile(r"(?:\*\*|__)\s*[(\[]?([A-Za-z])(?:[)\].:]+(?=[\s*])|(?=\*\*|__))")
_QUOTED_LETTER = re.compile(
    r"[\[{<\"'\u201c\u2018\u00ab\u300c\u3010\u3014]\s*([A-Za-z])\s*[\]}>\"'\u201d\u2019\u00bb\u300d\u3011\u3015]"
)
_MARKUP = re.compile(r"\\(?:left|right|displaystyle|quad|qquad|[()\[\],;!])|\*+|__|`+|\$+|^[ \t]*[#>]+", re.MULTILINE)
_TAG = re.compile(r"<(/?)([A-Za-z]\w{1,20})>")
_LOOK_ALIKE = str.maketrans(
    "\u0410\u0412\u0421\u0415\u041d\u0406\u0408\u0391\u0392\u0395\u0397\u0399",  # Cyrillic A VE ES IE EN I JE; Greek
    "ABCEHIJABEHI",
)
_LONE_LOOK_ALIKE = re.compile(
    r"(?<!\w)[\u0410\u0412\u0421\u0415\u041d\u0406\u0408\u0391\u0392\u0395\u0397\u0399](?!\w"
    r"|\s+[\u0430-\u045f\u03b1-\u03c9])"
)


def plain_text(visible: str) -> str:
    r"""Return a response without Markdown and LaTeX wrappers; a box becomes a line that states the answer.

    A lone Cyrillic or Greek capital that looks like a Latin one is read as that: the options were named to the model
    in Latin letters. One that looks like none is left alone, as nobody can tell whether it counts places or names an
    option. A look-alike before a word in its own script is that script's preposition, and is left alone too.

    Examples
    --------
    >>> plain_text(r"Thus **(C)**, $\boxed{\text{C}}$").split()
    ['Thus', '(C)', ',', 'Answer:', 'C']
    """
    text = unicodedata.normalize("NFKC", plain_characters(visible))
    text = _LONE_LOOK_ALIKE.sub(lambda match: match[0].translate(_LOOK_ALIKE), text)
    for _ in range(4):
        text = _WRAPPED.sub(r"\1", text)
    for box in reversed(boxes(text)):
        text = f"{text[: box.start]}\nAnswer: {box.content or ''}\n{text[box.end :]}"
    text = _TAG.sub(lambda match: "\n" if match[1] else f"\n{match[2]}: ", text)
    text = _BOLD_LETTER.sub(r"(\1) ", text)
    text = _MARKUP.sub("", text)
    return _QUOTED_LETTER.sub(r"(\1)", text)
