"""Real vLLM with tiny random experts: the same responses however they come about, and every failure survived or said.

The rows of the table of failures that checks before loading catch are in test_checkpoints.py.
"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mosaic.core.commands import Cut
from mosaic.core.realization import Outcome
from mosaic.core.results import CallStatus
from mosaic.engines.launcher import Patience
from mosaic.engines.local_launcher import VLLM_ENGINE
from tests.controllers import Reactor
from tests.engines.contract_backends import launcher_of
from tests.engines.executor_runs import (
    CPU,
    OPTIONS,
    Killer,
    MoveAll,
    Runs,
    ended_in,
    finished_once,
    has_vllm,
    journal_of,
    make_checkpoint,
    processes_of,
)
from tests.engines.killed_run import plan_of_four, prompt
from tests.engines.tiny_checkpoint import CONFIG, CONTEXT, tiny_expert, write_safetensors, write_tiny_checkpoint
from tests.factories import make_plan, make_session, some_calls

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not has_vllm(), reason="vLLM is not installed")]

ROOT = Path(__file__).resolve().parents[2]
A, B = some_calls("A", 24), some_calls("B", 24)
ONE_RETRY = Patience(max_retries=0)
TEMPLATE = "<user>{{ messages[0].content }}</user>{% if add_generation_prompt %}<think>{% endif %}"


@pytest.fixture(scope="module")
def host():
    return launcher_of(VLLM_ENGINE)


@pytest.fixture(scope="module")
def shared(tmp_path_factory, host):
    """A run that the tests of this module compare theirs with."""
    folder = tmp_path_factory.mktemp("shared")
    executor = Runs(folder, host)
    result = executor.execute(make_plan(make_session(0, A), make_session(1, B, workers=(1,))), [*A, *B])
    return folder, executor, result


def test_a_live_run_records_what_the_engine_did(shared):
    _, executor, result = shared
    assert all(record.response.token_ids == () for record in result.calls), "the journal alone keeps them"
    for record in executor.records.values():
        assert record.status is CallStatus.FINISHED
        assert record.prompt_tokens == len(f"User: question {record.key.question}\n\nAssistant:")
        assert record.output_tokens == len(record.response.token_ids) == record.visible_tokens
        reason = "length" if record.output_tokens == 48 and record.response.token_ids[-1] else "stop"
        assert record.response.finish_reason == reason
        session = result.sessions[record.session]
        assert session.start_ts <= record.queued_ts <= record.admitted_ts
        assert record.admitted_ts <= record.first_token_ts <= record.finished_ts <= session.end_ts
    reasons = {record.response.finish_reason for record in result.calls}
    assert reasons == {"length", "stop"}, "the model must end some responses by itself"
    assert len(set(executor.tokens.values())) == 48, "responses differ from call to call"


def test_a_call_says_the_same_alone_in_a_batch_and_in_another_plan(shared, host):
    folder, executor, _ = shared
    other = Runs(folder, host, journal=folder / "other")
    plan = make_plan(
        make_session(0, A[:1]), make_session(1, list(reversed(A[1:]))), make_session(2, B[5:], workers=(1,)),
        make_session(3, B[:5], workers=(1,)),
    )  # fmt: skip
    result = other.execute(plan, [*A, *B])
    assert other.tokens == executor.tokens
    assert [session.load_s > 0 for session in result.sessions] == [True, False, True, False]


def test_prompts_beyond_a_steps_budget_and_a_full_cache_change_no_response(tmp_path, host):
    """A prompt read in chunks kills vLLM's CPU engine; a call that was preempted says what it would have said."""
    options = replace(OPTIONS, max_num_seqs=24, max_num_batched_tokens=256)
    roomy = Runs(tmp_path, host, names="A", outcomes=lambda call, inputs: Outcome(47), options=options)
    roomy.execute(make_plan(make_session(0, A)), A)
    tight = Runs(
        tmp_path, host, names="A", outcomes=lambda call, inputs: Outcome(47), journal=tmp_path / "tight",
        options=replace(options, kv_cache_memory_bytes=CONTEXT * 2048 + 8 * 2**16),
    )  # fmt: skip
    result = tight.execute(make_plan(make_session(0, A)), A)
    assert sum(record.num_preemptions for record in result.calls) > 0
    assert {record.attempt for record in result.calls} == {0}
    assert tight.tokens == roomy.tokens


