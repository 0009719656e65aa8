"""Calls on a server that misbehaves to order, through the engine that a worker would open."""

import threading
import time
from dataclasses import replace
from http import HTTPStatus

import pytest

from mosaic.core.errors import BackendError, FatalEngineError, OutageError
from mosaic.engines import endpoint_engine
from mosaic.engines.endpoint import Api, Endpoint, EndpointEngines, EndpointPatience
from mosaic.engines.endpoint_client import Pace, Tries
from mosaic.engines.endpoint_engine import is_device_lost
from mosaic.engines.endpoint_faults import fault_of
from mosaic.engines.endpoint_messages import response_of
from mosaic.engines.engine import Output
from mosaic.engines.launcher import Patience
from tests.engines.engine_calls import make_request, make_spec, opened_engine, serve, some_requests
from tests.engines.fake_server import (
    DROP,
    WAIT,
    FakeServer,
    always,
    completion,
    first_time,
    prompt_of,
    serving,
    text_of,
    tokens_of,
)
from tests.factories import make_cluster, make_expert

QUICK = EndpointPatience(connect_timeout_s=5, reply_timeout_s=20, max_retries=2, first_wait_s=0.01)
REQUESTS = some_requests(20)
ERROR = {"error": {"message": "too\n many"}}


def opened(server, *, patience=QUICK, max_in_flight=64, context_tokens=32768, **changes):
    """An engine on a server; changes are those of the endpoint."""
    settings = EndpointEngines(
        endpoints=(replace(server.endpoint, **changes),), patience=patience, max_in_flight=max_in_flight
    )
    return opened_engine(replace(make_spec(settings), context_tokens=context_tokens))


def ask(behave, requests=REQUESTS, **changes):
    """Serve requests on one server; gives the outputs by key, and what the server got."""
    with serving(FakeServer("A", behave)) as (server,), opened(server, **changes) as engine:
        return serve(engine, requests), server


def fatal(behave, requests=REQUESTS, **changes):
    """Let all be lost; gives the error's message, and what the server got."""
    with serving(FakeServer("A", behave)) as (server,), opened(server, **changes) as engine:
        with pytest.raises(FatalEngineError) as raised:
            serve(engine, requests)
        assert not is_device_lost(raised.value)
        with pytest.raises(FatalEngineError):
            engine.step()
        return str(raised.value), server


# What is asked, and what comes back.


def test_every_request_is_answered_once():
    before_ts = time.monotonic()
    responses, server = ask(None)
    assert responses.keys() == {request.key for request in REQUESTS}
    assert set(server.prompts().values()) == {1}
    for request in REQUESTS:
        response = responses[request.key]
        tokens = tokens_of(request.seed)
        assert (response.text, response.token_ids) == (text_of(request.seed), tuple(tokens))
        assert (response.output_tokens, response.visible_tokens) == (len(tokens), len(tokens))
        assert (response.prompt_tokens, response.cached_tokens, response.num_preemptions) == (7, 3, 0)
        assert (response.finish_reason, response.error, response.num_retries) == ("stop", None, 0)
        assert response.first_token_ts is None
        assert before_ts < response.scheduled_ts < response.last_token_ts < time.monotonic()


def test_requests_carry_seed_and_limits():
    _, server = ask(None)
    assert {headers["Content-Type"] for _, _, headers in server.posts} == {"application/json"}
    posts = {prompt_of(body): (path, body) for path, body, _ in server.posts}
    assert len(posts) == 20
    for request in REQUESTS:
        path, body = posts[request.prompt]
        assert path == "/v1/chat/completions"
        assert body == {
            "model": "model-A", "messages": [{"role": "user", "content": request.prompt}],
            "seed": request.seed, "temperature": 0.7, "max_tokens": 4096, "top_p": 1.0, "stream": False,
            "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "return_token_ids": True,
        }  # fmt: skip


