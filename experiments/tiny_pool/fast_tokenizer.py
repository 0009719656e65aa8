"""The tiny pool's tokenizer in the files that Hugging Face's libraries load; needs no torch."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.tiny_pool.prompts import SHAPE
from experiments.tiny_pool.tokenizer import CHAT_TEMPLATE, END, PAD, SPECIAL_TOKENS, TinyTokenizer, any_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def write_tokenizer(folder: Path, tokenizer: TinyTokenizer, context_tokens: int) -> None:
    """Write the tokenizer's files into a checkpoint of so many positions."""
    fast_tokenizer(tokenizer).save(str(folder / "tokenizer.json"))
    text = json.dumps(_tokenizer_config(context_tokens), indent=2, sort_keys=True) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def fast_tokenizer(tokenizer: TinyTokenizer) -> "Tokenizer":
    """Make the tokenizer that Hugging Face's libraries load: phrases first, single bytes for all else."""
    # The extras of vLLM bring this package: what only imports this module does without.
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    letters = _byte_letters()
    vocabulary = {token: number for number, token in enumerate(SPECIAL_TOKENS)}
    vocabulary |= {letters[byte]: len(SPECIAL_TOKENS) + byte for byte in range(256)}
    for word in tokenizer.words:
        vocabulary["".join(letters[byte] for byte in word.encode())] = len(vocabulary)
    fast = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(any_of(tokenizer.words)), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    fast.decoder = decoders.ByteLevel()
    spare = range(len(vocabulary), SHAPE.vocab_size)
    named = [*SPECIAL_TOKENS, *(f"<|spare_{number}|>" for number in spare)]
    fast.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in named])
    return fast


def _byte_letters() -> dict[int, str]:
    """Return the letter that byte-level tokenizers write for each byte: itself where it can be printed."""
    printed = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    return {byte: chr(byte) for byte in printed} | {byte: chr(256 + place) for place, byte in enumerate(others)}


def _tokenizer_config(context_tokens: int) -> dict[str, Any]:
    return {
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "model_max_length": context_tokens,
        "pad_token": PAD,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
