"""Servers that misbehave, each in its way, from the start or after some good calls, for a while or for ever."""

import asyncio
import gzip
import itertools
import shutil
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple

from tests.engines.fake_server import DROP, WAIT, FakeServer, completion, http

MB = 2**20
WAITS = "waited for"
ENDS = "given up"
ALONE = "its calls fail alone"
FEW = "waited for, and a call or two fail alone"


class Kind(NamedTuple):
    """A way to misbehave, and what is to come of it."""

    name: str
    answer: Any
    """As `FakeServer` gives it."""
    says: str
    """Part of what is said of it when it never served a call."""
    later: str | None = WAITS
    """When it begins after good calls and is the only server; None: it cannot."""
    everywhere: bool = False
    """It does so whatever is asked, the list of models included."""
    https: bool = False


class BadServer(FakeServer):
    """Serves ``num_good`` calls, then misbehaves for ``bad_s`` seconds; None: for ever."""

    def __init__(self, kind: Kind | None, expert: str, *, num_good=0, bad_s=None, context=None):
        self.kind, self.num_good, self.bad_s = kind, num_good, bad_s
        self.numbers, self.bad_ts = itertools.count(), None
        scheme = "https" if kind is not None and kind.https else "http"
        super().__init__(expert, self.behave_as_kind, model="m", scheme=scheme, context=context)
        if kind is REFUSED_CONNECTION and num_good == 0:
            self.close()

    def is_bad(self, is_begun: bool) -> bool:
        if self.kind is None or not is_begun:
            return False
        return self.bad_ts is None or self.bad_s is None or time.monotonic() < self.bad_ts + self.bad_s

    def behave_as_kind(self, body, number):
        if not self.is_bad(next(self.numbers) >= self.num_good):
            return completion(body)
        self.bad_ts = self.bad_ts or time.monotonic()
        return self.kind.answer

    def listed(self, path):
        is_begun = self.num_good == 0 or self.bad_ts is not None
        return self.kind.answer if self.is_bad(is_begun) and self.kind.everywhere else super().listed(path)


def refusal(
    status: int, message: str, *, name: str = "", headers: Mapping[str, object] | None = None, advice: str = "", **more
) -> Kind:
    answer = (status, {"error": {"message": message}}, headers)
    return Kind(name or str(status), answer, f"{status} {HTTPStatus(status).phrase}: {message}{advice}", **more)


def changed(more=None, **changes):
    """A whole reply but for this."""

    async def answer(server, writer, body):
        writer.write(http(200, completion(body, **changes) | (more or {})))

    return answer


async def reset(server, writer, body):
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def half_a_reply(server, writer, body):
    data = http(200, completion(body))
    writer.write(data[: -len(data) // 3])


async def half_then_silence(server, writer, body):
    await half_a_reply(server, writer, body)
    await writer.drain()
    await asyncio.sleep(3)


def stream(begin: bytes, piece: bytes, pause_s: float):
    """A piece every so often: the connection is never silent for long, and there is no end."""

    async def answer(server, writer, body):
        writer.write(begin)
        while True:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause_s)

    return answer


def dribble(begin: bytes, piece: bytes):
    return stream(begin, piece, 0.05)


def flood(begin: bytes):
    """As much as the client takes."""
    return stream(begin, b"x" * 2**16, 0.0)


async def stop_listening(server, writer, body):
    await server.stop_listening()
    writer.transport.abort()
    if server.bad_s is not None:
        await asyncio.sleep(server.bad_s)
        await server.listen()


async def retry_at(server, writer, body):
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=1), usegmt=True)
    writer.write(http(429, {"error": {"message": "slow down"}}, {"Retry-After": date}))


