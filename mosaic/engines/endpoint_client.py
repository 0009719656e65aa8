"""Sends requests to one server, within its rate limits, and repeats them where that may help."""

import asyncio
import errno
import json
import os
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mosaic.engines.endpoint import Endpoint, EndpointPatience
from mosaic.engines.endpoint_faults import Fault, RequestError, fault_of, message_of, seconds_of
from mosaic.engines.messages import clipped

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

WINDOW_S = 60.0
MASK = "(key)"
MIN_KEY_CHARACTERS = 12
"""Shorter keys are placeholders such as EMPTY, and words that may occur in responses."""
MAX_BYTES = 2**20
BYTES_PER_TOKEN = 1024
"""Largest size of a reply per requested token, beyond the base: no token of any vocabulary is longer."""
MAX_LIST_BYTES = 2**24
"""Largest size of a list of models."""


@dataclass(slots=True)
class Sent:
    """A request that was sent."""

    ts: float
    """On the machine's monotonic clock."""
    tokens: int
    """Tokens read and written; an estimate until the reply has them."""


class Pace:
    """The requests of the last minute, and the time of the next one.

    The output tokens of a call are not known in advance. A reply is expected to have the mean of those so far, and the
    first one the most that it may have.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._max_requests = endpoint.max_requests_per_min
        self._max_tokens = endpoint.max_tokens_per_min
        self._sent: deque[Sent] = deque()
        self._num_served = 0
        self._served_tokens = 0
        self._turn = asyncio.Lock()

    async def admit(self, max_tokens: int) -> Sent:
        """Wait until a request of at most so many tokens may be sent, and count it."""
        async with self._turn:
            while (wait_s := self.wait_s(time.monotonic(), max_tokens)) > 0:
                await asyncio.sleep(wait_s)
            return self.count(time.monotonic(), max_tokens)

    def count(self, now: float, max_tokens: int) -> Sent:
        """Count a request that is sent now."""
        sent = Sent(now, self._expected(max_tokens))
        if self._max_requests is not None or self._max_tokens is not None:
            self._sent.append(sent)
        return sent

    def settle(self, sent: Sent, tokens: int) -> None:
        """Record the actual tokens of a request."""
        sent.tokens = tokens
        self._num_served += 1
        self._served_tokens += tokens

    def wait_s(self, now: float, max_tokens: int) -> float:
        """Return how long a request of at most so many tokens waits; one that alone is too large waits for all."""
        while self._sent and self._sent[0].ts + WINDOW_S <= now:
            self._sent.popleft()
        num_before = 0  # number of requests that must first leave the window
        if self._max_requests is not None:
            num_before = max(0, len(self._sent) - self._max_requests + 1)
        if self._max_tokens is not None:
            left = sum(sent.tokens for sent in list(self._sent)[num_before:]) + self._expected(max_tokens)
            while left > self._max_tokens and num_before < len(self._sent):
                left -= self._sent[num_before].tokens
                num_before += 1
        return self._sent[num_before - 1].ts + WINDOW_S - now if num_before else 0.0

    def _expected(self, max_tokens: int) -> int:
        return self._served_tokens // self._num_served if self._num_served else max_tokens


@dataclass(slots=True)
class Tries:
    """The tries of a request so far."""

    sent_ts: float | None = None
    """When the last one was sent, on the machine's monotonic clock."""
    failed_ts: float | None = None
    """When the first one failed that may be repeated."""
    num_retries: int = 0
    num_failures: int = 0
    """Tries that failed, without those after which the server wanted a pause."""
    max_requests: int | None = None
    """The most that may be sent; None: as many as patience allows."""

    @property
    def is_last(self) -> bool:
        """Whether no other request may follow the one that was sent."""
        return self.max_requests is not None and self.num_retries + 1 >= self.max_requests


