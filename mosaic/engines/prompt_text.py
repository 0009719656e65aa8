"""Writes a prompt before it becomes tokens: as messages, as plain text, or as the beginning of a templated text."""

from mosaic.answers.response_text import without_thinking
from mosaic.core.chat import Chat


def messages_of(prompt: str | Chat) -> list[dict[str, str]]:
    """Return a prompt as the messages of a chat."""
    return prompt.as_dicts if isinstance(prompt, Chat) else [{"role": "user", "content": prompt}]


def plain_text(prompt: str | Chat) -> str:
    """Write a prompt for checkpoints without a chat template.

    Examples
    --------
    >>> plain_text("Is 7 prime?")
    'User: Is 7 prime?\\n\\nAssistant:'
    """
    said = [f"{message['role'].capitalize()}: {message['content']}" for message in messages_of(prompt)]
    return "\n\n".join([*said, "Assistant:"])


def beginning_of(text: str, prompt: str | Chat) -> str:
    """Return a templated text up to the end of its last message; empty: the template changed the message.

    Examples
    --------
    >>> beginning_of("User: Is 7 prime?\\n\\nAssistant:", "Is 7 prime?\\n")
    'User: Is 7 prime?'
    """
    said = messages_of(prompt)[-1]["content"].rstrip()
    place = text.rfind(said)
    return text[: place + len(said)] if said and place >= 0 else ""


def opens_thinking(prompt: str) -> bool:
    """Return whether the text after a prompt is thinking, because its last line opens the tag.

    Examples
    --------
    >>> opens_thinking("<|Assistant|><think>")
    True
    >>> opens_thinking("Do you know <think>?\\nAssistant:")
    False
    """
    last_line = prompt.rstrip().rpartition("\n")[2]
    return not without_thinking(last_line + " x").endswith("x")