def test_token_ids_and_texts_without_a_template_go_to_completions():
    requests = [make_request(0, prompt=(3, 1, 4)), make_request(1, prompt="hi")]
    responses, server = ask(None, requests, api=Api.COMPLETIONS, is_vllm=False)
    (path, ids), (other, text) = sorted(((path, body) for path, body, _ in server.posts), key=lambda p: p[1]["seed"])
    assert (path, other) == ("/v1/completions", "/v1/completions")
    assert (ids["prompt"], text["prompt"]) == ([3, 1, 4], "User: hi\n\nAssistant:")
    assert {"top_k", "min_p", "repetition_penalty", "return_token_ids"}.isdisjoint(ids)
    assert responses[0].token_ids == (), "this server does not give them, and counts them all the same"
    assert responses[0].output_tokens == len(tokens_of(requests[0].seed))
    _, server = ask(None, requests[:1])
    assert server.posts[0][0] == "/v1/completions", "whatever the API for texts"


def test_what_was_written_before_is_gone_on_from_where_a_server_can():
    written = (5, 6, 7)
    ids = make_request(0, prompt=(3, 1, 4), generated=written, max_output_tokens=40)
    responses, server = ask(None, [ids, make_request(1, generated=written)])
    bodies = {body["seed"]: body for _, body, _ in server.posts}
    assert (bodies[ids.seed]["prompt"], bodies[ids.seed]["max_tokens"]) == ([3, 1, 4, 5, 6, 7], 37)
    assert responses[0].token_ids == (*written, *tokens_of(ids.seed))
    assert responses[0].output_tokens == 3 + len(tokens_of(ids.seed))
    assert (responses[0].prompt_tokens, responses[0].text, responses[0].visible_tokens) == (7 - 3, None, None)
    chat = responses[1]
    assert (chat.token_ids, chat.text) == (tuple(tokens_of(chat.key + 1000)), text_of(chat.key + 1000))
    responses, server = ask(None, [ids], is_vllm=False)
    assert server.posts[0][1]["prompt"] == [3, 1, 4], "without token ids in the reply the two parts cannot be joined"
    assert responses[0].text is not None
    responses, _ = ask(lambda body, number: completion(body | {"return_token_ids": False}), [ids])
    assert (responses[0].token_ids, responses[0].output_tokens) == ((), 3 + len(tokens_of(ids.seed))), "not a part"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output_tokens": 5}, "output_tokens must be None: servers do not write to length, got 5"),
        ({"prompt": ()}, "prompt must be at least one token"),
        (
            {"prompt": (1,), "generated": (2, 3), "max_output_tokens": 2},
            "generated must be fewer than max_output_tokens=2, got 2",
        ),
    ],
)
def test_what_servers_do_not_do_is_refused_and_the_engine_stays_usable(changes, message):
    with serving(FakeServer("A")) as (server,), opened(server) as engine:
        with pytest.raises(ValueError, match=message):
            engine.submit(make_request(0, **changes))
        assert serve(engine, [make_request(0)])[0].error is None


def test_no_more_requests_are_under_way_than_allowed_and_no_fewer():
    together = threading.Barrier(4)

    def behave(body, number):
        together.wait(20)
        time.sleep(0.1)  # one request too many would come in this time
        return completion(body)

    responses, server = ask(behave, max_in_flight=4)
    assert server.most_in_flight == 4
    assert {response.error for response in responses.values()} == {None}


def test_a_step_in_which_nothing_ends_is_short_and_submitting_waits_for_nothing():
    with serving(FakeServer("A", always(WAIT))) as (server,), opened(server) as engine:
        started_ts = time.monotonic()
        for request in REQUESTS:
            engine.submit(request)
        assert time.monotonic() - started_ts < 0.1
        assert list(engine.step()) == []
        assert 0.5 * endpoint_engine.STEP_S < time.monotonic() - started_ts < 1
        assert engine.progress() == {}


@pytest.mark.parametrize(
    ("message", "opens_thinking", "text", "visible"),
    [
        ({"content": "C."}, False, "C.", 9),
        ({"content": "C."}, True, "C.", 0),
        ({"content": "B?</think>C."}, True, "B?</think>C.", None),
        ({"content": "C.", "reasoning": "B?"}, False, "<think>B?</think>C.", None),
        ({"content": None, "reasoning_content": "B?"}, False, "<think>B?", 0),
        ({"content": ""}, False, "", 9),
    ],
)
def test_thinking_is_told_from_what_is_said(message, opens_thinking, text, visible):
    endpoint = Endpoint(base_url="http://localhost/v1", expert="A", model="m", opens_thinking=opens_thinking)
    content = {"choices": [{"message": message}], "usage": {"prompt_tokens": 1, "completion_tokens": 9}}
    response = response_of(content, make_request(0), Tries(), endpoint, context_tokens=4096)
    assert (response.text, response.visible_tokens, response.thinking_opened) == (text, visible, opens_thinking)


