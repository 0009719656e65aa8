"""Plans on servers that are already running, with small ones that misbehave to order."""

import json
import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from mosaic.engines.vllm_jobs import response_seed

from mosaic.core.errors import BackendError
from mosaic.core.results import CallStatus, Cancel
from mosaic.core.workload import AnswerKind, Question
from mosaic.engines.endpoint import Api, Endpoint, EndpointPatience
from mosaic.engines.endpoint_backend import EndpointBackend
from mosaic.engines.endpoint_messages import read_reply
from mosaic.runtime.replanning import calls_left
from tests.engines.executor_runs import finished_once, journal_of
from tests.factories import make_call, make_cluster, make_expert
from tests.sim.cluster_runs import make_plan, make_session, some_calls

A, B = some_calls("A", 20), some_calls("B", 20)
CALLS = [*A, *B]
PLAN = make_plan(
    make_session(3, A[:12]), make_session(1, B, workers=(1,)), make_session(0, A[12:], after=(1,)), num_workers=2
)
QUICK = EndpointPatience(connect_timeout_s=5, reply_timeout_s=20, max_retries=2, first_wait_s=0.01)


def completion(body, **changes):
    """A whole reply, which follows from the seed."""
    seed = body["seed"]
    tokens = [(seed >> i) % 256 for i in range(1 + seed % 20)]
    text = f"The answer is {'ABCD'[seed % 4]}."
    choice = {"index": 0, "finish_reason": "stop"}
    choice |= {"text": text} if "prompt" in body else {"message": {"role": "assistant", "content": text}}
    if body.get("return_token_ids"):
        choice["token_ids"] = tokens
    usage = {"prompt_tokens": 7, "completion_tokens": len(tokens), "prompt_tokens_details": {"cached_tokens": 3}}
    return {"choices": [choice], "usage": usage} | changes


class HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # a connection that finds the queue full is tried again by the system after a second


class Server:
    """What a server got, and how it answers: ``behave(body, number)`` with the number of times it got the same.

    It gives a reply, a status with a message and headers, or None: the connection is closed without one.
    """

    def __init__(self, name, behave=None):
        self.posts, self.in_flight, self.most_in_flight = [], 0, 0
        self.left = threading.Event()
        """A client closed its connection before it had its reply."""
        self.model, self.behave = f"model-{name}", behave or (lambda body, number: completion(body))
        self.lock = threading.Lock()
        self.http = HttpServer(("127.0.0.1", 0), handler_of(self))
        self.port = self.http.server_port
        self.endpoint = Endpoint(base_url=f"http://127.0.0.1:{self.port}/v1/", expert=name, model=self.model)
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()

    def prompts(self):
        return Counter(prompt_of(body) for _, body, _ in self.posts)


def prompt_of(body):
    return body["messages"][0]["content"] if "messages" in body else str(body["prompt"])


def handler_of(server):
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            if server.model is None:
                self.reply(404, {"detail": "Not Found"})
            else:
                self.reply(200, {"object": "list", "data": [{"id": server.model}]})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                number = server.prompts()[prompt_of(body)]
                server.posts.append((self.path, body, dict(self.headers)))
                server.in_flight += 1
                server.most_in_flight = max(server.most_in_flight, server.in_flight)
            try:
                answer = server.behave(body, number)
            finally:
                with server.lock:
                    server.in_flight -= 1
            if answer == "wait":
                assert self.rfile.read(1) == b""
                server.left.set()
            elif isinstance(answer, tuple):
                status, message, *headers = answer
                self.reply(status, message, *headers)
            elif answer is not None:
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


@pytest.fixture
def pair():
    with serving(Server("A"), Server("B")) as servers:
        yield servers


def make_backend(folder, servers, **changes):
    changes.setdefault("endpoints", [server.endpoint for server in servers])
    changes.setdefault("experts", [replace(make_expert(name), temperature=0.7) for name in "AB"])
    changes.setdefault("cluster", make_cluster(len(changes["endpoints"])))
    changes.setdefault("journal", folder / "journal")
    changes.setdefault("prompts", lambda call: f"question {call.key.question}")
    changes.setdefault("patience", QUICK)
    return EndpointBackend(**changes)


