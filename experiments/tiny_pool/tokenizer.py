"""The tiny pool's tokenizer: a token for each number, each fixed phrase, and each byte of anything else.

The phrases are what is left of the texts that the models read and write once numbers and answer letters are cut out.
They are cut out of samples of these very texts, so a tokenizer always fits the words that the models are trained on.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from random import Random

from experiments.tiny_pool.prompts import SHAPE, judge_prompt
from experiments.tiny_pool.questions import LEAST, MOST, Part, as_question, draw_questions
from experiments.tiny_pool.responses import EXPERTS, write_response
from mosaic.answers.response_text import without_thinking
from mosaic.core.checks import require, require_unique
from mosaic.pipelines.aggregation import Response
from mosaic.pipelines.prompts import expert_prompt

PAD, END, USER, ASSISTANT = SPECIAL_TOKENS = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|assistant|>' if message['role'] == 'assistant' else '<|user|>' }}{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

_CUT = re.compile(r"\d+|(?<=\()[A-Z](?=\)[.,])|(?<=\n)(?!\n)")
"""Numbers, the letter in an answer and the start of a line end a phrase."""
_NUM_SAMPLES = 300
_NUM_BYTES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyTokenizer:
    """Turns texts into token ids and back, without loss."""

    words: tuple[str, ...]
    """Numbers and phrases; their ids follow those of the special tokens and the bytes."""
    _ids: dict[str, int] = field(init=False, repr=False, compare=False)
    _pattern: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require_unique(self.words, "tokenizer.words")
        rule = f"at most {SHAPE.vocab_size - _FIRST_WORD}, the room that the models have"
        require(len(self.words) <= SHAPE.vocab_size - _FIRST_WORD, "tokenizer.words", rule, len(self.words))
        ids = {token: number for number, token in enumerate(SPECIAL_TOKENS)}
        ids |= {word: _FIRST_WORD + number for number, word in enumerate(self.words)}
        object.__setattr__(self, "_ids", ids)
        object.__setattr__(self, "_pattern", re.compile(f"({any_of([*SPECIAL_TOKENS, *self.words])})"))

    @property
    def end_id(self) -> int:
        """Id of the token that ends a response."""
        return self._ids[END]

    @property
    def pad_id(self) -> int:
        """Id of the token that stands where there is nothing."""
        return self._ids[PAD]

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; special tokens that it spells out become themselves."""
        ids: list[int] = []
        for piece in self._pattern.split(text):
            known = self._ids.get(piece)
            ids += [_FIRST_BYTE + byte for byte in piece.encode()] if known is None else [known]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids, without special tokens and those that have no meaning."""
        return b"".join(map(self._spelling, ids)).decode(errors="replace")

    def chat(self, prompt: str) -> list[int]:
        """Return the ids of a prompt in the chat template, up to where the response begins."""
        return [self._ids[USER], *self.encode(prompt), self._ids[END], self._ids[ASSISTANT]]

    def _spelling(self, token: int) -> bytes:
        if _FIRST_BYTE <= token < _FIRST_WORD:
            return bytes([token - _FIRST_BYTE])
        return self.words[token - _FIRST_WORD].encode() if 0 <= token - _FIRST_WORD < len(self.words) else b""


_FIRST_BYTE = len(SPECIAL_TOKENS)
_FIRST_WORD = _FIRST_BYTE + _NUM_BYTES


def any_of(words: Iterable[str]) -> str:
    """Write a pattern that matches the longest of some words."""
    return "|".join(re.escape(word) for word in sorted(words, key=lambda word: (-len(word), word)))


@cache
def tiny_tokenizer() -> TinyTokenizer:
    """Make the tokenizer of all models of the pool."""
    rng = Random(0)
    phrases: dict[str, None] = {}
    for question in draw_questions(_NUM_SAMPLES, Part.TRAIN, 0):
        item = as_question(question, id="sample", prompt_tokens=1)
        texts = [write_response(expert, question, rng) for expert in EXPERTS]
        heard = [Response(expert.name, 1, without_thinking(text)) for expert, text in zip(EXPERTS, texts, strict=True)]
        texts += [expert_prompt(item), judge_prompt(item, []), judge_prompt(item, heard)]
        phrases |= dict.fromkeys(phrase for text in texts for phrase in _CUT.split(text) if len(phrase) > 1)
    return TinyTokenizer(words=(*map(str, range(LEAST, MOST + 1)), *phrases))