def test_only_a_chat_opens_thinking():
    responses, _ = ask(None, [make_request(0), make_request(1, prompt=(3, 1))], opens_thinking=True)
    assert [responses[number].thinking_opened for number in (0, 1)] == [True, False]


# What goes wrong with one call.


@pytest.mark.parametrize(
    "answers",
    [
        [(500, ERROR), (503, ERROR)],
        [(429, ERROR, {"Retry-After": 0}), (408, ERROR)],
        [DROP, (502, b"<html>")],
        [(200, b"{", {"Content-Length": 99})],
    ],
)
def test_what_may_pass_is_tried_again(answers):
    responses, server = ask(first_time("question 3", *answers))
    assert server.prompts()["question 3"] == len(answers) + 1
    assert sum(server.prompts().values()) == 20 + len(answers)
    retries = {number: response.num_retries for number, response in responses.items() if response.num_retries}
    assert retries == {3: len(answers)}
    assert {response.error for response in responses.values()} == {None}
    assert {body["seed"] for _, body, _ in server.posts if prompt_of(body) == "question 3"} == {REQUESTS[3].seed}


def test_a_call_is_scheduled_when_the_try_that_counts_is_sent():
    patience = replace(QUICK, first_wait_s=0.2)
    responses, _ = ask(first_time("question 3", (500, ERROR)), patience=patience)
    others = [response.scheduled_ts for response in responses.values() if response.key != 3]
    assert responses[3].scheduled_ts >= min(others) + 0.2


def test_a_server_that_names_its_time_is_given_it(monkeypatch):
    waits = []
    monkeypatch.setattr(EndpointPatience, "wait_s", lambda self, number: waits.append(number) or 0.0)
    answers = [(429, ERROR, {"Retry-After": "0.3"}), (503, ERROR, {"Retry-After": "0.1"}), (503, ERROR), (429, ERROR)]
    responses, server = ask(first_time("question 3", *answers), REQUESTS[3:4])
    assert waits == [0, 0], "of the 503 and of the 429 that name none"
    assert responses[3].num_retries == 4
    assert responses[3].scheduled_ts - server.first_ts >= 0.4


def test_no_more_is_sent_in_a_minute_than_a_server_allows():
    now = 1000.0
    pace = Pace(Endpoint(base_url="http://h/v1", expert="A", model="m", max_requests_per_min=2, max_tokens_per_min=100))
    assert pace.wait_s(now, 30) == 0
    first = pace.count(now, 30)
    pace.settle(first, 80)
    assert pace.wait_s(now + 5, 30) == 55, "another one is expected to take 80 tokens too"
    pace.count(now + 60, 30)
    assert pace.wait_s(now + 60, 30) == 60
    few = Pace(Endpoint(base_url="http://h/v1", expert="A", model="m", max_requests_per_min=2))
    for ts in (now, now + 20):
        few.count(ts, 10**6)
    assert few.wait_s(now + 30, 10**6) == 30
    large = Pace(Endpoint(base_url="http://h/v1", expert="A", model="m", max_tokens_per_min=10))
    assert large.wait_s(now, 50) == 0, "what is larger than a minute's tokens is sent alone"


def no_reply(cause):
    return f"the reply is no completion with its token counts ({cause}"