def one_server(folder, behave, calls=A, **changes):
    """Run calls of A on one server; gives the backend, the result and what the server got."""
    with serving(Server("A", behave)) as (server,):
        backend = make_backend(folder, [server], **changes)
        return backend, backend.execute(make_plan(make_session(0, calls), num_workers=1), calls), server


# What every backend promises.


def test_every_call_is_recorded_once_in_its_session(pair, tmp_path):
    result = make_backend(tmp_path, pair).execute(PLAN, CALLS)
    assert sorted(record.key for record in result.calls) == sorted(call.key for call in CALLS)
    session_of = {key: session for session in PLAN.sessions for key in session.shard}
    sessions = {record.session: record for record in result.sessions}
    for record in result.calls:
        session = session_of[record.key]
        assert (record.session, record.expert, record.workers) == (session.id, session.expert, session.workers)
        tokens = 1 + response_seed(0, record.key) % 20
        assert (record.status, record.prompt_tokens, record.output_tokens) == (CallStatus.FINISHED, 7, tokens)
        assert (record.cached_tokens, record.visible_tokens, record.attempt) == (3, tokens, 0)
        assert record.first_token_ts is None
        served = sessions[record.session]
        assert served.start_ts == record.queued_ts <= record.admitted_ts < record.finished_ts <= served.end_ts


def test_sessions_follow_each_other_and_nothing_is_loaded(pair, tmp_path):
    result = make_backend(tmp_path, pair).execute(PLAN, CALLS)
    assert [(record.session, record.num_calls) for record in result.sessions] == [(3, 12), (1, 20), (0, 8)]
    first, other, last = result.sessions
    assert first.load_start_ts == other.load_start_ts == 0.0
    assert all(record.load_s == 0 and record.load_start_ts == record.start_ts for record in result.sessions)
    assert last.start_ts == max(first.end_ts, other.end_ts)
    for record in result.sessions:
        mine = [call for call in result.calls if call.session == record.session]
        assert record.output_tokens == sum(call.output_tokens for call in mine)


def test_calls_that_are_not_ready_wait_in_their_session(pair, tmp_path):
    late = some_calls("A", 3, start=20, ready_s=0.3)
    result = make_backend(tmp_path, pair).execute(make_plan(make_session(0, [*late, *A])), [*late, *A])
    (session,) = result.sessions
    for record in result.calls:
        assert record.queued_ts == (0.3 if record.key in {call.key for call in late} else session.start_ts)
        assert record.admitted_ts >= record.queued_ts


def test_started_again_it_asks_nobody_and_says_the_same(pair, tmp_path):
    backend = make_backend(tmp_path, pair)
    first = backend.execute(PLAN, CALLS)
    entries = finished_once(tmp_path, CALLS)
    for server in pair:
        server.close()
    again = make_backend(tmp_path, pair)
    assert again.execute(PLAN, CALLS) == first
    assert again.responses() == backend.responses() == entries


def test_what_decides_a_response_decides_whether_it_counts(pair, tmp_path):
    make_backend(tmp_path, pair).execute(PLAN, CALLS)
    make_backend(tmp_path, pair, max_in_flight=1).execute(PLAN, CALLS)
    assert len(journal_of(tmp_path).ended) == 40
    moved = [
        replace(server.endpoint, base_url=server.endpoint.base_url.replace("127.0.0.1", "LOCALHOST")) for server in pair
    ]
    make_backend(tmp_path, pair, endpoints=moved).execute(PLAN, CALLS)
    assert len(journal_of(tmp_path).ended) == 40, "where a server is does not decide"
    make_backend(tmp_path, pair, root_seed=1).execute(PLAN, CALLS)
    assert len(journal_of(tmp_path).ended) == 80
    asked = [replace(server.endpoint, api="completions") for server in pair]
    make_backend(tmp_path, pair, endpoints=asked).execute(PLAN, CALLS)
    assert len(journal_of(tmp_path).ended) == 120