HTML = b"<html><h1>502 Bad Gateway</h1></html>"
NO_REPLY = "no whole reply in 0.7 s"
REFUSED_CONNECTION = Kind("connection refused", stop_listening, "Connection refused; is the server running?")
KINDS = [
    # Replies that do not come, or not whole.
    REFUSED_CONNECTION,
    Kind("reset", reset, "the connection broke: Connection reset by peer", everywhere=True),
    Kind("closed without a reply", DROP, "the connection broke: Server disconnected", everywhere=True),
    Kind("half a reply, then closed", half_a_reply, "the connection broke"),
    Kind("half a reply, then silence", half_then_silence, NO_REPLY),
    Kind("half of the JSON", (200, b'{"choices": [{"mess'), 'the reply is no JSON: b\'{"choices"'),
    Kind("silence", WAIT, NO_REPLY),
    Kind("a byte of the body at a time", dribble(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n", b" "), NO_REPLY),
    Kind("a byte of the header at a time", dribble(b"HTTP/1.1 200 OK\r\nX: ", b"x"), NO_REPLY),
    Kind(
        "chunks without end",
        dribble(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        NO_REPLY,
    ),
    Kind("not HTTP", b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "the connection broke", everywhere=True),
    Kind("a header without end", flood(b"HTTP/1.1 200 OK\r\nX: "), "the connection broke"),
    # Errors of the server, or of what stands before it.
    refusal(429, "slow down"),
    refusal(429, "slow down", name="429, Retry-After in seconds", headers={"Retry-After": 1}),
    Kind("429, Retry-After as a date", retry_at, "429 Too Many Requests: slow down"),
    refusal(429, "quota", name="429, Retry-After of an hour", headers={"Retry-After": 3600}, later=ENDS),
    refusal(503, "loading", name="503, Retry-After in seconds", headers={"Retry-After": 1}),
    refusal(408, "too slow"),
    refusal(500, "CUDA error"),
    refusal(501, "no such method"),
    Kind("502 in HTML", (502, HTML), "502 Bad Gateway: <html>", everywhere=True),
    Kind("503", (503, b"no backend"), "503 Service Unavailable: no backend", everywhere=True),
    refusal(504, "timeout", everywhere=True),
    Kind("500 with a huge body", flood(b"HTTP/1.1 500 Reason\r\n\r\n"), "500 Reason:"),
    # Somebody else answers.
    Kind("HTML", (200, HTML), "the reply is no JSON: b'<html>", everywhere=True),
    Kind("nothing", (200, b""), "the reply is no JSON: b''"),
    Kind("204", b"HTTP/1.1 204 Reason\r\n\r\n", "the reply is no JSON: b''"),
    refusal(404, "Not Found", advice="; check base_url", everywhere=True),
    Kind("a redirect to a login", (302, b"", {"Location": "http://h:1/login"}), "it redirects to http://h:1/login"),
    Kind("a redirect to itself", (307, b"", {"Location": "/v1/completions"}), "it redirects to /v1/completions"),
    # Refusals that no waiting heals.
    refusal(401, "Incorrect API key", advice="; check the key", later=ENDS),
    refusal(402, "no credit", advice="; check the account", later=ENDS),
    refusal(403, "no access", advice="; check the key", later=ALONE),
    refusal(400, "no", later=ALONE),
    refusal(400, "The model m does not exist", name="400, model unknown", later=ALONE),
    refusal(422, "Extra inputs are not permitted: top_k", later=ALONE),
    # Replies that are none, or cannot be true.
    Kind(
        "another model",
        changed({"model": "gpt-x"}),
        "the reply is of model 'gpt-x', the request named 'm'",
        later=FEW,
    ),
    Kind("a negative count", changed(completion_tokens=-1), "completion_tokens must be a whole number", later=FEW),
    Kind(
        "a text of many more bytes",
        changed(message={"role": "assistant", "content": "x" * (MB // 2)}, completion_tokens=5),
        "5 completion_tokens are no 524,288 bytes of text",
        later=FEW,
    ),
    Kind("a body without end", flood(b"HTTP/1.1 200 OK\r\n\r\n"), "the reply has more than 1,114,112 bytes", later=FEW),
    Kind(
        "a compressed bomb",
        (200, gzip.compress(b" " * 8 * MB), {"Content-Encoding": "gzip"}),
        "the reply has more than 1,114,112 bytes",
        later=FEW,
    ),
    Kind("a list", (200, []), "no completion with its token counts", later=FEW),
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
