"""Real vLLM with tiny random experts: the same responses however they come about, and every failure survived or said.

The rows of the table of failures that checks before loading catch are in test_checkpoints.py.
"""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from mosaic.engines.live_sessions import Patience

from mosaic.core.realization import Outcome
from mosaic.core.results import CallStatus, Cancel
from mosaic.engines.checkpoints import CheckpointError, write_manifest
from mosaic.engines.engine import EngineSettings
from mosaic.engines.host_process import VLLM_ENGINE
from tests.engines.executor_runs import (
    SETTINGS,
    finished_once,
    has_vllm,
    journal_of,
    make_checkpoint,
    make_executor,
    processes_of,
    running_host,
)
from tests.engines.killed_run import plan_of_four
from tests.engines.tiny_checkpoint import CONFIG, CONTEXT, tiny_expert, write_safetensors, write_tiny_checkpoint
from tests.factories import make_call
from tests.sim.cluster_runs import make_plan, make_session, some_calls

pytestmark = pytest.mark.skipif(not has_vllm(), reason="vLLM is not installed")

ROOT = Path(__file__).resolve().parents[2]
A, B = some_calls("A", 24), some_calls("B", 24)
ONE_RETRY = Patience(max_retries=0)
TEMPLATE = "<user>{{ messages[0].content }}</user>{% if add_generation_prompt %}<think>{% endif %}"


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        with running_host(VLLM_ENGINE) as running:
            yield running


@pytest.fixture(scope="module")
def shared(tmp_path_factory, host):
    """A run that the tests of this module compare theirs with."""
    folder = tmp_path_factory.mktemp("shared")
    executor = make_executor(folder, host)
    result = executor.execute(make_plan(make_session(0, A), make_session(1, B, workers=(1,))), [*A, *B])
    return folder, executor, result


def tokens(executor):
    return {key: entry.token_ids for key, entry in executor.responses().items() if entry.token_ids}


def test_a_live_run_records_what_the_engine_did(shared):
    _, executor, result = shared
    for record in result.calls:
        entry = executor.responses()[record.key]
        assert record.status is CallStatus.FINISHED
        assert record.prompt_tokens == len(f"User: question {record.key.question}\n\nAssistant:")
        assert record.output_tokens == len(entry.token_ids) == record.visible_tokens
        assert entry.finish_reason == ("length" if record.output_tokens == 48 and entry.token_ids[-1] else "stop")
        session = result.sessions[record.session]
        assert session.start_ts <= record.queued_ts <= record.admitted_ts
        assert record.admitted_ts <= record.first_token_ts <= record.finished_ts <= session.end_ts
    reasons = {entry.finish_reason for entry in executor.responses().values()}
    assert reasons == {"length", "stop"}, "the model must end some responses by itself"
    assert len(set(tokens(executor).values())) == 48, "responses differ from call to call"


def test_a_call_says_the_same_alone_in_a_batch_and_in_another_plan(shared, host):
    folder, executor, _ = shared
    other = make_executor(folder, host, journal=folder / "other")
    plan = make_plan(
        make_session(0, A[:1]), make_session(1, list(reversed(A[1:]))), make_session(2, B[5:], workers=(1,)),
        make_session(3, B[:5], workers=(1,)),
    )  # fmt: skip
    result = other.execute(plan, [*A, *B])
    assert tokens(other) == tokens(executor)
    assert [session.load_s > 0 for session in result.sessions] == [True, False, True, False]


def test_replay_writes_exactly_so_many_tokens_whatever_the_model_wants(shared, host):
    folder, _, _ = shared
    executor = make_executor(
        folder, host, journal=folder / "replay", outcomes=lambda call: Outcome(1 + len(str(call.key)) % 40, "C")
    )
    calls = [*A[:12], make_call("q9", prompt_tokens=CONTEXT - 5)]
    result = executor.execute(make_plan(make_session(0, calls)), calls)
    for record in result.calls[:-1]:
        assert record.output_tokens == len(executor.responses()[record.key].token_ids)
    by_key = {record.key: record for record in result.calls}
    assert by_key[calls[0].key].output_tokens == 1 + len(str(calls[0].key)) % 40
    assert by_key[calls[0].key].prompt_tokens == 100
    assert (by_key[calls[-1].key].output_tokens, by_key[calls[-1].key].answer) == (5, None)


