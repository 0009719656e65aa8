"""Servers that misbehave, each in its way, from the start or after some good calls, for a while or for ever.

They speak raw bytes: what they do wrong is what an HTTP library would not let them do.
"""

import asyncio
import gzip
import json
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from mosaic.engines.endpoint import Endpoint
from tests.engines.fake_server import completion

MB = 2**20
WAITS = "waited for"
ENDS = "given up"
ALONE = "its calls fail alone"
FEW = "waited for, and a call or two fail alone"


class Kind(NamedTuple):
    """A way to misbehave, and what is to come of it."""

    name: str
    behave: Callable[["BadServer", asyncio.StreamWriter, dict[str, Any] | None], Awaitable[None]] | None
    says: str
    """Part of what is said of it when it never served a call."""
    later: str | None = WAITS
    """When it begins after good calls and is the only server; None: it cannot."""
    everywhere: bool = False
    """It does so whatever is asked, the list of models included."""
    https: bool = False


class BadServer:
    """Serves ``num_good`` calls, then misbehaves for ``bad_s`` seconds; None: for ever."""

    listeners: ClassVar[list[asyncio.Server]] = []

    def __init__(self, loop, kind: Kind | None, expert: str, *, num_good=0, bad_s=None, context=None):
        self.loop, self.kind, self.num_good, self.bad_s = loop, kind, num_good, bad_s
        self.num_posts, self.bad_ts, self.port = 0, None, 0
        self.context = context
        self.listener = None
        self.call(self.listen())
        scheme = "https" if kind is not None and kind.https else "http"
        self.endpoint = Endpoint(base_url=f"{scheme}://127.0.0.1:{self.port}/v1", expert=expert, model="m")
        if kind is REFUSED_CONNECTION and num_good == 0:
            self.call(self.stop_listening())

    def call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(20)

    async def listen(self):
        self.listener = await asyncio.start_server(
            self.handle, "127.0.0.1", self.port, ssl=self.context, reuse_address=True, limit=MB
        )
        self.listeners.append(self.listener)
        self.port = self.listener.sockets[0].getsockname()[1]

    async def stop_listening(self):
        # NOTE: asyncio leaves the transport of a connection open that it has accepted when its listener is closed.
        for sock in self.listener.sockets:
            self.loop.remove_reader(sock.fileno())
        await asyncio.sleep(0.05)
        self.listener.close()

    def is_bad(self) -> bool:
        if self.kind is None or (self.num_posts < self.num_good and self.bad_ts is None):
            return False
        return self.bad_ts is None or self.bad_s is None or time.monotonic() < self.bad_ts + self.bad_s

    async def handle(self, reader, writer):
        try:
            if (first := await reader.readexactly(1)) == b"\x16":  # TLS
                writer.write(http(400, b"plain HTTP only"))
                return
            head = first + await reader.readuntil(b"\r\n\r\n")
            length = next(
                (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
            )
            body = json.loads(await reader.readexactly(length)) if length else None
            is_post, is_bad = body is not None, self.is_bad()
            if is_bad and is_post and self.bad_ts is None:
                self.bad_ts = time.monotonic()
            self.num_posts += is_post
            if is_bad and (is_post or self.kind.everywhere):
                await self.kind.behave(self, writer, body)
            else:
                writer.write(http(200, completion(body) if is_post else {"data": [{"id": "m"}]}))
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            writer.close()


def http(status: int, content, headers: str = "", *, length: int | None = None) -> bytes:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    length = len(data) if length is None else length
    return f"HTTP/1.1 {status} Reason\r\n{headers}Content-Length: {length}\r\n\r\n".encode() + data


def error(status: int, message: str, headers: str = ""):
    return lambda server, writer, body: written(writer, http(status, {"error": {"message": message}}, headers))


def raw(data: bytes):
    return lambda server, writer, body: written(writer, data)


def changed(**changes):
    """A whole reply but for this."""
    return lambda server, writer, body: written(
        writer, http(200, completion(body or {"seed": 1, "max_tokens": 9}, **changes))
    )


def and_more(**more):
    return lambda server, writer, body: written(writer, http(200, completion(body) | more))


def said(text, **usage):
    return changed(message={"role": "assistant", "content": text}, **usage)


async def written(writer, data):
    writer.write(data)


async def reset(server, writer, body):
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def close(server, writer, body):
    writer.close()


async def wait(server, writer, body):
    await asyncio.sleep(3600)


async def half_a_reply(server, writer, body):
    data = json.dumps(completion(body or {"seed": 1, "max_tokens": 9})).encode()
    writer.write(http(200, data[: len(data) // 2], length=len(data)))


async def half_then_silence(server, writer, body):
    await half_a_reply(server, writer, body)
    await writer.drain()
    await asyncio.sleep(3600)


def dribble(begin: bytes, byte: bytes):
    """A byte every so often: the connection is never silent for long."""

    async def behave(server, writer, body):
        writer.write(begin)
        while True:
            writer.write(byte)
            await writer.drain()
            await asyncio.sleep(0.05)

    return behave


def flood(begin: bytes):
    """As much as the client takes."""

    async def behave(server, writer, body):
        writer.write(begin)
        while True:
            writer.write(b"x" * 2**16)
            await writer.drain()

    return behave


async def huge_text(server, writer, body):
    message = {"role": "assistant", "content": "x" * (MB // 2)}
    writer.write(http(200, completion(body, message=message, completion_tokens=5)))


async def stop_listening(server, writer, body):
    await server.stop_listening()
    writer.transport.abort()
    if server.bad_s is not None:
        await asyncio.sleep(server.bad_s)
        await server.listen()


def retry_at(server, writer, body):
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=1), usegmt=True)
    return error(429, "slow down", f"Retry-After: {date}\r\n")(server, writer, body)


HTML = b"<html><h1>502 Bad Gateway</h1></html>"
REFUSED_CONNECTION = Kind("connection refused", stop_listening, "Connection refused; is the server running?")
KINDS = [
    # Replies that do not come, or not whole.
    REFUSED_CONNECTION,
    Kind("reset", reset, "the connection broke: Connection reset by peer", everywhere=True),
    Kind("closed without a reply", close, "the connection broke: Server disconnected", everywhere=True),
    Kind("half a reply, then closed", half_a_reply, "the connection broke"),
    Kind("half a reply, then silence", half_then_silence, "no whole reply in 0.7 s"),
    Kind("half of the JSON", raw(http(200, b'{"choices": [{"mess')), 'the reply is no JSON: b\'{"choices"'),
    Kind("silence", wait, "no whole reply in 0.7 s"),
    Kind(
        "a byte of the body at a time",
        dribble(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n", b" "),
        "no whole reply in 0.7 s",
    ),
    Kind("a byte of the header at a time", dribble(b"HTTP/1.1 200 OK\r\nX: ", b"x"), "no whole reply in 0.7 s"),
    Kind(
        "chunks without end",
        dribble(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        "no whole reply in 0.7 s",
    ),
    Kind("not HTTP", raw(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"), "the connection broke", everywhere=True),
    Kind("a header without end", flood(b"HTTP/1.1 200 OK\r\nX: "), "the connection broke"),
    # Errors of the server, or of what stands before it.
    Kind("429", error(429, "slow down"), "429 Reason: slow down"),
    Kind("429, Retry-After in seconds", error(429, "slow down", "Retry-After: 1\r\n"), "429 Reason: slow down"),
    Kind("429, Retry-After as a date", retry_at, "429 Reason: slow down"),
    Kind("429, Retry-After of an hour", error(429, "quota", "Retry-After: 3600\r\n"), "429 Reason: quota", later=ENDS),
    Kind("503, Retry-After in seconds", error(503, "loading", "Retry-After: 1\r\n"), "503 Reason: loading"),
    Kind("408", error(408, "too slow"), "408 Reason: too slow"),
    Kind("500", error(500, "CUDA error"), "500 Reason: CUDA error"),
    Kind("501", error(501, "no such method"), "501 Reason: no such method"),
    Kind("502 in HTML", raw(http(502, HTML)), "502 Reason: <html>", everywhere=True),
    Kind("503", raw(http(503, b"no backend")), "503 Reason: no backend", everywhere=True),
    Kind("504", error(504, "timeout"), "504 Reason: timeout", everywhere=True),
    Kind("500 with a huge body", flood(b"HTTP/1.1 500 Reason\r\n\r\n"), "500 Reason:"),
    # Somebody else answers.
    Kind("HTML", raw(http(200, HTML)), "the reply is no JSON: b'<html>", everywhere=True),
    Kind("nothing", raw(http(200, b"")), "the reply is no JSON: b''"),
    Kind("204", raw(b"HTTP/1.1 204 Reason\r\n\r\n"), "the reply is no JSON: b''"),
    Kind("404", error(404, "Not Found"), "404 Reason: Not Found; check base_url", everywhere=True),
    Kind(
        "a redirect to a login",
        raw(http(302, b"", "Location: http://127.0.0.1:1/login\r\n")),
        "it redirects to http://127.0.0.1:1/login",
    ),
    Kind(
        "a redirect to itself",
        raw(http(307, b"", "Location: /v1/chat/completions\r\n")),
        "it redirects to /v1/chat/completions",
    ),
    # Refusals that no waiting heals.
    Kind("401", error(401, "Incorrect API key"), "401 Reason: Incorrect API key; check the key", later=ENDS),
    Kind("402", error(402, "no credit"), "402 Reason: no credit; check the account", later=ENDS),
    Kind("403", error(403, "no access"), "403 Reason: no access; check the key", later=ALONE),
    Kind("400", error(400, "no"), "400 Reason: no", later=ALONE),
    Kind(
        "400, model unknown",
        error(400, "The model m does not exist"),
        "400 Reason: The model m does not exist",
        later=ALONE,
    ),
    Kind(
        "422 of a field", error(422, "Extra inputs are not permitted: top_k"), "422 Reason: Extra inputs", later=ALONE
    ),
    # Replies that are none, or cannot be true.
    Kind("another model", and_more(model="gpt-x"), "the reply is of model 'gpt-x', and 'm' was asked for", later=FEW),
    Kind("a negative count", changed(completion_tokens=-1), "completion_tokens must be a whole number", later=FEW),
    Kind(
        "more tokens than asked for",
        changed(completion_tokens=65),
        "completion_tokens must be a whole number in 1 .. 64, got 65",
        later=FEW,
    ),
    Kind("a text of many more bytes", huge_text, "5 completion_tokens are no 524,288 bytes of text", later=FEW),
    Kind("a body without end", flood(b"HTTP/1.1 200 OK\r\n\r\n"), "the reply has more than 1,114,112 bytes", later=FEW),
    Kind(
        "a compressed bomb",
        raw(http(200, gzip.compress(b" " * 8 * MB), "Content-Encoding: gzip\r\n")),
        "the reply has more than 1,114,112 bytes",
        later=FEW,
    ),
    Kind(
        "no usage",
        raw(http(200, {"choices": [{"message": {"content": "A"}}]})),
        "no completion with its token counts",
        later=FEW,
    ),
    Kind(
        "an error with status 200",
        raw(http(200, {"error": {"message": "overloaded"}})),
        "no completion with its token counts",
        later=FEW,
    ),
    Kind("a list", raw(http(200, [])), "no completion with its token counts", later=FEW),
    Kind("deep JSON", raw(http(200, b"[" * 100_000)), "the reply is no JSON: b'[[[", later=FEW),
    Kind("null", said(None), "its content is null", later=FEW),
    Kind("half of a surrogate pair", said("\ud800"), "UnicodeEncodeError", later=FEW),
    Kind("a cut stream", changed(finish_reason="abort"), "the server ended the response for abort", later=FEW),
    # Wrong from the start.
    Kind("TLS with a certificate of its own", None, "its certificate is refused: ", later=None, https=True),
    Kind("plain HTTP where https is asked for", None, "it does not speak TLS as https wants", later=None, https=True),
]


def own_certificate(folder: Path) -> ssl.SSLContext | None:
    """A certificate that nobody has signed; None: no openssl is there to make it."""
    if shutil.which("openssl") is None:
        return None
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=localhost"
    subprocess.run(
        [*command.split(), "-keyout", "key.pem", "-out", "cert.pem"], cwd=folder, check=True, capture_output=True
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


class Loop:
    """An event loop in a thread of its own, which all servers share."""

    def __enter__(self):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        return self.loop

    def __exit__(self, *error):
        asyncio.run_coroutine_threadsafe(self.end(), self.loop).result(20)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()

    async def end(self):
        for listener in BadServer.listeners:
            listener.close()
        BadServer.listeners.clear()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.1)  # transports close an iteration later, TLS even later
