"""The parts of a request beside its question: the messages before it, and the sampling parameters."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

from mosaic.core.checks import AtLeast0, AtLeast1, Limit, Share, checked, require

ROLES = ("system", "developer", "user", "assistant")
ENGINE_FIELDS = ("top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "stop")
"""Sampling parameters beside temperature, seed and limit, under the names of vLLM and of OpenAI's interface."""
CHARACTERS_PER_TOKEN = 4
"""Used without a tokenizer; close to what the pool's tokenizers reach on English text."""


class Message(NamedTuple):
    """One message of a chat."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Chat:
    """A prompt of several messages, to which the checkpoint's chat template is applied."""

    messages: tuple[Message, ...]

    @property
    def as_dicts(self) -> list[dict[str, str]]:
        """Return the messages as templates and servers take them."""
        return [message._asdict() for message in self.messages]


def in_context(context: Sequence[Message], text: str) -> str | Chat:
    """Append a text to the messages before it; without messages, the text is the prompt.

    Examples
    --------
    >>> in_context([], "Is 7 prime?")
    'Is 7 prime?'
    """
    return Chat((*context, Message("user", text))) if context else text


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("")
class Sampling:
    """Sampling parameters of a request, for all its calls; None: the expert's own."""

    temperature: Annotated[float, Limit(at_least=0, at_most=2)] | None = None
    max_output_tokens: AtLeast1 | None = None
    seed: AtLeast0 | None = None
    """The responses depend on it and on the calls' keys: two calls of one question are two draws."""
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
        """Return the parameters for engines, except temperature, seed and limit."""
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