class Canceller:
    def __init__(self, cancels=None):
        self.cancels, self.heard = cancels or {}, []

    def on_finish(self, record):
        self.heard.append(record)
        return [Cancel(key) for key in self.cancels.get(record.key, ())]


def test_a_listener_hears_every_finish_and_again_when_started_again(pair, tmp_path):
    listener, again = Canceller(), Canceller()
    result = make_backend(tmp_path, pair).execute(PLAN, CALLS, listener)
    assert sorted(listener.heard) == sorted(result.calls)
    for session in range(4):
        instants = [record.finished_ts for record in listener.heard if record.session == session]
        assert instants == sorted(instants)
    make_backend(tmp_path, pair).execute(PLAN, CALLS, again)
    assert sorted(again.heard) == sorted(result.calls)


def test_cancels_reach_calls_under_way_and_calls_of_later_sessions(tmp_path):
    running, later = A[1].key, A[15].key

    def behave(body, number):
        return "wait" if prompt_of(body) == "question A1" else completion(body)

    with serving(Server("A", behave), Server("B")) as servers:
        listener = Canceller({A[5].key: [running, later, A[5].key]})
        backend = make_backend(tmp_path, servers)
        result = backend.execute(PLAN, CALLS, listener)
        assert servers[0].left.wait(10), "the request was not broken off"
        assert "question A15" not in servers[0].prompts()
    cancelled = {record.key: record for record in result.calls if record.status is CallStatus.CANCELLED}
    assert cancelled.keys() == {running, later}
    assert {(action.kind, action.call, action.ts) for action in result.actions} == {
        ("cancel", key, record.finished_ts) for key, record in cancelled.items()
    }
    assert cancelled[running].admitted_ts is not None
    assert cancelled[later].admitted_ts is None
    assert len(result.calls) == 40
    with pytest.raises(BackendError, match="Cancel must name a call of the plan, got nobody/propose/0"):
        make_backend(tmp_path, servers).execute(PLAN, CALLS, Canceller({A[5].key: [make_call("nobody").key]}))


def test_a_session_whose_calls_are_all_cancelled_is_never_opened(pair, tmp_path):
    calls = [*A[:1], *A[12:], *B]
    plan = make_plan(make_session(3, A[:1]), make_session(0, A[12:]), make_session(1, B, workers=(1,), after=(0,)))
    listener = Canceller({A[0].key: [call.key for call in A[12:]]})
    result = make_backend(tmp_path, pair).execute(plan, calls, listener)
    assert [record.session for record in result.sessions] == [3, 1]


@pytest.mark.parametrize(
    ("plan", "calls", "message"),
    [
        (
            make_plan(make_session(0, A, workers=(1,))),
            A,
            "session 0 of 'A': worker 1 must serve it, but http://127.*'B'",
        ),
        (make_plan(make_session(0, A, workers=(2,))), A, r"worker must be one of 0 .. 1 of .*, got 2"),
        (make_plan(make_session(0, A)), CALLS, "plan drops 20 calls"),
        (make_plan(make_session(0, A, after=(1,)), make_session(1, A[:1])), A, "A0/propose/0 is not .* served twice"),
    ],
)
def test_a_plan_that_cannot_be_run_is_refused_and_nobody_is_asked(pair, tmp_path, plan, calls, message):
    with pytest.raises(BackendError, match=message):
        make_backend(tmp_path, pair).execute(plan, calls)
    assert pair[0].posts == pair[1].posts == []


def test_a_session_over_two_servers_is_refused(pair, tmp_path):
    experts = [make_expert("A", tp_degree=2), make_expert("B")]
    with pytest.raises(BackendError, match=r"workers must be one, got \(0, 1\): a server is one worker"):
        make_backend(tmp_path, pair, experts=experts).execute(make_plan(make_session(0, A, workers=(0, 1))), A)