@pytest.mark.parametrize(
    ("answer", "tries", "cause"),
    [
        ((500, ERROR), 6, "500 Internal Server Error: too many (tried 6 times)"),
        ((503, b"over  loaded"), 6, "503 Service Unavailable: over loaded (tried 6 times)"),
        (DROP, 6, "the connection broke: Server disconnected (tried 6 times)"),
        ((400, ERROR), 1, "400 Bad Request: too many"),
        ((403, {"message": "flagged by moderation"}), 1, "403 Forbidden: flagged by moderation"),
        ((302, b"", {"Location": "/v1/models"}), 6, "302 Found: it redirects to /v1/models"),
        ((200, b"hello"), 6, "the reply is no JSON: b'hello'"),
        ((200, b"[" * 100_000), 6, "the reply is no JSON: b'[[["),
        ({"choices": []}, 1, no_reply("IndexError('list index out of range'))")),
        ({"choices": [{"message": {"content": "A"}}]}, 1, no_reply("KeyError('usage'")),
        ({"error": {"message": "overloaded"}}, 1, no_reply("KeyError(")),
        ([], 1, no_reply("TypeError(")),
        ({"choices": [{"text": 5}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}, 1, no_reply("Attr")),
    ],
)
def test_a_call_that_cannot_be_served_fails_alone_with_its_cause(answer, tries, cause):
    served = threading.Event()

    def behave(body, number):
        if prompt_of(body) == "question 3":
            served.wait(20)
            time.sleep(0.2 if number == 0 else 0.0)  # by then it is known that the server serves
            return answer
        served.set()
        time.sleep(0.15 if tries > 1 else 0.0)  # so that others are sent after each failure
        return completion(body)

    responses, server = ask(behave, max_in_flight=4)
    assert [number for number, response in responses.items() if response.error is not None] == [3]
    assert responses[3].error.startswith(f"A at http://127.0.0.1:{server.port}/v1: {cause}")
    assert "\n" not in responses[3].error
    assert len(responses[3].error) <= 300
    assert (responses[3].token_ids, responses[3].num_written, responses[3].num_retries) == ((), 0, tries - 1)
    assert server.prompts()["question 3"] == tries
    assert len(responses) == 20


def no_count(name, low, high, got):
    return f"the reply cannot be true: {name} must be a whole number in {low} .. {high}, got {got}"


@pytest.mark.parametrize(
    ("reply", "cause"),
    [
        *(({"completion_tokens": n}, no_count("completion_tokens", 1, 4096, n)) for n in (-1, 4097, 0, 2.5, None)),
        *(({"prompt_tokens": n}, no_count("prompt_tokens", 0, 16394, n)) for n in (-7, 1000000, True)),
        ({"completion_tokens": 30}, no_count("len(token_ids)", 30, 30, 4)),
        ({"prompt_tokens_details": {"cached_tokens": 8}}, no_count("cached_tokens", 0, 7, 8)),
        (
            {"prompt_tokens": 8189},
            "the reply cannot be true: prompt_tokens and completion_tokens must be at most context_tokens=8192 "
            "together, got 8189 and 4; if the server has more context, raise the expert's context_tokens",
        ),
        *(
            ({"finish_reason": reason}, f"the server ended the response for {reason}")
            for reason in ("content_filter", "abort", "content_filter: SAFETY", "tool_calls", ["stop"])
        ),
        ({"message": {"content": [{"text": "C."}]}}, "the reply's content must be a text, got [{'text': 'C.'}]"),
        ({"message": {"content": "C.", "reasoning": 5}}, "the reply's reasoning must be a text, got 5"),
        ({"message": {"content": None}}, "the reply is empty: its content is null, and there is no reasoning"),
        ({"message": {"content": None, "refusal": "I cannot."}}, "the server refused: I cannot."),
        ({"message": {"content": "\ud800"}}, no_reply("UnicodeEncodeError(")),
    ],
)
def test_a_reply_that_is_not_whole_or_cannot_be_true_fails_its_call_alone(reply, cause):
    behave = lambda body, number: completion(body, **(reply if body["seed"] == 1003 else {}))  # noqa: E731
    responses, _ = ask(behave, context_tokens=8192)
    assert f"/v1: {cause}" in responses.pop(3).error
    assert {response.error for response in responses.values()} == {None}


@pytest.mark.parametrize("reason", [None, "stop", "length", "eos_token", "stop_sequence"])
def test_a_response_that_ended_by_itself_or_at_its_limit_is_whole(reason):
    responses, _ = ask(lambda body, number: completion(body, finish_reason=reason), REQUESTS[:1])
    assert (responses[0].error, responses[0].finish_reason) == (None, reason or "")


def test_a_response_may_fill_the_context_and_no_more():
    tokens = len(tokens_of(REQUESTS[3].seed))
    assert ask(None, [REQUESTS[3]], context_tokens=7 + tokens)[0][3].error is None
    assert "must be at most context_tokens" in fatal(None, [REQUESTS[3]], context_tokens=6 + tokens)[0]


def test_an_aborted_request_is_broken_off_at_once_and_the_others_go_on():
    with serving(FakeServer("A", first_time("question 3", WAIT))) as (server,), opened(server) as engine:
        before_ts = time.monotonic()
        served = serve(engine, REQUESTS, until=19)
        assert 3 not in served
        gone = engine.abort(3)
        assert server.left.wait(10), "no further step may be needed"
        assert gone._replace(scheduled_ts=None) == Output(gone.key)
        assert before_ts < gone.scheduled_ts < time.monotonic()
        assert list(engine.step()) == []
        assert serve(engine, [REQUESTS[3]._replace(key=30)])[30].error is None


def test_a_request_can_be_aborted_before_it_was_sent_and_after_it_ended():
    go = threading.Event()

    def behave(body, number):
        if prompt_of(body) == "question 0":
            go.wait(20)
            return completion(body)
        return WAIT

    with serving(FakeServer("A", behave)) as (server,), opened(server) as engine:
        engine.submit(make_request(30, prompt=(1, 2)))
        assert engine.abort(30) == Output(30, prompt_tokens=2)
        for request in REQUESTS:
            engine.submit(request)
        while len(server.posts) < 20:
            assert list(engine.step()) == []
        go.set()
        time.sleep(0.2)
        for request in reversed(REQUESTS):  # while the others are broken off, question 0 ends
            assert engine.abort(request.key).scheduled_ts is not None
        assert list(engine.step()) == []


# What is wrong with the server.

KEY = "the key (none is sent: api_key_env names the environment variable that holds it)"
CHECK_KEY = f"check {KEY}, which must be allowed to use 'model-A'"
CHECK_URL = "check base_url, which ends in /v1 on most servers, and model, got 'model-A'"
CHECK_FORM = f"set is_vllm: false if the server is not vLLM; else check model, got 'model-A', and {KEY}"
CHECK_SERVER = "look into the server's log, and start again when it serves calls"


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        ((401, {"error": {"message": "Incorrect API key"}}), f"401 Unauthorized: Incorrect API key; {CHECK_KEY}"),
        ((402, b"pay"), "402 Payment Required: pay; check the account that pays for its calls"),
        ((403, {"error": {"message": "No access"}}), f"403 Forbidden: No access; {CHECK_KEY}"),
        ((404, {"detail": "Not Found"}), f"404 Not Found: Not Found; {CHECK_URL}"),
        *(
            ((400, {"error": {"message": words}}), f"400 Bad Request: {words}; {CHECK_FORM}")
            for words in (
                "The model gpt-x does not exist", "Please pass a valid API key.",
                "Unrecognized request argument supplied: top_k",
            )
        ),
        (
            (422, {"error": {"message": "Extra inputs are not permitted", "param": "min_p"}}),
            f"422 {HTTPStatus(422).phrase}: Extra inputs are not permitted; {CHECK_FORM}",
        ),
    ],
)  # fmt: skip
def test_what_no_call_will_heal_stops_at_its_first_appearance(answer, cause):
    message, server = fatal(always(answer), max_in_flight=1)
    assert message == f"A at http://127.0.0.1:{server.port}/v1: {cause}"
    assert len(server.posts) == 1


