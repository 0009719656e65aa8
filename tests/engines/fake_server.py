"""A small OpenAI-compatible server on this machine, which misbehaves to order."""

import json
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

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


def slow(seconds):
    """Serve, each after so long."""

    def behave(body, number):
        time.sleep(seconds)
        return completion(body)

    return behave


def prompt_of(body):
    return body["messages"][0]["content"] if "messages" in body else str(body["prompt"])


class HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # a connection that finds the queue full is tried again by the system after a second

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):  # clients may leave
            super().handle_error(request, client_address)


class FakeServer:
    """What a server got, and how it answers: ``behave(body, number)`` with the number of times it got the same prompt.

    It gives a reply, a status with a message and perhaps headers, `WAIT` or `DROP`.
    """

    def __init__(self, name, behave=None):
        self.posts, self.in_flight, self.most_in_flight = [], 0, 0
        self.first_ts = None
        """When its first post came."""
        self.models = {"object": "list", "data": [{"id": f"model-{name}"}]}
        """What it says of its models: a reply, or a status with a message."""
        self.left = threading.Event()
        """A client closed its connection before it had its reply."""
        self.behave = behave or (lambda body, number: completion(body))
        self.lock = threading.Lock()
        self.http = HttpServer(("127.0.0.1", 0), handler_of(self))
        self.port = self.http.server_port
        self.endpoint = Endpoint(base_url=f"http://127.0.0.1:{self.port}/v1/", expert=name, model=f"model-{name}")
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()

    def prompts(self):
        """How often it got each prompt."""
        return Counter(prompt_of(body) for _, body, _ in self.posts)


def handler_of(server):
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            self.answer(server.models if self.path == "/v1/models" else (404, {"detail": "Not Found"}))

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                number = server.prompts()[prompt_of(body)]
                server.first_ts = server.first_ts or time.monotonic()
                server.posts.append((self.path, body, dict(self.headers)))
                server.in_flight += 1
                server.most_in_flight = max(server.most_in_flight, server.in_flight)
            try:
                answer = server.behave(body, number)
            finally:
                with server.lock:
                    server.in_flight -= 1
            self.answer(answer)

        def answer(self, answer):
            if answer == WAIT:
                assert self.rfile.read(1) == b""
                server.left.set()
            elif isinstance(answer, tuple):
                self.reply(*answer)
            elif answer is not DROP:
                self.reply(200, answer)

        def reply(self, status, content, headers=None):
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": len(data), **(headers or {})}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(data)

    return Handler


@contextmanager
def serving(*servers):
    with ExitStack() as stack:
        for server in servers:
            stack.callback(server.close)
        yield servers
