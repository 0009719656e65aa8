"""What a request says beside its question: the messages before it, and how to sample."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

from mosaic.core.checks import AtLeast0, AtLeast1, Limit, Share, checked, require

ROLES = ("system", "developer", "user", "assistant")
ENGINE_FIELDS = ("top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "stop")
"""Sampling beside temperature, seed and limit, under the names that vLLM and OpenAI's interface have for it."""
CHARACTERS_PER_TOKEN = 4
"""Where no tokenizer is at hand; of the order of what the pool's tokenizers reach on English text."""


class Message(NamedTuple):
    """A message of a chat."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Chat:
    """A prompt of several messages, which the chat template of the checkpoint wraps."""

    messages: tuple[Message, ...]

    @property
    def as_dicts(self) -> list[dict[str, str]]:
        """The messages as templates and servers take them."""
        return [message._asdict() for message in self.messages]


def in_context(context: Sequence[Message], text: str) -> str | Chat:
    """Put a text behind the messages that came before it; without any it is the prompt.

    Examples
    --------
    >>> in_context([], "Is 7 prime?")
    'Is 7 prime?'
    """
    return Chat((*context, Message("user", text))) if context else text


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("")
class Sampling:
    """What a request asks for all its calls; None: as the expert samples."""

    temperature: Annotated[float, Limit(at_least=0, at_most=2)] | None = None
    max_output_tokens: AtLeast1 | None = None
    seed: AtLeast0 | None = None
    """The responses follow from it and the calls' keys: two calls of one question are two draws."""
    top_p: Annotated[float, Limit(above=0, at_most=1)] | None = None
    top_k: Annotated[int, Limit(at_least=-1)] | None = None
    min_p: Share | None = None
    presence_penalty: Annotated[float, Limit(at_least=-2, at_most=2)] | None = None
    frequency_penalty: Annotated[float, Limit(at_least=-2, at_most=2)] | None = None
    repetition_penalty: Annotated[float, Limit(above=0, at_most=10)] | None = None
    stop: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for text in self.stop or ():
            require(isinstance(text, str) and text != "", "stop", "a list of texts that are not empty", text)

    @property
    def engine_values(self) -> dict[str, float | int | list[str]]:
        """What engines get beside temperature, seed and limit."""
        values = {name: getattr(self, name) for name in ENGINE_FIELDS}
        return {name: [*value] if name == "stop" else value for name, value in values.items() if value is not None}


def count_text_tokens(text: str) -> int:
    """Estimate the tokens of a text from its characters, rounded up.

    Examples
    --------
    >>> count_text_tokens("Is 7 prime?")
    3
    """
    return -(-len(text) // CHARACTERS_PER_TOKEN)