def test_what_ended_together_with_a_fatal_error_is_told_before_it():
    go, kept = threading.Event(), {}

    def behave(body, number):
        go.wait(20)
        return completion(body) if prompt_of(body) == "question 0" else (401, ERROR)

    with serving(FakeServer("A", behave)) as (server,), opened(server) as engine:
        for request in REQUESTS[:2]:
            engine.submit(request)
        while len(server.posts) < 2:
            assert list(engine.step()) == []
        go.set()
        time.sleep(0.2)
        with pytest.raises(FatalEngineError):
            serve(engine, [], until=2, kept=kept)
    assert kept.keys() == {0}


@pytest.mark.parametrize(
    ("answer", "tries", "cause", "advice"),
    [
        ((500, {"error": "out of order"}), 3, "500 Internal Server Error: out of order (tried 3 times)", CHECK_SERVER),
        (DROP, 3, "the connection broke: Server disconnected (tried 3 times)", CHECK_SERVER),
        ((400, {"error": "no"}), 4, "400 Bad Request: no", CHECK_FORM),
        ((200, b"<html>Welcome"), 1, "the reply is no JSON: b'<html>Welcome'", CHECK_URL),
    ],
)
def test_a_server_that_serves_nobody_is_not_asked_for_ever(answer, tries, cause, advice):
    message, server = fatal(always(answer), max_in_flight=1)
    assert message == f"A at http://127.0.0.1:{server.port}/v1: {cause}; it has served no call; {advice}"
    assert len(server.posts) == tries
    message, server = fatal(always(answer), max_in_flight=6)
    assert message.startswith(f"A at http://127.0.0.1:{server.port}/v1: {cause}")
    assert len(server.prompts()) <= 6 + 3, "no more than were under way, and those that took the first refusals' place"