@dataclass(eq=False)
class Client:
    """A server with its key; it must be created inside its event loop."""

    endpoint: Endpoint
    patience: EndpointPatience
    key: str | None = field(repr=False)
    has_served: bool = field(kw_only=True)
    """Whether it is known to serve calls: then other replies from its address may be temporary."""

    def __post_init__(self) -> None:
        self._session = _open_session(self.patience, self.key)
        self._pace = Pace(self.endpoint)
        self._pause_end_ts = 0.0
        self._num_pauses = 0
        self._first_pause_ts: float | None = None
        """Of the pauses since it last served a call."""

    async def list_models(self) -> Any:
        """Get the list of models; a server that has served calls is tried once: its caller repeats the request.

        Raises
        ------
        RequestError
            If no list arrives.
        """
        tries = Tries(num_failures=self.patience.max_retries if self.has_served else 0)
        return await self.ask("models", None, tries)

    async def ask(self, path: str, body: dict[str, Any] | None, tries: Tries) -> Any:
        """Get a path, or post a body to it, with as many tries as patience allows; returns the JSON of the reply.

        Raises
        ------
        RequestError
            If a retry cannot help, or all retries failed.
        """
        while True:
            while (pause_s := self._pause_end_ts - time.monotonic()) > 0:
                await asyncio.sleep(pause_s)
            try:
                return await self._paced(path, body, tries)
            except RequestError as error:
                if tries.is_last:
                    what = f"{error}; max_requests leaves no other request"
                    raise RequestError(what, Fault.PROMPT, status=error.status) from None
                if error.fault is Fault.THROTTLED:
                    self._pause(error)
                else:
                    await self._wait_after(error, tries)
            tries.num_retries += 1

    def note_served(self) -> None:
        """Record that it serves calls: pauses start from the shortest again."""
        self.has_served, self._num_pauses, self._first_pause_ts = True, 0, None

    async def _paced(self, path: str, body: dict[str, Any] | None, tries: Tries) -> Any:
        if body is None:
            return await self._try(path, None, MAX_LIST_BYTES)
        most = body[self.endpoint.limit_key]
        sent = await self._pace.admit(most + len(json.dumps(body)) // 4)
        tries.sent_ts = time.monotonic()
        content = await self._try(path, body, MAX_BYTES + BYTES_PER_TOKEN * most)
        usage = content.get("usage") if isinstance(content, dict) else None
        counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")] if isinstance(usage, dict) else []
        self._pace.settle(sent, sum(count for count in counts if isinstance(count, int)))
        return content

    async def _wait_after(self, error: RequestError, tries: Tries) -> None:
        """Wait before the next try, if there is one."""
        tries.failed_ts = tries.failed_ts or time.monotonic()
        retried = {Fault.PASSING, Fault.UNREACHABLE} | ({Fault.ELSEWHERE} if self.has_served else set())
        if error.fault not in retried:
            raise error
        if tries.num_failures >= self.patience.max_retries:
            tried = f" (tried {tries.num_retries + 1} times)" if tries.num_retries else ""
            raise RequestError(f"{error}{tried}", error.fault, status=error.status) from None
        wait_s = self.patience.wait_s(tries.num_failures)
        tries.num_failures += 1
        await asyncio.sleep(wait_s)

    def _pause(self, error: RequestError) -> None:
        """Send nothing before the time that the server demands; the caller handles a long pause."""
        now = time.monotonic()
        if self._first_pause_ts is None:
            self._first_pause_ts = now
        wait_s = error.retry_after_s
        if wait_s is None and self._pause_end_ts <= now:
            wait_s = self.patience.wait_s(self._num_pauses)
            self._num_pauses += 1
        self._pause_end_ts = max(self._pause_end_ts, now + (wait_s or 0.0))
        if self._pause_end_ts - self._first_pause_ts > self.patience.max_wait_s:
            left_s = self._pause_end_ts - now
            raise RequestError(str(error), Fault.THROTTLED, status=error.status, retry_after_s=left_s) from None

    def cause(self, what: str) -> str:
        """Describe the error and its server in one line, without the key."""
        return clipped(f"{self.endpoint.expert} at {self.endpoint.base_url}: {self._without_key(what)}")

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    def _without_key(self, text: str) -> str:
        return text if self.key is None else text.replace(self.key, MASK)

    def _masked(self, reply: Any) -> Any:
        """Remove the key from a reply that repeats it: journals and output files are shared."""
        if self.key is None or len(self.key) < MIN_KEY_CHARACTERS:
            return reply
        if isinstance(reply, str):
            return self._without_key(reply)
        if isinstance(reply, dict):
            return {name: self._masked(value) for name, value in reply.items()}
        return [self._masked(value) for value in reply] if isinstance(reply, list) else reply

    async def _try(self, path: str, body: dict[str, Any] | None, max_bytes: int) -> Any:
        import aiohttp

        method, data = ("GET", None) if body is None else ("POST", json.dumps(body).encode())
        url = f"{self.endpoint.base_url}/{path}"
        try:
            async with self._session.request(method, url, data=data, allow_redirects=False) as reply:
                content = await _read(reply, max_bytes)
        except (aiohttp.ClientError, OSError) as error:  # includes timeouts
            cause, fault = self._broken(error)
            raise RequestError(self.cause(cause), fault) from None
        if content is None and reply.status < 300:
            raise RequestError(self.cause(f"the reply has more than {max_bytes:,} bytes"), Fault.INVALID)
        if 200 <= reply.status < 300:
            try:
                return self._masked(json.loads(content or b""))
            except (ValueError, RecursionError):
                begin = (content or b"").lstrip()[:1000]
                fault = Fault.PASSING if begin[:1] == b"{" else Fault.ELSEWHERE  # half of one, or a page
                start = self._without_key(repr(begin))[:83]
                raise RequestError(self.cause(f"the reply is no JSON: {start}"), fault) from None
        text = (content or b"").decode("utf-8", "replace")
        words = f"it redirects to {reply.headers.get('Location')}" if reply.status < 400 else message_of(text)
        retry_after_s = seconds_of(reply.headers.get("Retry-After"))
        raise RequestError(
            self.cause(f"{reply.status} {reply.reason}: {words}"),
            Fault.THROTTLED
            if reply.status == 503 and retry_after_s is not None
            else fault_of(reply.status, text, body or ()),
            status=reply.status,
            retry_after_s=retry_after_s,
        )

    def _broken(self, error: Exception) -> tuple[str, Fault]:
        """Find why no reply arrived, and what the error concerns."""
        import aiohttp

        if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
            why = "no file descriptors are left here (ulimit -n): lower backend.max_in_flight, or raise the limit"
            return why, Fault.PASSING
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            why = f"its certificate is refused: {error.certificate_error}; SSL_CERT_FILE names those that are trusted"
            return why, Fault.REFUSED
        if isinstance(error, aiohttp.ClientSSLError):
            why = getattr(error.os_error, "reason", None) or _reason(error)
            return f"it does not speak TLS as https wants: {why}; is it http://?", Fault.REFUSED
        if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
            return f"cannot be reached: {_reason(error)}; is the server running?", Fault.UNREACHABLE
        if isinstance(error, TimeoutError):
            return f"no whole reply in {self.patience.reply_timeout_s:g} s", Fault.PASSING
        return f"the connection broke: {_reason(error)}", Fault.PASSING


def _open_session(patience: EndpointPatience, key: str | None) -> "ClientSession":
    import aiohttp

    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    return aiohttp.ClientSession(
        # Each try has a connection of its own: the server may close a kept one just when it is used.
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=headers,
        timeout=aiohttp.ClientTimeout(
            total=patience.reply_timeout_s, connect=min(patience.connect_timeout_s, patience.reply_timeout_s)
        ),
    )


async def _read(reply: "ClientResponse", max_bytes: int) -> bytes | None:
    """Read a reply to its end; None: it is too large."""
    content = bytearray()
    async for chunk in reply.content.iter_chunked(2**16):
        content += chunk
        if len(content) > max_bytes:
            return None
    return bytes(content)


def _reason(error: Exception) -> str:
    number = getattr(error, "errno", None)
    if isinstance(number, int) and number in errno.errorcode:
        return os.strerror(number)  # the event loop has longer words for it
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