def test_prompts_beyond_a_steps_budget_and_a_full_cache_change_no_response(tmp_path, host):
    """A prompt read in chunks kills vLLM's CPU engine; a call that was preempted says what it would have said."""
    settings = replace(SETTINGS, max_num_seqs=24, max_num_batched_tokens=256)
    roomy = make_executor(tmp_path, host, names="A", outcomes=lambda call: Outcome(47), settings=settings)
    roomy.execute(make_plan(make_session(0, A)), A)
    tight = make_executor(
        tmp_path, host, names="A", outcomes=lambda call: Outcome(47), journal=tmp_path / "tight",
        settings=replace(settings, kv_cache_bytes=CONTEXT * 2048 + 8 * 2**16),
    )  # fmt: skip
    result = tight.execute(make_plan(make_session(0, A)), A)
    assert sum(record.num_preemptions for record in result.calls) > 0
    assert {record.attempt for record in result.calls} == {0}
    assert tokens(tight) == tokens(roomy)


def test_dummy_weights_need_a_configuration_only(tmp_path, host):
    for file in make_checkpoint(tmp_path, "A").iterdir():
        if file.name != "config.json":
            file.unlink()
    executor = make_executor(
        tmp_path, host, names="A", outcomes=lambda call: Outcome(9), settings=replace(SETTINGS, dummy_weights=True)
    )
    result = executor.execute(make_plan(make_session(0, A[:4])), A[:4])
    assert [record.output_tokens for record in result.calls] == [9] * 4
    assert {entry.text for entry in executor.responses().values()} == {None}


def test_a_chat_template_is_used_and_thinking_that_it_opens_is_not_visible(tmp_path, host):
    write_tiny_checkpoint(tmp_path / "A", seed=ord("A"), chat_template=TEMPLATE)
    executor = make_executor(tmp_path, host, names="A")
    result = executor.execute(make_plan(make_session(0, A[:4])), A[:4])
    for record in result.calls:
        assert record.prompt_tokens == len(f"<user>question {record.key.question}</user><think>")
        assert record.visible_tokens == 0
        assert executor.responses()[record.key].thinking_opened


def test_prompts_that_cannot_be_served_fail_alone(shared, host):
    folder, executor, _ = shared
    prompts = {
        A[0].key: (), A[1].key: (1, 2, 256), A[2].key: (3,) * CONTEXT, A[3].key: "x" * CONTEXT, A[4].key: (-1,),
        A[5].key: (3,) * (CONTEXT - 7),
    }  # fmt: skip
    picky = make_executor(
        folder, host, journal=folder / "picky",
        prompts=lambda call: prompts.get(call.key, f"question {call.key.question}"),
    )  # fmt: skip
    picky.execute(make_plan(make_session(0, A)), A)
    ended = picky.responses()
    assert ended[A[0].key].error == "prompt must hold at least one token, got none"
    assert ended[A[1].key].error == "prompt must hold token ids in 0 .. 255, got 256"
    more = "shorten the prompt, or raise context_tokens as far as the checkpoint allows"
    assert ended[A[2].key].error == f"prompt must leave room in A's context_tokens of 512, got 512: {more}"
    assert ended[A[3].key].error == f"prompt must leave room in A's context_tokens of 512, got 530: {more}"
    assert ended[A[4].key].error.startswith("prompt must hold token ids in 0 .. 255")
    assert {ended[call.key].status for call in A[:5]} == {CallStatus.FAILED}
    assert len(ended[A[5].key].token_ids) <= 7
    assert {ended[call.key].status for call in A[5:]} == {CallStatus.FINISHED}
    assert all(ended[call.key].token_ids == executor.responses()[call.key].token_ids for call in A[6:])