def ill_after(num_served, answer):
    """Serve so many posts, then give the same answer to everybody."""
    served = threading.Semaphore(num_served)
    return lambda body, number: completion(body) if served.acquire(blocking=False) else answer


@pytest.mark.parametrize(("status", "is_lost"), [(500, False), (502, True)])
@pytest.mark.parametrize("max_in_flight", [1, 4])
def test_a_server_that_serves_nobody_any_more_fails_no_call(max_in_flight, status, is_lost):
    """Others may serve what it still had, and it is not tried with all of that."""
    behave, kept = ill_after(6, (status, {"error": "CUDA error"})), {}
    with serving(FakeServer("A", behave)) as (server,), opened(server, max_in_flight=max_in_flight) as engine:
        with pytest.raises(BackendError) as raised:
            serve(engine, some_requests(40), kept=kept)
        assert is_device_lost(raised.value) == is_lost
    assert f"{status} " in str(raised.value)
    assert [response.error for response in kept.values()] == [None] * 6
    assert len(server.prompts()) <= 6 + 2 * max(max_in_flight, endpoint_engine.NUM_REFUSALS)


def test_a_server_that_served_calls_may_refuse_others():
    responses, server = ask(ill_after(6, (400, ERROR)), max_in_flight=1)
    assert sum(response.error is None for response in responses.values()) == 6
    assert len(server.prompts()) == 20


def test_a_call_that_is_served_clears_a_doubt():
    def behave(body, number):
        return completion(body) if body["seed"] % 2 == 0 else (500, ERROR)

    kept = {}
    with serving(FakeServer("A", behave)) as (server,), opened(server, max_in_flight=1) as engine:
        serve(engine, REQUESTS, until=14, kept=kept)
    assert all((response.error is None) == (number % 2 == 0) for number, response in kept.items())


@pytest.mark.slow
def test_one_bad_call_is_no_bad_server_while_others_are_under_way():
    """The worst case: it comes first, and fails for good before any other is served."""
    failed = threading.Event()

    def behave(body, number):
        if prompt_of(body) == "question 0":
            failed.set()
            return (500, ERROR)
        failed.wait(20)
        time.sleep(0.3)
        return completion(body)

    responses, server = ask(behave, max_in_flight=4)
    assert [number for number, response in responses.items() if response.error] == [0]
    assert len(server.prompts()) == 20


TOO_LONG = [
    "This model's maximum context length is 512 tokens. However, you requested 48 output tokens and your prompt "
    "contains at least 465 input tokens, for a total of at least 513 tokens. Please reduce max_tokens",
    "The decoder prompt (length 600) is longer than the maximum model length of 512.",
    "the request exceeds the available context size. try increasing the context size or enable context shift",
    "prompt is too long: 210000 tokens > 200000 maximum",
    "Token id 256 is out of vocabulary",
    "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)",
]


@pytest.mark.parametrize("words", TOO_LONG)
def test_prompts_that_are_too_long_fail_alone_even_if_they_are_all(words):
    responses, server = ask(always((400, {"error": {"message": words}})), max_in_flight=1)
    assert len(responses) == len(server.posts) == 20
    assert all(words[:60] in response.error for response in responses.values())


def test_refusals_are_told_apart_by_what_they_name():
    ours = ("model", "max_tokens", "messages", "seed")
    assert fault_of(400, '{"code": "context_length_exceeded", "message": "max_tokens"}', ours) == "prompt"
    assert fault_of(400, "max_tokens is too large: 4096. This model supports at most 512", ours) == "format"
    assert fault_of(400, "Unsupported parameter: 'max_tokens'", ours) == "format"
    assert fault_of(400, "500 tokens and max_tokens=48 exceed 512", ours) == "unknown"
    assert fault_of(400, "max_tokens_to_sample is unknown", ours) == "unknown"
    assert fault_of(400, "this model, with these messages: no", ours) == "unknown"
    assert fault_of(413, "", ours) == "prompt"


