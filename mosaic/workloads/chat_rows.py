"""Reads requests in OpenAI's format: a line of a batch file, messages, sampling."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from mosaic.core.chat import ROLES, Message, Sampling
from mosaic.core.checks import require, require_name

URLS = ("/v1/chat/completions", "/v1/completions")
LINE_KEYS = ("custom_id", "method", "url", "body")
BODY_KEYS = ("model", "messages", "prompt")
SAMPLING_KEYS = {
    "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p", "seed": "seed", "stop": "stop",
    "max_tokens": "max_output_tokens", "max_completion_tokens": "max_output_tokens",
    "presence_penalty": "presence_penalty", "frequency_penalty": "frequency_penalty",
    "repetition_penalty": "repetition_penalty",
}  # fmt: skip
"""OpenAI's and vLLM's names for ours."""
WITHOUT_EFFECT = ("metadata", "user", "store", "service_tier", "safety_identifier", "prompt_cache_key")
"""Keys that do not affect an answer."""
OFF = {
    "n": 1, "best_of": 1, "stream": False, "logprobs": False, "echo": False, "tools": [], "functions": [],
    "logit_bias": {}, "response_format": {"type": "text"}, "modalities": ["text"], "audio": None,
    "web_search_options": None,
}  # fmt: skip
"""Keys that prevent merging several models' answers, with the value that switches each off."""


class Request(NamedTuple):
    """The content of a request."""

    question: str
    """The last message, or the prompt."""
    context: tuple[Message, ...]
    """The messages before it."""
    sampling: Sampling | None


def unread_keys(body: object) -> list[str]:
    """List the keys of a request's body that have no effect here."""
    known = {*BODY_KEYS, *SAMPLING_KEYS, *WITHOUT_EFFECT, *OFF}
    return [f"body.{key}" for key in body if key not in known] if isinstance(body, Mapping) else []


def read_batch_line(entry: Mapping[str, Any], at: str) -> Request:
    """Read the request of a line of a batch file; its model is ignored, since the pool answers.

    Raises
    ------
    ValueError, TypeError
        Naming the place, the field, the rule and the value.
    """
    method, url, body = entry.get("method", "POST"), entry.get("url", URLS[0]), entry.get("body")
    require(method == "POST", f"{at}: method", "POST", method)
    require(url in URLS, f"{at}: url", f"one of {list(URLS)}", url)
    if not isinstance(body, Mapping):
        raise TypeError(f"{at}: body must be an object with messages, got {body!r}")
    for key, off in OFF.items():
        if body.get(key) is not None:
            rule = f"left out{'' if off is None else f' or {off!r}'}, as a final answer is one text of several models"
            require(body[key] == off, f"{at}: body.{key}", rule, body[key])
    sampling = read_sampling(body, f"{at}: body.")
    if url == URLS[1]:
        require("messages" not in body, f"{at}: body.messages", f"left out for {url}", "messages")
        require_name(body.get("prompt"), f"{at}: body.prompt")
        return Request(body["prompt"], (), sampling)
    require("prompt" not in body, f"{at}: body.prompt", f"left out for {url}", "a prompt")
    return Request(*read_messages(body.get("messages"), f"{at}: body.messages"), sampling)


def read_messages(messages: object, field: str) -> tuple[str, tuple[Message, ...]]:
    """Read a chat: the user's last message is the question, and the others are its context.

    Raises
    ------
    ValueError, TypeError
        Naming the field, the rule and the value.
    """
    if not isinstance(messages, list) or not messages:
        raise TypeError(f"{field} must be a list with at least one message, got {messages!r}")
    read = tuple(_message(message, f"{field}[{number}]") for number, message in enumerate(messages))
    require(
        read[-1].role == "user",
        f"{field}[{len(read) - 1}].role",
        "user: the last message is the question",
        read[-1].role,
    )
    return read[-1].content, read[:-1]


def _message(message: object, field: str) -> Message:
    if not isinstance(message, Mapping):
        raise TypeError(f"{field} must be an object with role and content, got {message!r}")
    role, content = message.get("role"), message.get("content")
    require(role in ROLES, f"{field}.role", f"one of {list(ROLES)}", role)
    for key in message:
        require(key in ("role", "content", "name"), f"{field}: key", "role, content or name", key)
    if isinstance(content, list):
        for part in content:
            kind = part.get("type") if isinstance(part, Mapping) else part
            require(kind == "text", f"{field}.content: type of a part", "text", kind)
        content = "".join(str(part.get("text", "")) for part in content)
    require_name(content, f"{field}.content")
    return Message(str(role), str(content))


def read_sampling(body: Mapping[str, Any], label: str) -> Sampling | None:
    """Read the sampling parameters of a request; None: it has none.

    Raises
    ------
    ValueError, TypeError
        Naming the field, the rule and the value.
    """
    values: dict[str, Any] = {}
    keys: dict[str, str] = {}
    for key, name in SAMPLING_KEYS.items():
        if body.get(key) is not None:
            require(name not in values, f"{label}{key}", "given under one name", body[key])
            values[name], keys[name] = body[key], key
    stop = values.get("stop")
    if stop is not None:
        values["stop"] = (stop,) if isinstance(stop, str) else stop
        if not isinstance(values["stop"], tuple | list):
            raise TypeError(f"{label}stop must be a text or a list of texts, got {stop!r}")
    try:
        return Sampling(**values) if values else None
    except (ValueError, TypeError) as error:
        name, _, rule = str(error).partition(" ")
        raise type(error)(f"{label}{keys.get(name, name)} {rule}") from error
