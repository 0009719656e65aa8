"""Builds a server's request for a call, and reads its reply."""

import time
from typing import Any, NamedTuple

from mosaic.answers.response_text import without_thinking
from mosaic.engines.endpoint import Api, Endpoint
from mosaic.engines.endpoint_client import BYTES_PER_TOKEN, Tries
from mosaic.engines.endpoint_faults import Fault, RequestError
from mosaic.engines.engine import Output, Request
from mosaic.engines.prompt_text import messages_of, plain_text

WHOLE = ("", "stop", "length", "eos_token", "stop_sequence")
"""Finish reasons of a complete response: the model ended it, or a limit did. Some servers give none."""
MAX_TEMPLATE_TOKENS = 16_384
"""Most tokens that a server's template, system prompt included, adds to a prompt."""


class Post(NamedTuple):
    """A request: its path, and its body."""

    path: str
    body: dict[str, Any]


def request_of(request: Request, endpoint: Endpoint) -> Post:
    """Build the same request as for other engines: equal prompt, seed, temperature and limit, all else unchanged.

    A server cuts a response off at the end of its context, as other engines do.
    """
    written = written_before(request, endpoint)
    body: dict[str, Any] = {
        "model": endpoint.model,
        endpoint.limit_key: request.max_output_tokens - len(written),
        "temperature": request.temperature,
        "top_p": 1.0,
        "seed": request.seed,
        "stream": False,
    }
    if endpoint.is_vllm:
        body |= {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "return_token_ids": True}
    if request.sampling is not None:
        body |= request.sampling.engine_values
    if isinstance(request.prompt, tuple):
        return Post("completions", body | {"prompt": [*request.prompt, *written]})
    if endpoint.api is Api.COMPLETIONS:
        return Post("completions", body | {"prompt": plain_text(request.prompt)})
    return Post("chat/completions", body | {"messages": messages_of(request.prompt)})


def response_of(content: Any, request: Request, tries: Tries, endpoint: Endpoint, *, context_tokens: int) -> Output:
    """Read a reply.

    A response is valid if it is a text (an answer, or thinking) that ended by itself or at its limit. Its counts must
    also be possible. Counts are whole numbers. Written tokens are at most the limit, and read tokens at most what the
    prompt can have. Both together are at most the expert's context. Otherwise the call has failed.

    Raises
    ------
    RequestError
        If it is not valid.
    """
    written = written_before(request, endpoint)
    if isinstance(content, dict):
        _check_model(content.get("model"), endpoint.model)
    try:
        choice, usage = content["choices"][0], content["usage"]
        reason = choice.get("finish_reason") or ""
        _check_whole(reason)
        text = choice["text"] if "text" in choice else _chat_text(choice["message"])
        token_ids = tuple(choice.get("token_ids") or ())
        prompt_tokens, output_tokens = usage["prompt_tokens"], usage["completion_tokens"]
        cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        text.encode()  # half of a surrogate pair cannot be encoded
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        what = f"the reply is no completion with its token counts ({error!r})"
        raise RequestError(what, Fault.INVALID) from None
    _check_counts(request, len(written), prompt_tokens, cached_tokens, output_tokens, context_tokens, text)
    if token_ids:
        _check_count("len(token_ids)", len(token_ids), output_tokens, at_least=output_tokens)
    opened = endpoint.opens_thinking and endpoint.api is Api.CHAT and not isinstance(request.prompt, tuple)
    visible = without_thinking(text, thinking_opened=opened)
    # If a part of the text is thinking, only the server's tokenizer could count the rest.
    visible_tokens = output_tokens if visible == text else None if visible else 0
    return Output(
        key=request.key,
        token_ids=(*written, *token_ids) if token_ids else (),
        text=None if written else text,  # the text before is not known
        finish_reason=reason,
        prompt_tokens=prompt_tokens - len(written),
        cached_tokens=cached_tokens,
        scheduled_ts=tries.sent_ts,
        last_token_ts=time.monotonic(),
        visible_tokens=None if written else visible_tokens,
        thinking_opened=opened,
        num_retries=tries.num_retries,
        output_tokens=len(written) + output_tokens,
    )


