"""Tokens of a text where no tokenizer is at hand."""

CHARACTERS_PER_TOKEN = 4
"""Where no tokenizer is at hand; of the order of what the pool's tokenizers reach on English text."""


def count_text_tokens(text: str) -> int:
    """Estimate the tokens of a text from its characters, rounded up.

    Examples
    --------
    >>> count_text_tokens("Is 7 prime?")
    3
    """
    return -(-len(text) // CHARACTERS_PER_TOKEN)