def test_a_running_call_is_aborted(shared, host):
    folder, executor, _ = shared

    class Cancelling:
        def on_finish(self, record):
            return [Cancel(call.key) for call in A[8:]]

    cut = make_executor(folder, host, journal=folder / "cut")
    result = cut.execute(make_plan(make_session(0, A)), A, Cancelling())
    status = {record.key: record.status for record in result.calls}
    assert set(status.values()) == {CallStatus.FINISHED, CallStatus.CANCELLED}
    assert len(result.actions) == sum(value is CallStatus.CANCELLED for value in status.values())
    assert all(tokens(cut)[key] == tokens(executor)[key] for key in tokens(cut))


def test_a_session_over_two_cores_is_one_engine_on_both(tmp_path, host):
    expert = tiny_expert("A", make_checkpoint(tmp_path, "A"), tp_degree=2)
    executor = make_executor(tmp_path, host, experts=[expert])
    result = executor.execute(make_plan(make_session(0, A[:6], workers=(0, 1))), A[:6])
    assert {(record.workers, record.status) for record in result.calls} == {((0, 1), CallStatus.FINISHED)}


@pytest.mark.parametrize("damage", ["truncated", "flipped", "no tokenizer", "no config", "no folder"])
def test_a_damaged_checkpoint_is_refused_before_anything_is_loaded(tmp_path, host, damage):
    path = make_checkpoint(tmp_path, "A")
    write_manifest(path)
    weights = path / "model.safetensors"
    data = weights.read_bytes()
    executor = make_executor(tmp_path, host, names="A")
    if damage == "truncated":
        weights.write_bytes(data[:-100])
    elif damage == "flipped":
        weights.write_bytes(data[:-100] + bytes([data[-100] ^ 1]) + data[-99:])
    elif damage == "no folder":
        path.rename(tmp_path / "elsewhere")
    else:
        (path / {"no tokenizer": "tokenizer.json", "no config": "config.json"}[damage]).unlink()
    with pytest.raises(CheckpointError, match=f"checkpoint {path}"):
        executor.execute(make_plan(make_session(0, A)), A)
    assert not (tmp_path / "journal").exists()


def test_what_vllm_refuses_to_load_fails_with_its_cause_and_the_run_goes_on(tmp_path, host):
    import numpy as np

    path = make_checkpoint(tmp_path, "A")
    write_safetensors(path / "model.safetensors", {"model.embed_tokens.weight": np.zeros((3, 5))})
    executor = make_executor(tmp_path, host, patience=ONE_RETRY)
    result = executor.execute(make_plan(make_session(0, A), make_session(1, B[:4])), [*A, *B[:4]])
    errors = {executor.responses()[call.key].error for call in A}
    assert len(errors) == 1
    error = errors.pop()
    assert error.startswith("A cannot be loaded: ")
    assert error.endswith("worker-0.log; correct it and start the same run again: failed calls are tried again")
    assert "\n" not in error
    assert {record.status for record in result.calls if record.expert == "B"} == {CallStatus.FINISHED}
    assert executor.dead_workers == {}


