"""What a request says beside its question: the messages before it, and how to sample."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mosaic.core.checks import require, require_count, require_name, require_number

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
class Sampling:
    """What a request asks for all its calls; None: as the expert samples."""

    temperature: float | None = None
    max_output_tokens: int | None = None
    seed: int | None = None
    """The responses follow from it and the calls' keys: two calls of one question are two draws."""
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    stop: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        limits: Mapping[str, tuple[float, float]] = {
            "temperature": (0, 2), "top_p": (0, 1), "min_p": (0, 1), "presence_penalty": (-2, 2),
            "frequency_penalty": (-2, 2), "repetition_penalty": (0, 10),
        }  # fmt: skip
        for name, (least, most) in limits.items():
            value = getattr(self, name)
            if value is not None:
                require_number(value, name, at_least=least)
                require(value <= most, name, f"at most {most:g}", value)
        for name in ("top_p", "repetition_penalty"):
            if getattr(self, name) is not None:
                require_number(getattr(self, name), name, above=0)
        for name, low in (("max_output_tokens", 1), ("top_k", -1), ("seed", 0)):
            if getattr(self, name) is not None:
                require_count(getattr(self, name), name, at_least=low)
        if self.stop is not None:
            object.__setattr__(self, "stop", tuple(self.stop))
            for text in self.stop:
                require_name(text, "stop")

    @property
    def engine_values(self) -> dict[str, float | int | list[str]]:
        """What engines are told beside temperature, seed and limit."""
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
