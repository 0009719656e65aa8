"""The tiny pool's tokenizer: a token for each number, each fixed phrase, and each byte of anything else.

The phrases are what remains of the texts that the models read and write once numbers and answer letters are cut out.
They are cut out of samples of these very texts, so the tokenizer always fits the words that the models are trained on.
"""

import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from random import Random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from experiments.tiny_pool.prompts import SHAPE, judge_prompt
from experiments.tiny_pool.questions import LEAST, MOST, Part, as_question, draw_questions
from experiments.tiny_pool.responses import EXPERTS, write_response
from mosaic.answers.response_text import without_thinking
from mosaic.core.checks import require
from mosaic.pipelines.aggregation import Response
from mosaic.pipelines.prompts import expert_prompt

PAD, END, USER, ASSISTANT = SPECIAL_TOKENS = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>")
PAD_ID, END_ID, USER_ID, ASSISTANT_ID = range(4)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|assistant|>' if message['role'] == 'assistant' else '<|user|>' }}{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

_CUT = re.compile(r"\d+|(?<=\()[A-Z](?=\)[.,])|(?<=\n)(?!\n)")
"""Numbers, the letter in an answer and the start of a line end a phrase."""
_NUM_SAMPLES = 300


def encode(text: str) -> list[int]:
    """Return the ids of a text; special tokens that it spells out become themselves."""
    ids: list[int] = _tokenizer().encode(text).ids
    return ids


def decode(ids: Iterable[int]) -> str:
    """Return the text of ids, without special tokens and those that have no meaning."""
    text: str = _tokenizer().decode(list(ids))
    return text


def encode_chat(prompt: str) -> list[int]:
    """Return the ids of a prompt in the chat template, up to where the response begins."""
    return [USER_ID, *encode(prompt), END_ID, ASSISTANT_ID]


def make_tokenizer(words: Sequence[str]) -> Tokenizer:
    """Make a tokenizer of words, the longest that matches first, and of single bytes for all else.

    Raises
    ------
    ValueError
        If there are more words than the models have room for.
    """
    letters = _byte_letters()
    tokens = [*SPECIAL_TOKENS, *letters, *("".join(letters[byte] for byte in word.encode()) for word in words)]
    room = SHAPE.vocab_size - len(tokens) + len(words)
    require(len(words) <= room, "tokenizer.words", f"at most {room}, the room that the models have", len(words))
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    longest_first = sorted(words, key=lambda word: (-len(word), word))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("|".join(map(re.escape, longest_first))), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    spare = (f"<|spare_{number}|>" for number in range(len(tokens), SHAPE.vocab_size))
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in (*SPECIAL_TOKENS, *spare)]
    )
    return tokenizer


def write_tokenizer(folder: Path, context_tokens: int) -> None:
    """Write the tokenizer's files into a checkpoint of so many positions."""
    # Importing transformers takes seconds, and only checkpoints need it.
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=_tokenizer(),
        chat_template=CHAT_TEMPLATE,
        eos_token=END,
        pad_token=PAD,
        model_max_length=context_tokens,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


@cache
def _tokenizer() -> Tokenizer:
    """Make the tokenizer of all models of the pool."""
    return make_tokenizer(tiny_words())


def tiny_words() -> tuple[str, ...]:
    """Return the numbers and phrases that are single tokens."""
    rng = Random(0)
    phrases: dict[str, None] = {}
    for question in draw_questions(_NUM_SAMPLES, Part.TRAIN, 0):
        item = as_question(question, id="sample", prompt_tokens=1)
        texts = [write_response(expert, question, rng) for expert in EXPERTS]
        heard = [Response(expert.name, 1, without_thinking(text)) for expert, text in zip(EXPERTS, texts, strict=True)]
        texts += [expert_prompt(item), judge_prompt(item, []), judge_prompt(item, heard)]
        phrases |= dict.fromkeys(phrase for text in texts for phrase in _CUT.split(text) if len(phrase) > 1)
    return (*map(str, range(LEAST, MOST + 1)), *phrases)


def _byte_letters() -> list[str]:
    """Return the letter that byte-level tokenizers write for each byte: itself where it can be printed."""
    printed = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printed else next(others)) for byte in range(0x100)]