def test_dummy_weights_need_a_configuration_only(tmp_path, host):
    for file in make_checkpoint(tmp_path, "A").iterdir():
        if file.name != "config.json":
            file.unlink()
    executor = Runs(
        tmp_path,
        host,
        names="A",
        outcomes=lambda call, inputs: Outcome(9),
        options=replace(OPTIONS, loading=replace(CPU, load_format="dummy")),
    )
    result = executor.execute(make_plan(make_session(0, A[:4])), A[:4])
    assert [record.output_tokens for record in result.calls] == [9] * 4
    assert {record.response.text for record in result.calls} == {None}


def test_a_chat_template_is_used_and_thinking_that_it_opens_is_not_visible(tmp_path, host):
    write_tiny_checkpoint(tmp_path / "A", seed=ord("A"), chat_template=TEMPLATE)
    executor = Runs(tmp_path, host, names="A")
    result = executor.execute(make_plan(make_session(0, A[:4])), A[:4])
    for record in result.calls:
        assert record.prompt_tokens == len(f"<user>question {record.key.question}</user><think>")
        assert record.visible_tokens == 0
        assert record.response.thinking_opened


def test_prompts_that_cannot_be_served_fail_alone(shared, host):
    folder, executor, _ = shared
    prompts = {
        A[0].key: (), A[1].key: (1, 2, 256), A[2].key: (3,) * CONTEXT, A[3].key: "x" * CONTEXT, A[4].key: (-1,),
        A[5].key: (3,) * (CONTEXT - 7),
    }  # fmt: skip
    picky = Runs(
        folder, host, journal=folder / "picky",
        prompts=lambda call, inputs: prompts.get(call.key, f"question {call.key.question}"),
    )  # fmt: skip
    picky.execute(make_plan(make_session(0, A)), A)
    ended = picky.records
    assert ended[A[0].key].response.error == "prompt must hold at least one token, got none"
    assert ended[A[1].key].response.error == "prompt must hold token ids in 0 .. 255, got 256"
    more = "shorten the prompt, or raise context_tokens up to the checkpoint's limit"
    assert ended[A[2].key].response.error == f"prompt must leave room in A's context_tokens of 512, got 512: {more}"
    assert ended[A[3].key].response.error == f"prompt must leave room in A's context_tokens of 512, got 530: {more}"
    assert ended[A[4].key].response.error.startswith("prompt must hold token ids in 0 .. 255")
    assert {ended[call.key].status for call in A[:5]} == {CallStatus.FAILED}
    assert len(ended[A[5].key].response.token_ids) <= 7
    assert {ended[call.key].status for call in A[5:]} == {CallStatus.FINISHED}
    assert all(ended[call.key].response.token_ids == executor.records[call.key].response.token_ids for call in A[6:])


def test_calls_that_are_cut_keep_what_they_wrote(shared, host):
    folder, executor, _ = shared
    cut = Runs(folder, host, journal=folder / "cut")
    longest = max(executor.tokens.values(), key=len)

    def react(record):
        return [Cut(call.key, 12) for call in A]

    cut.execute(make_plan(make_session(0, A)), A, Reactor(react))
    reasons = {record.response.finish_reason for record in cut.records.values()}
    assert len(longest) == 48
    assert "cut" in reasons
    for key, record in cut.records.items():
        was_cut = record.response.finish_reason == "cut"
        assert record.status is (CallStatus.CUT if was_cut else CallStatus.FINISHED)
        assert record.response.token_ids == executor.tokens[key][: record.output_tokens]
        if was_cut:
            assert record.output_tokens >= 12
            said = bytes(token for token in record.response.token_ids if token)
            assert record.response.text.rstrip("\ufffd") == said.decode(errors="replace").rstrip("\ufffd")