def test_a_server_that_is_down_is_named_when_it_is_opened():
    with serving(FakeServer("A")) as (server,):
        pass
    with pytest.raises(OutageError) as raised, opened(server):
        pass
    assert str(raised.value) == (
        f"A at http://127.0.0.1:{server.port}/v1: cannot be reached: Connection refused; is the server running? "
        "(tried 3 times)"
    )
    assert is_device_lost(raised.value)
    assert isinstance(raised.value, BackendError)
    assert not isinstance(raised.value, FatalEngineError)


def test_a_model_that_the_server_does_not_know_is_refused():
    with serving(FakeServer("A")) as (server,):
        wrong = r"A at http://.*: model must be one that it serves, got 'other'; it serves \['model-A'\]"
        with pytest.raises(FatalEngineError, match=wrong), opened(server, model="other"):
            pass
        for models in ((404, {"detail": "Not Found"}), (405, b""), (501, b""), {"data": []}, [], {"data": 5}):
            server.models = models
            with opened(server, model="other") as engine:
                assert serve(engine, REQUESTS[:1])[0].error is None, "a server without a list is taken at its word"


@pytest.mark.parametrize(
    ("models", "cause"),
    [
        ((401, {"error": {"message": "Invalid key"}}), "401 Unauthorized: Invalid key"),
        ((200, b"<html>"), "the reply is no JSON: b'<html>'"),
        ((500, b"broken"), r"500 Internal Server Error: broken \(tried 3 times\)"),
    ],
)
def test_a_server_that_refuses_its_list_is_refused(models, cause):
    with serving(FakeServer("A")) as (server,):
        server.models = models
        with pytest.raises(FatalEngineError, match=cause), opened(server):
            pass
        assert server.posts == []


ECHOED = "sk-0123456789abcdef"


@pytest.mark.parametrize(
    ("key", "message", "said"),
    [
        (ECHOED, {"content": f"{ECHOED} is yours. The answer is B."}, "(key) is yours. The answer is B."),
        (ECHOED, {"content": "It is B.", "reasoning": f"I got {ECHOED}."}, "<think>I got (key).</think>It is B."),
        (ECHOED, {"content": "x" * 70 + ECHOED}, "x" * 70 + "(key)"),
        ("EMPTY", {"content": "The set is EMPTY."}, "The set is EMPTY."),  # a placeholder
    ],
)
def test_a_key_that_a_server_echoes_is_in_no_response(monkeypatch, key, message, said):
    monkeypatch.setenv("KEY_OF_A", key)
    served, _ = ask(lambda body, number: completion(body, message=message), api_key_env="KEY_OF_A")
    assert {response.text for response in served.values()} == {said}
    no_json, _ = fatal(always((200, b"x" * 70 + key.encode())), api_key_env="KEY_OF_A")
    assert "no JSON" in no_json
    assert ECHOED[:6] not in no_json


def test_keys_come_from_the_environment_and_go_nowhere_else(monkeypatch):
    monkeypatch.delenv("KEY_OF_A", raising=False)
    behave = always((401, {"error": {"message": "Incorrect API key: s3cret"}}))
    with serving(FakeServer("A", behave), FakeServer("A", behave)) as (server, other):
        for key, why in ((None, "it is not set"), ("", "it is not set"), ("s3cret\n", "more than one line of ASCII")):
            if key is not None:
                monkeypatch.setenv("KEY_OF_A", key)
            wanted = f"A at http://.*: environment variable KEY_OF_A must hold its API key, .*{why}"
            with pytest.raises(FatalEngineError, match=wanted) as raised, opened(server, api_key_env="KEY_OF_A"):
                pass
            assert "s3cret" not in str(raised.value)
        monkeypatch.setenv("KEY_OF_A", "s3cret")
        with opened(server, api_key_env="KEY_OF_A") as engine, pytest.raises(FatalEngineError) as raised:
            serve(engine, REQUESTS)
        assert {headers.get("Authorization") for _, _, headers in server.posts} == {"Bearer s3cret"}
        assert str(raised.value).endswith(
            "/v1: 401 Unauthorized: Incorrect API key: (key); check the key in KEY_OF_A, which must be allowed to use "
            "'model-A'"
        )
        with opened(other) as engine, pytest.raises(FatalEngineError):
            serve(engine, REQUESTS)
        assert {headers.get("Authorization") for _, _, headers in other.posts} == {None}


