"""Requests to one server: plain HTTP with retries, which another thread can break off."""

import json
import socket
import threading
import time
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from mosaic.engines.endpoint import Endpoint, EndpointPatience
from mosaic.engines.orders import clipped

AGAIN = (408, 429)
"""Statuses after which the same request may succeed, beside those of 500 and above."""


class Refused(Exception):
    """The server will not serve this request, or does not manage to: it failed."""

    def __init__(self, cause: str, status: int | None = None) -> None:
        super().__init__(cause)
        self.status = status


class Unreachable(Refused):
    """Nobody answers where the server should be."""


class Aborted(Exception):
    """The request was broken off from here."""


class _TryAgain(Exception):
    """It did not work this time."""

    def __init__(self, cause: str, *, asked_s: float | None = None, status: int | None = None) -> None:
        super().__init__(cause)
        self.asked_s = asked_s
        self.status = status


class _NoConnection(_TryAgain):
    pass


class Line:
    """One exchange with a server, with as many tries as patience allows.

    Each try has a connection of its own: a kept one may be closed by the server in the moment that it is used.
    """

    def __init__(self, endpoint: Endpoint, patience: EndpointPatience) -> None:
        self.num_retries = 0
        self.sent_ts: float | None = None
        """When the last try was sent, on the machine's monotonic clock."""
        self._endpoint = endpoint
        self._patience = patience
        self._key = endpoint.api_key()
        self._aborted = threading.Event()
        self._socket: socket.socket | None = None

    def ask(self, path: str, body: Any | None = None) -> Any:
        """Get a path, or post a body to it; gives the JSON of the reply.

        Raises
        ------
        Refused
            With the cause in one line that names the server, when trying again is no use or was to no avail.
        Unreachable
            Likewise, if the last try found no server.
        Aborted
            If `abort` came first.
        """
        while True:
            try:
                return self._try(path, body)
            except (_TryAgain, Refused) as error:
                if self._aborted.is_set():
                    raise Aborted from None
                if isinstance(error, Refused):
                    raise
                if self.num_retries == self._patience.max_retries:
                    kind = Unreachable if isinstance(error, _NoConnection) else Refused
                    raise kind(self._tried(str(error)), error.status) from None
                wait_s = self._patience.wait_s(self.num_retries, error.asked_s)
            self.num_retries += 1
            if self._aborted.wait(wait_s):
                raise Aborted

    def abort(self) -> None:
        """Break off, from any thread: a server that sees its connection close drops the request."""
        self._aborted.set()
        with suppress(OSError):
            if self._socket is not None:
                self._socket.shutdown(socket.SHUT_RDWR)

    def _try(self, path: str, body: Any | None) -> Any:
        parts = urlsplit(self._endpoint.base_url)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=self._patience.connect_timeout_s)
        try:
            self._connect(connection)
            headers = {"Content-Type": "application/json", "Accept": "application/json", "Connection": "close"}
            if self._key is not None:
                headers["Authorization"] = f"Bearer {self._key}"
            self.sent_ts = time.monotonic()
            try:
                data = None if body is None else json.dumps(body).encode()
                connection.request("GET" if body is None else "POST", f"{parts.path}/{path}", data, headers)
                response = connection.getresponse()
                with response:
                    return self._read(response)
            except TimeoutError:
                raise _TryAgain(self._cause(f"no reply in {self._patience.reply_timeout_s:g} s")) from None
            except (OSError, HTTPException) as error:
                raise _TryAgain(self._cause(f"the connection broke: {_reason(error)}")) from None
        finally:
            self._socket = None
            connection.close()

    def _connect(self, connection: HTTPConnection) -> None:
        try:
            connection.connect()
        except (OSError, HTTPException) as error:
            why = f"cannot be reached: {_reason(error)}; is the server running?"
            raise _NoConnection(self._cause(why)) from None
        connection.sock.settimeout(self._patience.reply_timeout_s)
        self._socket = connection.sock  # the connection forgets its own as soon as a reply begins
        if self._aborted.is_set():
            raise Aborted

    def _read(self, response: HTTPResponse) -> Any:
        data = response.read()
        if 200 <= response.status < 300:
            try:
                return json.loads(data)
            except ValueError:
                raise Refused(self._cause(f"the reply is no JSON: {data[:80]!r}")) from None
        cause = self._cause(f"{response.status} {response.reason}: {_message(data)}")
        if response.status in AGAIN or response.status >= 500:
            raise _TryAgain(cause, asked_s=_seconds(response.getheader("Retry-After")), status=response.status)
        raise Refused(cause, response.status)

    def _cause(self, what: str) -> str:
        if self._key is not None:
            what = what.replace(self._key, "(key)")
        return clipped(f"{self._endpoint.expert} at {self._endpoint.base_url}: {what}")

    def _tried(self, cause: str) -> str:
        return f"{cause} (tried {self.num_retries + 1} times)" if self.num_retries else cause


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _message(data: bytes) -> str:
    """Find what a server says about an error, in the forms that servers give it."""
    text = data.decode("utf-8", "replace")
    try:
        content = json.loads(text)
    except ValueError:
        return text
    if isinstance(content, dict):
        content = content.get("error", content)
    if isinstance(content, dict):
        content = content.get("message", content.get("detail", content))
    return str(content)


def _seconds(value: str | None) -> float | None:
    """Read Retry-After; a date counts as nothing."""
    return float(value) if value is not None and value.strip().isdecimal() else None