def test_code_of_a_checkpoint_runs_only_where_that_is_allowed(tmp_path, host):
    path = make_checkpoint(tmp_path, "A")
    own = {"model_type": "tiny_remote", "auto_map": {"AutoConfig": "configuration_tiny.TinyConfig"}}
    (path / "config.json").write_text(json.dumps({**CONFIG, **own}))
    (path / "configuration_tiny.py").write_text(
        f"from pathlib import Path\nfrom transformers import LlamaConfig\nPath({str(path)!r}, 'ran').touch()\n\n\n"
        "class TinyConfig(LlamaConfig):\n    model_type = 'tiny_remote'\n"
    )
    plan = make_plan(make_session(0, A[:2]))
    careful = make_executor(tmp_path, host, names="A", patience=ONE_RETRY)
    careful.execute(plan, A[:2])
    error = careful.responses()[A[0].key].error
    assert error.startswith("A cannot be loaded: ValueError: engine.trust_remote_code must be true to run the Python")
    assert not (path / "ran").exists()
    trusting = make_executor(tmp_path, host, names="A", settings=replace(SETTINGS, trust_remote_code=True))
    trusting.execute(plan, A[:2])
    assert {entry.status for entry in trusting.responses().values()} == {CallStatus.FINISHED}
    assert (path / "ran").exists()


def test_a_cache_that_does_not_fit_is_said_before_or_by_the_engine(tmp_path, host):
    small = EngineSettings(kv_cache_bytes=2**20 - 1)
    with pytest.raises(CheckpointError, match=r"needs 1\.0 MiB of KV cache, there are 1\.0; give more KV memory"):
        make_executor(tmp_path, host, names="A", settings=small).execute(make_plan(make_session(0, A)), A)
    large = make_executor(tmp_path, host, names="A", settings=EngineSettings(kv_cache_bytes=2**45), patience=ONE_RETRY)
    result = large.execute(make_plan(make_session(0, A[:2])), A[:2])
    assert {record.status for record in result.calls} == {CallStatus.FAILED}
    assert large.responses()[A[0].key].error.startswith("A cannot be loaded: ")


class Killer:
    """Kills what it finds at the first finishes that it hears of."""

    def __init__(self, find, times):
        self.find = find
        self.times = times

    def on_finish(self, record):
        if self.times:
            self.times -= 1
            for pid in self.find():
                os.kill(pid, signal.SIGKILL)
        return ()


def test_a_worker_that_is_killed_loses_nothing_and_says_the_same(shared, host):
    folder, executor, _ = shared
    journal = folder / "workers"
    again = make_executor(folder, host, journal=journal)
    killer = Killer(lambda: [pid for pid in processes_of(journal) if pid != host._process.pid], times=1)
    again.execute(make_plan(make_session(0, A), make_session(1, B, workers=(1,))), [*A, *B], killer)
    assert killer.times == 0
    assert tokens(again) == tokens(executor)


def test_a_killed_run_and_a_killed_host_lose_nothing_and_say_the_same(tmp_path, monkeypatch):
    """The run is killed after some finishes, and started again; then its host is killed, and it goes on."""
    _, calls = plan_of_four(8)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")  # the mode that would hang: it must not be used
    command = [sys.executable, "-m", "tests.engines.killed_run", str(tmp_path), VLLM_ENGINE, "8"]
    with (tmp_path / "errors.txt").open("wb") as errors:
        runner = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True)
    for _ in range(5):
        assert runner.stdout.readline(), (tmp_path / "errors.txt").read_text()
    runner.kill()
    runner.communicate()
    journalled = len(journal_of(tmp_path).ended)
    assert 5 <= journalled < 32
    with running_host(VLLM_ENGINE) as host:
        killer = Killer(lambda: [host._process.pid], times=1)
        executor = make_executor(tmp_path, host, prompts=lambda call: f"slow question {call.key.question}")
        plan, _ = plan_of_four(8)
        heard = []

        class KillLater:
            def on_finish(self, record):
                heard.append(record.key)
                return killer.on_finish(record) if len(heard) > journalled else ()

        executor.execute(plan, calls, KillLater())
        assert killer.times == 0
        entries = finished_once(tmp_path, calls)
        undisturbed = make_executor(
            tmp_path, host, journal=tmp_path / "undisturbed", prompts=lambda call: f"slow question {call.key.question}"
        )
        undisturbed.execute(plan, calls)
        assert tokens(undisturbed) == {key: entry.token_ids for key, entry in entries.items()}
    assert processes_of(tmp_path) == []