def test_calls_move_to_another_session_and_go_on_there(tmp_path, host):
    """Greedy, so that what is written after the move does not depend on where it happened."""
    expert = replace(tiny_expert("A", make_checkpoint(tmp_path, "A"), max_output_tokens=400), temperature=0.0)
    calls, other = A[:6], A[6]
    plan = make_plan(make_session(0, calls), make_session(1, [other], workers=(1,)))
    stayed = Runs(tmp_path, host, experts=[expert], journal=tmp_path / "stayed")
    stayed.execute(plan, [*calls, other])
    moved = Runs(tmp_path, host, experts=[expert], options=replace(OPTIONS, max_num_seqs=2))
    result = moved.drive(MoveAll(expert="A", target=1, calls=calls, at_finish=True))
    finished_once(tmp_path, calls)
    gone = [record for record in result.calls if record.attempt == 1]
    assert gone, "two calls of 400 tokens have just begun when the first two end"
    assert {record.session for record in gone} == {1}
    assert all(record.wasted_tokens >= record.prompt_tokens for record in gone if record.wasted_tokens)
    said = {record.key: record.response.token_ids for record in ended_in(moved.journal)}
    assert said == {key: tokens for key, tokens in stayed.tokens.items() if key != other.key}


def test_what_vllm_refuses_to_load_fails_with_its_cause_and_the_run_goes_on(tmp_path, host):
    import numpy as np

    path = make_checkpoint(tmp_path, "A")
    write_safetensors(path / "model.safetensors", {"model.embed_tokens.weight": np.zeros((3, 5))})
    executor = Runs(tmp_path, host, patience=ONE_RETRY)
    result = executor.execute(make_plan(make_session(0, A), make_session(1, B[:4])), [*A, *B[:4]])
    errors = {executor.error(call) for call in A}
    assert len(errors) == 1
    error = errors.pop()
    assert error.startswith("A cannot be loaded: ")
    assert error.endswith("worker-0.log; correct it and start the same run again: failed calls are tried again")
    assert "\n" not in error
    assert {record.status for record in result.calls if record.expert == "B"} == {CallStatus.FINISHED}
    assert executor.lost == {}


def test_code_of_a_checkpoint_runs_only_where_that_is_allowed(tmp_path, host):
    path = make_checkpoint(tmp_path, "A")
    own = {"model_type": "tiny_remote", "auto_map": {"AutoConfig": "configuration_tiny.TinyConfig"}}
    (path / "config.json").write_text(json.dumps({**CONFIG, **own}))
    (path / "configuration_tiny.py").write_text(
        f"from pathlib import Path\nfrom transformers import LlamaConfig\nPath({str(path)!r}, 'ran').touch()\n\n\n"
        "class TinyConfig(LlamaConfig):\n    model_type = 'tiny_remote'\n"
    )
    plan = make_plan(make_session(0, A[:2]))
    careful = Runs(tmp_path, host, names="A", patience=ONE_RETRY)
    careful.execute(plan, A[:2])
    error = careful.error(A[0])
    assert error.startswith("A cannot be loaded: ValueError: engine.trust_remote_code must be true to run the Python")
    assert not (path / "ran").exists()
    trusting = Runs(tmp_path, host, names="A", options=replace(OPTIONS, loading=replace(CPU, trust_remote_code=True)))
    trusting.execute(plan, A[:2])
    assert {record.status for record in trusting.records.values()} == {CallStatus.FINISHED}
    assert (path / "ran").exists()


def test_a_cache_that_does_not_fit_is_said_by_the_engine(tmp_path, host):
    options = replace(OPTIONS, kv_cache_memory_bytes=2**45)
    large = Runs(tmp_path, host, names="A", options=options, patience=ONE_RETRY)
    result = large.execute(make_plan(make_session(0, A[:2])), A[:2])
    assert {record.status for record in result.calls} == {CallStatus.FAILED}
    assert large.error(A[0]).startswith("A cannot be loaded: ")


def test_a_killed_run_and_a_killed_host_lose_nothing_and_say_the_same(tmp_path, monkeypatch, host):
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
    killer = Killer(lambda: [host.fork_server_pid], every=journalled + 1)
    executor = Runs(tmp_path, host, prompts=prompt)
    plan, _ = plan_of_four(8)
    executor.execute(plan, calls, killer)
    assert killer.times == 0
    records = finished_once(tmp_path, calls)
    undisturbed = Runs(tmp_path, host, journal=tmp_path / "undisturbed", prompts=prompt)
    undisturbed.execute(plan, calls)
    assert undisturbed.tokens == {key: record.response.token_ids for key, record in records.items()}
    assert processes_of(tmp_path) == []