def test_states_are_told_to_whoever_watches(pair, tmp_path):
    states = []
    make_backend(tmp_path, pair, on_state=states.append).execute(PLAN, CALLS)
    assert {(state.workers, state.expert) for state in states} == {((0,), "A"), ((1,), "B")}
    last = {state.session: state for state in states}
    assert {number: (state.phase, state.num_calls, state.num_ended) for number, state in last.items()} == {
        3: ("idle", 12, 12), 1: ("idle", 20, 20), 0: ("idle", 8, 8),
    }  # fmt: skip
    assert last[1].output_tokens == sum(1 + response_seed(0, call.key) % 20 for call in B)


# What is asked.


def test_requests_carry_the_executors_seeds_and_limits(pair, tmp_path):
    make_backend(tmp_path, pair, root_seed=5).execute(PLAN, CALLS)
    assert {headers["Content-Type"] for _, _, headers in pair[0].posts} == {"application/json"}
    posts = {prompt_of(body): (path, body) for path, body, _ in pair[0].posts}
    assert len(posts) == 20
    for call in A:
        path, body = posts[f"question {call.key.question}"]
        assert path == "/v1/chat/completions"
        assert body == {
            "model": "model-A", "messages": [{"role": "user", "content": f"question {call.key.question}"}],
            "seed": response_seed(5, call.key), "temperature": 0.7, "max_tokens": 4096, "top_p": 1.0, "stream": False,
            "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "return_token_ids": True,
        }  # fmt: skip


def test_token_ids_and_texts_without_a_template_go_to_completions(pair, tmp_path):
    endpoints = [replace(pair[0].endpoint, api=Api.COMPLETIONS, is_vllm=False), pair[1].endpoint]
    prompts = {A[0].key: (3, 1, 4)}
    backend = make_backend(tmp_path, pair, endpoints=endpoints, prompts=lambda call: prompts.get(call.key, "hi"))
    backend.execute(make_plan(make_session(0, A[:2])), A[:2])
    bodies = {body["seed"]: (path, body) for path, body, _ in pair[0].posts}
    path, ids = bodies[response_seed(0, A[0].key)]
    _, text = bodies[response_seed(0, A[1].key)]
    assert (path, ids["prompt"], text["prompt"]) == ("/v1/completions", [3, 1, 4], "User: hi\n\nAssistant:")
    assert {"top_k", "min_p", "repetition_penalty", "return_token_ids"}.isdisjoint(ids)
    assert backend.responses()[A[0].key].token_ids == ()


def test_no_more_requests_are_under_way_than_allowed_and_no_fewer(tmp_path):
    together = threading.Barrier(4)

    def behave(body, number):
        together.wait(20)
        time.sleep(0.1)  # one request too many would come in this time
        return completion(body)

    _, result, server = one_server(tmp_path, behave, max_in_flight=4)
    assert server.most_in_flight == 4
    assert {record.status for record in result.calls} == {CallStatus.FINISHED}


def test_answers_are_read_from_the_texts(tmp_path):
    questions = {
        call.key.question: Question(id=call.key.question, prompt_tokens=9, answer_kind=AnswerKind.CHOICE, num_options=4)
        for call in A[:19]
    }
    _, result, _ = one_server(tmp_path, None, questions=questions)
    for record in result.calls:
        wanted = "ABCD"[response_seed(0, record.key) % 4] if record.key.question in questions else None
        assert record.answer == wanted


@pytest.mark.parametrize(
    ("message", "opened", "text", "visible"),
    [
        ({"content": "C."}, False, "C.", 9),
        ({"content": "C."}, True, "C.", 0),
        ({"content": "B?</think>C."}, True, "B?</think>C.", None),
        ({"content": "C.", "reasoning": "B?"}, False, "<think>B?</think>C.", None),
        ({"content": None, "reasoning_content": "B?"}, False, "<think>B?", 0),
        ({"content": None}, False, "", 9),
    ],
)
def test_thinking_is_told_from_what_is_said(message, opened, text, visible):
    content = {"choices": [{"message": message}], "usage": {"prompt_tokens": 1, "completion_tokens": 9}}
    reply = read_reply(content, thinking_opened=opened)
    assert (reply.text, reply.visible_tokens, reply.thinking_opened) == (text, visible, opened)