def failed(request: Request, tries: Tries, cause: str) -> Output:
    """Return the outcome of a call that is not served."""
    return Output(
        key=request.key,
        finish_reason="",
        scheduled_ts=tries.sent_ts,
        last_token_ts=time.monotonic(),
        error=cause,
        num_retries=tries.num_retries,
    )


def written_before(request: Request, endpoint: Endpoint) -> tuple[int, ...]:
    """Return the tokens that a server can continue from: a chat starts over, and token ids must be given back."""
    return request.generated if endpoint.is_vllm and isinstance(request.prompt, tuple) else ()


def _chat_text(message: dict[str, Any]) -> str:
    """Reassemble a message: servers with a reasoning parser return the thinking separately."""
    content, thinking = message.get("content"), message.get("reasoning") or message.get("reasoning_content")
    if message.get("refusal") and not content:
        raise RequestError(f"the server refused: {message['refusal']}", Fault.PROMPT)
    for name, part in (("content", content), ("reasoning", thinking)):
        if part is not None and not isinstance(part, str):
            raise RequestError(f"the reply's {name} must be a text, got {part!r}", Fault.INVALID)
    if thinking:
        return f"<think>{thinking}</think>{content}" if content else f"<think>{thinking}"
    if content is None:
        raise RequestError("the reply is empty: its content is null, and there is no reasoning", Fault.INVALID)
    return str(content)


def _check_whole(reason: object) -> None:
    if reason not in WHOLE:
        fault = Fault.PROMPT if "content_filter" in str(reason) else Fault.INVALID
        raise RequestError(f"the server ended the response for {reason}", fault)


def _check_model(given: object, wanted: str) -> None:
    """Check that the right model answers: servers may add a version to its name, or folders before it."""
    if not isinstance(given, str) or not given:
        return  # some leave it out
    short, own = given.lower().rpartition("/")[2], wanted.lower().rpartition("/")[2]
    if short != own and not short.startswith((f"{own}-", f"{own}@", f"{own}:")):
        what = f"the reply is of model {given!r}, the request named {wanted!r}; if it is the expert, set model to it"
        raise RequestError(what, Fault.INVALID)


def _check_counts(
    request: Request,
    num_written: int,
    prompt_tokens: Any,
    cached_tokens: object,
    output_tokens: Any,
    context_tokens: int,
    text: str,
) -> None:
    prompt = request.prompt
    num_units = num_written + (
        len(prompt)
        if isinstance(prompt, tuple)
        else sum(len(message["content"].encode("utf-8", "replace")) for message in messages_of(prompt))
    )
    _check_count("prompt_tokens", prompt_tokens, MAX_TEMPLATE_TOKENS + num_units)
    _check_count("cached_tokens", cached_tokens, prompt_tokens)
    _check_count("completion_tokens", output_tokens, request.max_output_tokens - num_written, at_least=int(text != ""))
    num_bytes = len(text.encode())
    if num_bytes > BYTES_PER_TOKEN * output_tokens:
        what = f"{output_tokens} completion_tokens are no {num_bytes:,} bytes of text"
        raise RequestError(f"the reply cannot be true: {what}", Fault.INVALID)
    if prompt_tokens + output_tokens > context_tokens:
        what = (
            f"prompt_tokens and completion_tokens must be at most context_tokens={context_tokens} together, got "
            f"{prompt_tokens} and {output_tokens}; if the server has more context, raise the expert's context_tokens"
        )
        raise RequestError(f"the reply cannot be true: {what}", Fault.INVALID)


def _check_count(name: str, value: object, most: int, at_least: int = 0) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not at_least <= value <= most:
        what = f"the reply cannot be true: {name} must be a whole number in {at_least} .. {most}, got {value!r}"
        raise RequestError(what, Fault.INVALID)
