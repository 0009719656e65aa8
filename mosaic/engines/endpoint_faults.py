"""Classifies a server's failures: whether they concern one call, all calls, or the server, and what to do."""

import json
import re
from collections.abc import Collection
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum

from mosaic.engines.endpoint import Endpoint

NO_SERVER = (502, 503, 504)
"""Statuses of a proxy that has no server now."""
_UNSUPPORTED = re.compile(r"support|unknown|unrecogni[sz]ed|permitted", re.IGNORECASE)
_ABOUT_PROMPT = re.compile(
    r"context.?(length|window|size)|(model|input) length|\b(prompt|input|request)\b.{0,60}\btoo (long|large)"
    r"|input token count|out of vocabulary|max_tokens must be at least 1|content.?(filter|management|policy)",
    re.IGNORECASE,
)
"""Servers have no common code for a prompt that they cannot serve, only texts."""
_ABOUT_ALL = re.compile(
    r"api.?key|authenticat|model.?not.?found|(invalid|unknown|no such|unsupported) model"
    r"|\bmodel\b.{0,80}(not exist|not found|not available|no access|deprecated)",
    re.IGNORECASE,
)
"""Likewise for a key or a model with which no call can be served."""


class Fault(StrEnum):
    """What a failure concerns."""

    PASSING = "passing"
    """The same request may succeed later."""
    THROTTLED = "throttled"
    """As above, after the time that the server demands."""
    UNREACHABLE = "unreachable"
    """No server answers."""
    ELSEWHERE = "elsewhere"
    """A proxy, a login page or another path answers instead: temporary if the server has served calls before."""
    INVALID = "invalid"
    """The reply is malformed, impossible or another model's: the cause may be the call or the server."""
    REFUSED = "refused"
    """Every call, permanently: the key, the account or the certificate is wrong."""
    PROMPT = "prompt"
    """Only this call: the server does not serve its prompt."""
    FORMAT = "format"
    """Every call in this form, unless others were served."""
    UNKNOWN = "unknown"


class RequestError(Exception):
    """The server does not serve a request; the cause is one line with expert and URL."""

    def __init__(
        self, cause: str, fault: Fault, *, status: int | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(cause)
        self.fault = fault
        self.status = status
        self.retry_after_s = retry_after_s
        """The pause that the server demanded."""


def fault_of(status: int, words: str, fields: Collection[str]) -> Fault:
    """Classify a server's refusal by its text and the fields of the request.

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
    ours = set(fields) - {"model", "stream", "prompt", "messages"}  # these words occur in many other messages
    if not _UNSUPPORTED.search(words):
        ours.discard("max_tokens")  # this prompt may leave too little room for them
    if status == 403 or (status in (400, 422) and any(re.search(rf"\b{field}\b", words) for field in ours)):
        return Fault.FORMAT
    return Fault.UNKNOWN


def message_of(text: str) -> str:
    """Extract the text of an error, in the forms that servers use."""
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
    """Return what to check first: the key, the URL, the model, the form of the request, or the server itself."""
    model, key = f"model, got {endpoint.model!r}", _key_of(endpoint)
    if error.status in (401, 403):
        return f"check {key}, which must be allowed to use {endpoint.model!r}"
    if error.fault is Fault.REFUSED and error.status is None:
        return "check base_url"
    if error.status == 402:
        return "check the account that pays for its calls"
    if "max_completion_tokens" in str(error) and endpoint.limit_key == "max_tokens":
        more = "max_completion_tokens and, for some models, temperature: 1"
        return f"name {endpoint.model!r} in a LiteLLM file, with {more}"
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
