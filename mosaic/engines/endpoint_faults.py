"""Whom a server's failure concerns: one call, all of them, or the server for a while; and what to do about it."""

import json
import re
from collections.abc import Collection
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum

from mosaic.engines.endpoint import Endpoint

NO_SERVER = (502, 503, 504)
"""Statuses by which a proxy says that there is no server behind it now."""
_UNSUPPORTED = re.compile(r"support|unknown|unrecogni[sz]ed|permitted", re.IGNORECASE)
_ABOUT_PROMPT = re.compile(
    r"context.?(length|window|size)|(model|input) length|\b(prompt|input|request)\b.{0,60}\btoo (long|large)"
    r"|input token count|out of vocabulary|max_tokens must be at least 1|content.?(filter|management|policy)",
    re.IGNORECASE,
)
"""Servers have no common code for a prompt that they cannot serve, only words."""
_ABOUT_ALL = re.compile(
    r"api.?key|authenticat|model.?not.?found|(invalid|unknown|no such|unsupported) model"
    r"|\bmodel\b.{0,80}(not exist|not found|not available|no access|deprecated)",
    re.IGNORECASE,
)
"""Nor for a key or a model that no call can be served with."""


class Fault(StrEnum):
    """Whom a failure concerns."""

    PASSING = "passing"
    """The same request may succeed later."""
    THROTTLED = "throttled"
    """Likewise, after the time that the server wants."""
    UNREACHABLE = "unreachable"
    """No server answers."""
    ELSEWHERE = "elsewhere"
    """Not the server answers, but a proxy, a login page or another path: of a server that has served, it may pass."""
    INVALID = "invalid"
    """The reply is none, or cannot be true, or is another model's: it may be the call, or the server."""
    REFUSED = "refused"
    """Every call, for ever: the key, the account or the certificate is wrong."""
    PROMPT = "prompt"
    """This call alone: the server does not serve its prompt."""
    FORMAT = "format"
    """Every call that is sent in this form, unless others were served."""
    UNKNOWN = "unknown"


class RequestError(Exception):
    """The server does not serve a request; the cause is one line that names expert and URL."""

    def __init__(
        self, cause: str, fault: Fault, *, status: int | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(cause)
        self.fault = fault
        self.status = status
        self.retry_after_s = retry_after_s
        """The pause that the server wanted."""


def fault_of(status: int, words: str, fields: Collection[str]) -> Fault:
    """Say whom a server's refusal concerns, from its words and the fields of the request.

    Examples
    --------
    >>> str(fault_of(400, "Unrecognized request argument: top_k", ["prompt", "top_k"]))
    'format'
    >>> str(fault_of(400, "maximum context length is 512, max_tokens is 48", ["prompt", "max_tokens"]))
    'prompt'
    >>> str(fault_of(400, "The model gpt-x does not exist", ["prompt"]))
    'format'
    """
    if status == 429:
        return Fault.THROTTLED
    if status == 408 or status >= 500:
        return Fault.PASSING
    if status in (401, 402):
        return Fault.REFUSED
    if status == 404 or status < 400:
        return Fault.ELSEWHERE
    if status == 413 or _ABOUT_PROMPT.search(words):
        return Fault.PROMPT
    if status in (400, 422) and _ABOUT_ALL.search(words):
        return Fault.FORMAT
    ours = set(fields) - {"model", "stream", "prompt", "messages"}  # words that are said of much else
    if not _UNSUPPORTED.search(words):
        ours.discard("max_tokens")  # it may be this prompt that leaves no room for so many
    if status == 403 or (status in (400, 422) and any(re.search(rf"\b{field}\b", words) for field in ours)):
        return Fault.FORMAT
    return Fault.UNKNOWN


def message_of(text: str) -> str:
    """Find what a server says about an error, in the forms that servers give it."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if isinstance(content, dict):
        content = content.get("error", content)
    if isinstance(content, dict):
        content = content.get("message", content.get("detail", content))
    return str(content)


def seconds_of(value: str | None) -> float | None:
    """Read Retry-After: seconds, or a date.

    Examples
    --------
    >>> [seconds_of(value) for value in ("7", "0.5", "Thu, 01 Jan 1970 00:00:00 GMT", "soon", None)]
    [7.0, 0.5, 0.0, None, None]
    """
    if value is None:
        return None
    if re.fullmatch(r"\d{1,9}(\.\d+)?", value.strip()):
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def what_to_do(error: RequestError, endpoint: Endpoint) -> str:
    """Say what to look at first: the key, the URL, the model, the form of the request, or the server itself."""
    model, key = f"model, got {endpoint.model!r}", _key_of(endpoint)
    if error.status in (401, 403):
        return f"check {key}, which must be allowed to use {endpoint.model!r}"
    if error.fault is Fault.REFUSED and error.status is None:
        return "check base_url"
    if error.status == 402:
        return "check the account that pays for its calls"
    if error.fault is Fault.FORMAT or error.status in (400, 422):
        form = "set is_vllm: false if the server is not vLLM; else " if endpoint.is_vllm else ""
        return f"{form}check {model}, and {key}"
    if error.fault is Fault.PASSING:
        return "look into the server's log, and start again when it serves calls"
    return f"check base_url, which ends in /v1 on most servers, and {model}"


def _key_of(endpoint: Endpoint) -> str:
    if endpoint.api_key_env is None:
        return "the key (none is sent: api_key_env names the environment variable that holds it)"
    return f"the key in {endpoint.api_key_env}"
