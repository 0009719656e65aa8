"""A small OpenAI-compatible server on this machine, which misbehaves to order."""

import asyncio
import functools
import json
import ssl
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from http import HTTPStatus

from mosaic.engines.endpoint import Endpoint

WAIT = "wait"
"""Behave so to say nothing until the client leaves."""
DROP = None
"""Behave so to close the connection without a reply."""


def completion(body, *, message=None, finish_reason="stop", **usage):
    """A whole reply, which follows from the seed."""
    tokens = tokens_of(body["seed"])[: body["max_tokens"]]
    text = text_of(body["seed"])
    choice = {"index": 0, "finish_reason": finish_reason}
    choice |= {"text": text} if "prompt" in body else {"message": message or {"role": "assistant", "content": text}}
    if body.get("return_token_ids"):
        choice["token_ids"] = tokens
    counts = {"prompt_tokens": 7, "completion_tokens": len(tokens), "prompt_tokens_details": {"cached_tokens": 3}}
    return {"choices": [choice], "usage": counts | usage}


def tokens_of(seed):
    return [(seed >> i) % 256 for i in range(1 + seed % 20)]


def text_of(seed):
    return f"The answer is {'ABCD'[seed % 4]}."


def first_time(prompt, *answers):
    """Give these answers to a prompt, one a try, then serve it; other prompts are served at once."""

    def behave(body, number):
        return answers[number] if prompt_of(body) == prompt and number < len(answers) else completion(body)

    return behave


def always(answer):
    """Give everybody the same answer."""
    return lambda body, number: answer


def prompt_of(body):
    return body["messages"][0]["content"] if "messages" in body else str(body["prompt"])


def http(status, content, headers=None):
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    lines = [f"{name}: {value}\r\n" for name, value in {"Content-Length": len(data), **(headers or {})}.items()]
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{''.join(lines)}\r\n".encode() + data


@functools.cache
def event_loop() -> asyncio.AbstractEventLoop:
    """One loop for all servers of this process; how they answer is found out in other threads, and may take long."""
    loop = asyncio.new_event_loop()
    loop.set_default_executor(ThreadPoolExecutor(256))
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop


class FakeServer:
    """What a server got, and how it answers: ``behave(body, number)`` with the number of times it got the same prompt.

    It gives a reply, a status with a message and perhaps headers, bytes, `WAIT` or `DROP`, or writes the answer itself.
    """

    def __init__(self, name, behave=None, *, model=None, scheme="http", context=None):
        model = model or f"model-{name}"
        self.posts, self.in_flight, self.most_in_flight = [], 0, 0
        self.first_ts = None
        """When its first post came."""
        self.models = {"object": "list", "data": [{"id": model}]}
        """What it says of its models: a reply, or a status with a message."""
        self.left = threading.Event()
        """A client closed its connection before it had its reply."""
        self.behave = behave or (lambda body, number: completion(body))
        self.context, self.port = context, 0
        self.call(self.listen())
        self.endpoint = Endpoint(base_url=f"{scheme}://127.0.0.1:{self.port}/v1/", expert=name, model=model)

    def call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, event_loop()).result(20)

    async def listen(self):
        self.listener = await asyncio.start_server(
            self.handle, "127.0.0.1", self.port, ssl=self.context, reuse_address=True, backlog=128
        )
        self.port = self.listener.sockets[0].getsockname()[1]

    async def stop_listening(self):
        # NOTE: asyncio leaves the transport of a connection open that it has accepted when its listener is closed.
        for sock in self.listener.sockets:
            event_loop().remove_reader(sock.fileno())
        await asyncio.sleep(0.05)
        self.listener.close()

    def close(self):
        self.call(self.stop_listening())

    def prompts(self):
        """How often it got each prompt."""
        return Counter(prompt_of(body) for _, body, _ in self.posts)

    async def handle(self, reader, writer):
        try:
            await self.serve(reader, writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass  # clients may leave
        finally:
            writer.close()

    async def serve(self, reader, writer):
        if (first := await reader.readexactly(1)) == b"\x16":  # TLS
            writer.write(http(400, b"plain HTTP only"))
            return
        head, *lines = (first + await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        path = head.split()[1]
        headers = dict(line.split(": ", 1) for line in lines if line)
        length = next((int(value) for name, value in headers.items() if name.lower() == "content-length"), 0)
        body = json.loads(await reader.readexactly(length)) if length else None
        answer = self.listed(path) if body is None else await self.answer_to(path, body, headers)
        if callable(answer):
            await answer(self, writer, body)
        elif answer == WAIT:
            with suppress(ConnectionError):
                await reader.read(1)
            self.left.set()
        elif isinstance(answer, bytes):
            writer.write(answer)
        elif answer is not DROP:
            writer.write(http(*answer) if isinstance(answer, tuple) else http(200, answer))

    def listed(self, path):
        return self.models if path == "/v1/models" else (404, {"detail": "Not Found"})

    async def answer_to(self, path, body, headers):
        number = self.prompts()[prompt_of(body)]
        self.first_ts = self.first_ts or time.monotonic()
        self.posts.append((path, body, headers))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await asyncio.to_thread(self.behave, body, number)
        finally:
            self.in_flight -= 1


@contextmanager
def serving(*servers):
    with ExitStack() as stack:
        for server in servers:
            stack.callback(server.close)
        yield servers
