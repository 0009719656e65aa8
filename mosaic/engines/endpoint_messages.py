"""What is asked of a server for a call, and what its reply says."""

from typing import Any, NamedTuple

from mosaic.answers.response_text import without_thinking
from mosaic.engines.endpoint import Api, Endpoint
from mosaic.engines.orders import Job
from mosaic.engines.vllm_engine import PLAIN_TEMPLATE


class Post(NamedTuple):
    """A request: where it goes, and its body."""

    path: str
    body: dict[str, Any]


class Reply(NamedTuple):
    """What a server wrote."""

    text: str
    """With its thinking, which some servers deliver apart."""
    token_ids: tuple[int, ...]
    """Empty where the server does not give them."""
    output_tokens: int
    prompt_tokens: int
    cached_tokens: int
    finish_reason: str | None
    visible_tokens: int | None
    """None: a part of the text is thinking, and only the server's tokenizer could count the rest."""
    thinking_opened: bool


def request_of(job: Job, endpoint: Endpoint) -> Post:
    """Ask what the executor asks of its engine: the same prompt, seed, temperature and limit, nothing else changed.

    A server cuts a response off where its context ends, as the executor does.
    """
    body: dict[str, Any] = {
        "model": endpoint.model,
        "max_tokens": job.max_output_tokens,
        "temperature": job.temperature,
        "top_p": 1.0,
        "seed": job.seed,
        "stream": False,
    }
    if endpoint.is_vllm:
        body |= {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "return_token_ids": True}
    if not isinstance(job.prompt, str):
        return Post("completions", body | {"prompt": list(job.prompt)})
    if endpoint.api is Api.COMPLETIONS:
        return Post("completions", body | {"prompt": PLAIN_TEMPLATE.format(prompt=job.prompt)})
    return Post("chat/completions", body | {"messages": [{"role": "user", "content": job.prompt}]})


def read_reply(content: Any, *, thinking_opened: bool) -> Reply:
    """Read a reply of either kind.

    Raises
    ------
    ValueError
        If it is none, or does not count its tokens.
    """
    try:
        choice, usage = content["choices"][0], content["usage"]
        text = choice["text"] if "text" in choice else _chat_text(choice["message"])
        if not isinstance(text, str):
            raise TypeError("no text")
        token_ids = tuple(int(token) for token in choice.get("token_ids") or ())
        output_tokens, prompt_tokens = int(usage["completion_tokens"]), int(usage["prompt_tokens"])
        cached_tokens = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"the reply is no completion with its token counts ({error!r})") from None
    visible = without_thinking(text, thinking_opened=thinking_opened)
    return Reply(
        text=text,
        token_ids=token_ids,
        output_tokens=output_tokens,
        prompt_tokens=prompt_tokens,
        cached_tokens=cached_tokens,
        finish_reason=choice.get("finish_reason"),
        visible_tokens=output_tokens if visible == text else None if visible else 0,
        thinking_opened=thinking_opened,
    )


def _chat_text(message: dict[str, Any]) -> str:
    """Put a message together again: servers with a reasoning parser deliver the thinking apart."""
    content = message.get("content") or ""
    thinking = message.get("reasoning") or message.get("reasoning_content")
    if not thinking:
        return str(content)
    return f"<think>{thinking}</think>{content}" if content else f"<think>{thinking}"