# What goes wrong.


def first_time(*answers):
    """Misbehave for A3 as often as there are answers, then serve."""
    return lambda body, number: (
        answers[number] if prompt_of(body) == "question A3" and number < len(answers) else completion(body)
    )


ERROR = {"error": {"message": "too\n many"}}


@pytest.mark.parametrize(
    "answers",
    [
        [(500, ERROR), (503, ERROR)],
        [(429, ERROR, {"Retry-After": 0}), (408, ERROR)],
        [None, (502, b"<html>")],
        [(200, b"{", {"Content-Length": 99})],
    ],
)
def test_what_may_pass_is_tried_again(tmp_path, answers):
    _, result, server = one_server(tmp_path, first_time(*answers))
    assert server.prompts()["question A3"] == len(answers) + 1
    assert sum(server.prompts().values()) == 20 + len(answers)
    assert {record.key: record.attempt for record in result.calls if record.attempt} == {A[3].key: len(answers)}
    assert {record.status for record in result.calls} == {CallStatus.FINISHED}
    seeds = {body["seed"] for _, body, _ in server.posts if prompt_of(body) == "question A3"}
    assert seeds == {response_seed(0, A[3].key)}
    finished_once(tmp_path, A)


def test_a_server_that_names_its_time_is_given_it(tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(EndpointPatience, "wait_s", lambda self, *told: waits.append(told) or 0.0)
    one_server(tmp_path, first_time((429, ERROR, {"Retry-After": 7}), (503, ERROR, {"Retry-After": "Sat, 1 Jan"})))
    assert waits == [(0, 7.0), (1, None)]


@pytest.mark.parametrize(
    ("answer", "tries", "cause"),
    [
        ((500, ERROR), 3, "500 Internal Server Error: too many (tried 3 times)"),
        ((429, {"detail": "slow down"}), 3, "429 Too Many Requests: slow down (tried 3 times)"),
        ((503, b"over  loaded"), 3, "503 Service Unavailable: over loaded (tried 3 times)"),
        (None, 3, "the connection broke: Remote end closed connection without response (tried 3 times)"),
        ((400, ERROR), 1, "400 Bad Request: too many"),
        ((302, b""), 1, "302 Found: "),
        ((200, b"hello"), 1, "the reply is no JSON: b'hello'"),
        (
            {"choices": []},
            1,
            "the reply is no completion with its token counts (IndexError('list index out of range'))",
        ),
        ([], 1, "the reply is no completion with its token counts (TypeError("),
    ],
)
def test_a_call_that_cannot_be_served_fails_alone_with_its_cause(tmp_path, answer, tries, cause):
    backend, result, server = one_server(tmp_path, first_time(*[answer] * 9))
    assert [record.key for record in result.calls if record.status is CallStatus.FAILED] == [A[3].key]
    entry = backend.responses()[A[3].key]
    assert entry.error.startswith(f"A at http://127.0.0.1:{server.port}/v1: {cause}".strip())
    assert "\n" not in entry.error
    assert server.prompts()["question A3"] == tries
    assert len(result.calls) == 20
    assert backend.dead_workers == {}
    _, again, _ = one_server(tmp_path, None)
    assert {record.status for record in again.calls} == {CallStatus.FINISHED}, "it is tried again in a later run"


def test_a_server_that_says_nothing_is_not_waited_for_for_ever(tmp_path):
    patience = EndpointPatience(reply_timeout_s=0.5, max_retries=1, first_wait_s=0.01)
    backend, result, server = one_server(tmp_path, first_time("wait", "wait"), patience=patience)
    assert server.left.wait(10)
    assert backend.responses()[A[3].key].error.endswith("no reply in 0.5 s (tried 2 times)")
    assert sum(record.status is CallStatus.FINISHED for record in result.calls) == 19


def test_a_server_that_is_down_is_named_before_anything_is_asked(pair, tmp_path):
    pair[1].close()
    cause = f"B at http://127.0.0.1:{pair[1].port}/v1: cannot be reached: Connection refused; is the server running?"
    with pytest.raises(BackendError) as error:
        make_backend(tmp_path, pair).execute(PLAN, CALLS)
    assert str(error.value) == f"{cause} (tried 3 times)"
    assert pair[0].posts == []
    only_a = make_plan(make_session(0, A))
    assert len(make_backend(tmp_path, pair).execute(only_a, A).calls) == 20, "a server that is not needed may be down"


def test_a_server_that_goes_away_leaves_its_calls_to_a_new_plan(tmp_path):
    servers = []
    gone = threading.Event()

    def behave(body, number):
        if prompt_of(body) == "question A2":
            return "wait"
        if prompt_of(body) == "question A10" and not gone.is_set():
            gone.set()
            servers[0].close()
        return completion(body) if not gone.is_set() else None

    def behave_other(body, number):
        assert prompt_of(body) != "question B19" or servers[0].left.wait(20), "what is given up must be broken off"
        return completion(body)

    with serving(Server("B", behave_other)) as (other,), serving(Server("A")) as (spare,):
        servers.append(Server("A", behave))
        states = []
        backend = make_backend(tmp_path, [servers[0], other], max_in_flight=2, on_state=states.append)
        result = backend.execute(PLAN, CALLS)
        assert backend.dead_workers.keys() == {0}
        lost = [(state.workers, state.phase, state.cause) for state in states if state.cause is not None]
        assert lost == [((0,), "idle", backend.dead_workers[0])]
        assert backend.dead_workers[0].endswith(
            "cannot be reached: Connection refused; is the server running? (tried 3 times)"
        )
        left = calls_left(CALLS, result)
        assert [call.key for call in left] == [call.key for call in [A[2], *A[10:]]]
        assert {record.status for record in result.calls} == {CallStatus.FINISHED}
        assert sorted(record.session for record in result.sessions) == [1, 3]
        endpoints = [replace(spare.endpoint, model="model-A"), other.endpoint]
        again = make_backend(tmp_path, [], endpoints=endpoints)
        whole = again.execute(make_plan(make_session(7, A), make_session(8, B, workers=(1,))), CALLS)
        assert len(whole.calls) == 40
        assert again.dead_workers == {}
        assert sum(spare.prompts().values()) == 11
    finished_once(tmp_path, CALLS)


def test_a_model_that_the_server_does_not_know_is_refused(pair, tmp_path):
    wrong = replace(pair[0].endpoint, model="other")
    backend = make_backend(tmp_path, pair, endpoints=[wrong, pair[1].endpoint])
    with pytest.raises(
        BackendError, match=r"A at http://.*: model must be one that it serves, \['model-A'\], got 'other'"
    ):
        backend.execute(PLAN, CALLS)
    pair[0].model = None
    assert len(backend.execute(PLAN, CALLS).calls) == 40, "a server that lists nothing is taken at its word"


def test_keys_come_from_the_environment_and_go_nowhere_else(pair, tmp_path, monkeypatch):
    monkeypatch.delenv("KEY_OF_A", raising=False)
    endpoints = [replace(pair[0].endpoint, api_key_env="KEY_OF_A"), pair[1].endpoint]
    backend = make_backend(tmp_path, pair, endpoints=endpoints)
    with pytest.raises(BackendError, match="A at http://.*: environment variable KEY_OF_A must hold its API key"):
        backend.execute(PLAN, CALLS)
    monkeypatch.setenv("KEY_OF_A", "s3cret")
    pair[0].behave = lambda body, number: (401, {"error": {"message": "Incorrect API key: s3cret"}})
    backend.execute(PLAN, CALLS)
    assert {headers.get("Authorization") for _, _, headers in pair[0].posts} == {"Bearer s3cret"}
    assert {headers.get("Authorization") for _, _, headers in pair[1].posts} == {None}
    assert backend.responses()[A[0].key].error.endswith("401 Unauthorized: Incorrect API key: (key)")
    assert not any(b"s3cret" in path.read_bytes() for path in (tmp_path / "journal").iterdir())


def test_ctrl_c_breaks_off_what_is_under_way_and_says_what_is_kept(tmp_path):
    class Interrupting(Canceller):
        def on_finish(self, record):
            raise KeyboardInterrupt

    behave = first_time("wait", "wait")
    with serving(Server("A", behave), Server("B")) as servers:
        backend = make_backend(tmp_path, servers)
        with pytest.raises(KeyboardInterrupt, match=r"^stopped; \d+ of 40 calls are in .*journal$"):
            backend.execute(PLAN, CALLS, Interrupting())
        assert servers[0].left.wait(10)
        kept = len(journal_of(tmp_path).ended)
        assert 1 <= kept < 40
        servers[0].behave = lambda body, number: completion(body)
        assert len(backend.execute(PLAN, CALLS).calls) == 40
    finished_once(tmp_path, CALLS)


def test_a_run_that_was_interrupted_goes_on_on_the_same_clock(pair, tmp_path):
    class Breaking(Canceller):
        def on_finish(self, record):
            raise RuntimeError("the listener broke")

    backend = make_backend(tmp_path, pair, max_in_flight=2)
    with pytest.raises(RuntimeError, match="the listener broke"):
        backend.execute(PLAN, CALLS, Breaking())
    last_ts = journal_of(tmp_path).last_ts
    before = {entry.key for entry in journal_of(tmp_path).ended}
    result = backend.execute(PLAN, CALLS)
    new = [record for record in result.calls if record.key not in before]
    assert new
    assert min(record.queued_ts for record in new) >= last_ts
    assert {record.attempt for record in new if record.session in (1, 3)} == {1}
    assert {record.attempt for record in new if record.session == 0} == {0}
    finished_once(tmp_path, CALLS)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"base_url": "localhost:8000"}, ValueError, "endpoint of 'A': base_url must be a URL such as"),
        ({"base_url": "http://me:pass@host/v1"}, ValueError, "without a user, a key or a query, got 'host/v1'"),
        ({"base_url": "http://host:99999/v1"}, ValueError, "base_url must be a URL"),
        ({"base_url": 5}, TypeError, "base_url must be a string"),
        ({"model": " "}, ValueError, "endpoint.model must be a non-empty string"),
        ({"api": "soap"}, ValueError, r"api must be one of \['chat', 'completions'\], got 'soap'"),
        ({"api_key_env": "sk-123"}, ValueError, "api_key_env must be the name of an environment variable"),
    ],
)
def test_endpoints_are_checked(changes, error, message):
    with pytest.raises(error, match=message) as raised:
        Endpoint(**{"base_url": "http://localhost:8000/v1", "expert": "A", "model": "m", **changes})
    assert "pass" not in str(raised.value)
    assert "sk-123" not in str(raised.value)


def test_backends_are_checked(pair, tmp_path):
    a, b = (server.endpoint for server in pair)
    with pytest.raises(ValueError, match="endpoints must be one for each of the 2 workers, got 1"):
        make_backend(tmp_path, pair, endpoints=[a], cluster=make_cluster(2))
    with pytest.raises(ValueError, match=r"endpoint.expert must be one of \['A', 'B'\], got 'Z'"):
        make_backend(tmp_path, pair, endpoints=[a, replace(b, expert="Z")])
    with pytest.raises(ValueError, match="endpoints of 'A' must be asked alike"):
        make_backend(tmp_path, pair, endpoints=[a, replace(a, model="other")])
    with pytest.raises(ValueError, match="max_in_flight must be at least 1"):
        make_backend(tmp_path, pair, max_in_flight=0)
    with pytest.raises(ValueError, match="patience.reply_timeout_s must be above 0"):
        EndpointPatience(reply_timeout_s=0)
    assert a.base_url.endswith("/v1")
