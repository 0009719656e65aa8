"""Asks one server, again where that may help, and says whom a failure concerns."""

import asyncio
import errno
import json
import os
import re
import time
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from mosaic.engines.endpoint import Endpoint, EndpointPatience

if TYPE_CHECKING:
    from aiohttp import ClientSession

ASKS_FOR_TIME = (408, 429)
"""Statuses after which the same request may succeed, beside those of 500 and above."""
MASK = "(key)"
MIN_KEY_CHARACTERS = 12
"""Shorter keys are placeholders such as EMPTY, and words that responses may hold."""
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
    UNREACHABLE = "unreachable"
    """Likewise, but nobody answered."""
    PROMPT = "prompt"
    """This call alone: the server does not serve its prompt."""
    FORMAT = "format"
    """Every call that is asked for in this form, unless others were served."""
    SERVER = "server"
    """Every call: the key, the URL or the model is wrong."""
    UNKNOWN = "unknown"


class AskError(Exception):
    """The server does not serve a request; the cause is one line that names expert and URL."""

    def __init__(self, cause: str, fault: Fault, *, status: int | None = None, asked_s: float | None = None) -> None:
        super().__init__(cause)
        self.fault = fault
        self.status = status
        self.asked_s = asked_s
        """The wait that the server asked for."""


@dataclass(slots=True)
class Tries:
    """What became of a request so far."""

    sent_ts: float | None = None
    """When the last try was sent, on the machine's monotonic clock."""
    num_retries: int = 0


class Client:
    """A server with its key; made inside of the event loop that it is used in."""

    def __init__(self, endpoint: Endpoint, patience: EndpointPatience, key: str | None) -> None:
        self._endpoint = endpoint
        self._patience = patience
        self._key = key
        self._session = _open_session(patience, key)

    async def ask(self, path: str, body: dict[str, Any] | None, tries: Tries) -> Any:
        """Get a path, or post a body to it, with as many tries as patience allows; gives the JSON of the reply.

        Raises
        ------
        AskError
            When trying again is no use or was to no avail.
        """
        while True:
            tries.sent_ts = time.monotonic()
            try:
                return await self._try(path, body)
            except AskError as error:
                if error.fault not in (Fault.PASSING, Fault.UNREACHABLE):
                    raise
                if tries.num_retries == self._patience.max_retries:
                    tried = f" (tried {tries.num_retries + 1} times)" if tries.num_retries else ""
                    raise AskError(f"{error}{tried}", error.fault, status=error.status) from None
                wait_s = self._patience.wait_s(tries.num_retries, error.asked_s)
            tries.num_retries += 1
            await asyncio.sleep(wait_s)

    def cause(self, what: str) -> str:
        """Say what is wrong with which server, in one line and without its key."""
        told = self._without_key(what)
        line = " ".join(f"{self._endpoint.expert} at {self._endpoint.base_url}: {told}".split())
        return line if len(line) <= 300 else f"{line[:296]} ..."

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    def _without_key(self, text: str) -> str:
        return text if self._key is None else text.replace(self._key, MASK)

    def _masked(self, reply: Any) -> Any:
        """Take the key out of a reply that echoes it: journals and output files are shared."""
        if self._key is None or len(self._key) < MIN_KEY_CHARACTERS:
            return reply
        if isinstance(reply, str):
            return self._without_key(reply)
        if isinstance(reply, dict):
            return {name: self._masked(value) for name, value in reply.items()}
        return [self._masked(value) for value in reply] if isinstance(reply, list) else reply

    async def _try(self, path: str, body: dict[str, Any] | None) -> Any:
        import aiohttp

        method, data = ("GET", None) if body is None else ("POST", json.dumps(body).encode())
        url = f"{self._endpoint.base_url}/{path}"
        try:
            async with self._session.request(method, url, data=data, allow_redirects=False) as reply:
                content = await reply.read()
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            why = f"cannot be reached: {_reason(error)}; is the server running?"
            raise AskError(self.cause(why), Fault.UNREACHABLE) from None
        except TimeoutError:
            why = f"no reply in {self._patience.reply_timeout_s:g} s"
            raise AskError(self.cause(why), Fault.PASSING) from None
        except (aiohttp.ClientError, OSError) as error:
            raise AskError(self.cause(f"the connection broke: {_reason(error)}"), Fault.PASSING) from None
        if 200 <= reply.status < 300:
            try:
                return self._masked(json.loads(content))
            except (ValueError, RecursionError):
                start = self._without_key(repr(content[:1000]))[:83]
                raise AskError(self.cause(f"the reply is no JSON: {start}"), Fault.UNKNOWN) from None
        text = content.decode("utf-8", "replace")
        raise AskError(
            self.cause(f"{reply.status} {reply.reason}: {_message(text)}"),
            fault_of(reply.status, text, body or ()),
            status=reply.status,
            asked_s=_seconds(reply.headers.get("Retry-After")),
        )


def fault_of(status: int, words: str, fields: Collection[str]) -> Fault:
    """Say whom a server's refusal concerns, from its words and the fields that it was asked with.

    Examples
    --------
    >>> str(fault_of(400, "Unrecognized request argument: top_k", ["prompt", "top_k"]))
    'format'
    >>> str(fault_of(400, "maximum context length is 512, max_tokens is 48", ["prompt", "max_tokens"]))
    'prompt'
    >>> str(fault_of(400, "The model gpt-x does not exist", ["prompt"]))
    'format'
    """
    if status in ASKS_FOR_TIME or status >= 500:
        return Fault.PASSING
    if status in (401, 402, 404):
        return Fault.SERVER
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


def _open_session(patience: EndpointPatience, key: str | None) -> "ClientSession":
    import aiohttp

    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    return aiohttp.ClientSession(
        # Each try has a connection of its own: a kept one may be closed by the server just when it is used.
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=headers,
        timeout=aiohttp.ClientTimeout(
            total=None, connect=patience.connect_timeout_s, sock_read=patience.reply_timeout_s
        ),
    )


def _reason(error: Exception) -> str:
    number = getattr(error, "errno", None)
    if isinstance(number, int) and number in errno.errorcode:
        return os.strerror(number)  # the event loop has longer words for it
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _message(text: str) -> str:
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


def _seconds(value: str | None) -> float | None:
    """Read Retry-After; a date counts as nothing."""
    return float(value) if value is not None and value.strip().isdecimal() else None