# What is given.


def test_a_server_is_one_worker_and_keeps_its_expert():
    engines = EndpointEngines(endpoints=(Endpoint(base_url="http://localhost:1/v1", expert="A", model="m"),))
    workers = make_cluster(2).workers
    with pytest.raises(
        BackendError, match="worker 0 must serve 'B', but http://localhost:1/v1 serves 'A' and a server"
    ):
        engines.spec(make_expert("B"), workers[:1])
    with pytest.raises(BackendError, match=r"workers must be one, got \(0, 1\): a server is .*tp_degree to 1"):
        engines.spec(make_expert("A"), workers)
    with pytest.raises(BackendError, match=r"expert must be one that a server has, \['A'\], got 'B'"):
        engines.served(make_expert("B"))


LOCAL = {"base_url": "http://localhost:8000/v1/", "expert": "A", "model": "m"}


@pytest.mark.parametrize(
    ("kind", "values", "error", "message"),
    [
        (Endpoint, {"base_url": "localhost:8000"}, ValueError, "endpoint of 'A': base_url must be a URL such as"),
        (Endpoint, {"base_url": "http://me:pass@host/v1"}, ValueError, "without a user, a key or a query, got 'host/"),
        (Endpoint, {"base_url": "http://host:99999/v1"}, ValueError, "base_url must be a URL"),
        (Endpoint, {"base_url": 5}, TypeError, "base_url must be a string"),
        (Endpoint, {"model": " "}, ValueError, "endpoint of 'A': model must be a non-empty string"),
        (Endpoint, {"api": "soap"}, ValueError, r"api must be one of \['chat', 'completions'\], got 'soap'"),
        (Endpoint, {"api_key_env": "sk-123"}, ValueError, "api_key_env must be the name of an environment variable"),
        (Endpoint, {"max_requests_per_min": 0}, ValueError, "max_requests_per_min must be at least 1, got 0"),
        (EndpointEngines, {"max_in_flight": 0}, ValueError, "max_in_flight must be at least 1"),
        (EndpointPatience, {"reply_timeout_s": 0}, ValueError, "patience.reply_timeout_s must be above 0"),
        (Patience, {"load_timeout_s": 0}, ValueError, "patience.load_timeout_s must be above 0"),
        (Patience, {"max_retries": -1}, ValueError, "patience.max_retries must be at least 0"),
        (Patience, {"max_restarts": -1}, ValueError, "patience.max_restarts must be at least 0"),
    ],
)
def test_what_is_given_is_checked(kind, values, error, message):
    given = {Endpoint: LOCAL, EndpointEngines: {"endpoints": (Endpoint(**LOCAL),)}}.get(kind, {})
    with pytest.raises(error, match=message) as raised:
        kind(**given | values)
    assert "pass" not in str(raised.value)
    assert "sk-123" not in str(raised.value)
    assert Endpoint(**LOCAL).base_url.endswith("/v1")


def test_servers_of_one_expert_are_asked_alike():
    a = Endpoint(base_url="http://localhost:8000/v1", expert="A", model="m")
    b, moved = replace(a, expert="B"), replace(a, base_url="http://other/v1", api_key_env="KEY")
    expert = make_expert("A")
    served = EndpointEngines(endpoints=(a, b, moved)).served(expert)
    assert served == EndpointEngines(endpoints=(moved,)).served(expert)
    with pytest.raises(BackendError, match=r"expert must be one that a server has, \['B'\], got 'A'"):
        EndpointEngines(endpoints=(b,)).served(expert)
    for change in ({"model": "other"}, {"api": "completions"}, {"is_vllm": False}, {"opens_thinking": True}):
        with pytest.raises(ValueError, match="endpoints of 'A' must be called in one form"):
            EndpointEngines(endpoints=(a, replace(a, **change))).served(expert)
