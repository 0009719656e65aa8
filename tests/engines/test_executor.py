"""What the executor does when all goes well, with an engine that has no model."""

import json
import os
from contextlib import nullcontext
from dataclasses import replace

import pytest

from mosaic.core.cluster import Gpu, cluster_of_hosts, uniform_cluster
from mosaic.core.commands import Cancel
from mosaic.core.engine_options import EngineOptions, ModelLoading
from mosaic.core.errors import BackendError
from mosaic.core.events import Finished, Ready, Redone, Started
from mosaic.core.kv_memory import activation_bytes, fits_memory
from mosaic.core.realization import Outcome
from mosaic.core.results import CallStatus
from mosaic.core.workload import AGGREGATE, PROPOSE, CallKey
from mosaic.engines.local_launcher import LocalLauncher, cores_of_workers, gpus_of_workers
from mosaic.engines.requests import RunContent, random_prompt, response_seed
from mosaic.engines.vllm_engines import VllmEngines
from mosaic.runtime.journal import FILE_NAME
from mosaic.runtime.log import JournalError
from tests.controllers import Reactor
from tests.engines.executor_runs import (
    CPU,
    DAMAGES,
    FAKE_ENGINE,
    OPTIONS,
    Runs,
    ended_in,
    finished_once,
    journal_of,
    left_over,
    make_checkpoint,
    processes_of,
)
from tests.engines.tiny_checkpoint import CONTEXT, tiny_expert, write_tiny_checkpoint
from tests.factories import make_call, make_cluster, make_gpu, make_mixed_cluster, make_plan, make_session, some_calls

A, B = some_calls("A", 20), some_calls("B", 20)
PLAN = make_plan(make_session(0, A), make_session(1, B, workers=(1,)))
OTHER_PLAN = make_plan(
    make_session(5, A[:7]), make_session(6, B, workers=(1,)), make_session(7, list(reversed(A[7:])), workers=(1,))
)


@pytest.fixture
def executor(tmp_path, host):
    return Runs(tmp_path, host)


def test_every_finish_is_in_the_journal_once_and_in_the_result(executor, tmp_path, host):
    result = executor.execute(PLAN, [*A, *B])
    entries = finished_once(tmp_path, [*A, *B])
    assert {record.key: record.output_tokens for record in result.calls} == {
        key: len(entry.response.token_ids) for key, entry in entries.items()
    }
    assert left_over([*A, *B], result) == ()
    assert executor.records == entries
    assert executor.lost == {}
    assert processes_of(tmp_path / "journal") in ([], [host.fork_server_pid]), "only the fork server still runs"


def test_responses_do_not_depend_on_plan_workers_or_batch(executor, tmp_path, host):
    executor.execute(PLAN, [*A, *B])
    other = Runs(tmp_path, host, journal=tmp_path / "other")
    other.execute(OTHER_PLAN, [*A, *B])
    assert other.tokens == executor.tokens
    reseeded = Runs(tmp_path, host, journal=tmp_path / "reseeded", root_seed=1)
    reseeded.execute(PLAN, [*A, *B])
    assert reseeded.tokens != executor.tokens


def test_a_run_that_goes_on_with_another_plan_runs_no_call_again(executor, tmp_path):
    first = make_plan(make_session(0, A[:7]), make_session(1, B))
    executor.execute(first, [*A[:7], *B])
    result = executor.execute(OTHER_PLAN, [*A, *B])
    finished_once(tmp_path, [*A, *B])
    sessions = {session.session: session for session in result.sessions}
    assert {record.session for record in result.calls if record.key in {call.key for call in A[:7]}} == {0}
    assert (sessions[0].num_calls, sessions[1].num_calls, sessions[7].num_calls) == (7, 20, 13)
    assert sorted(sessions) == [0, 1, 7]
    assert sessions[7].load_start_ts >= sessions[1].end_ts


@pytest.mark.parametrize(
    ("changes", "num_asked"),
    [
        ({}, 0),
        ({"options": replace(OPTIONS, max_num_seqs=3)}, 0),
        ({"root_seed": 1}, 40),
        ({"prompts": lambda call, inputs: "another question"}, 40),
        ({"options": replace(OPTIONS, loading=replace(CPU, dtype="x"))}, 40),
    ],
)
def test_what_decides_a_response_decides_whether_it_is_asked_for_again(executor, tmp_path, host, changes, num_asked):
    first = executor.execute(PLAN, [*A, *B])
    ended = ended_in(tmp_path / "journal")
    again = Runs(tmp_path, host, **changes)
    assert (again.execute(PLAN, [*A, *B]) == first) == (num_asked == 0)
    assert ended_in(tmp_path / "journal")[:40] == ended
    assert len(journal_of(tmp_path).ended) == 40 + num_asked


def test_what_is_done_again_and_why_is_told(tmp_path, host):
    Runs(tmp_path, host).execute(PLAN, [*A, *B])
    again = Runs(tmp_path, host)
    again.execute(PLAN, [*A, *B])
    assert again.watcher.all(Redone) == [], "nothing is"
    write_tiny_checkpoint(tmp_path / "A", seed=99)
    damage_lines(tmp_path / "journal" / FILE_NAME, "B3", "B7")
    again = Runs(tmp_path, host)
    result = again.execute(PLAN, [*A, *B])
    assert again.watcher.all(Redone) == [Redone(0.0, 2, {"A": len(A)}, {})]
    assert left_over([*A, *B], result) == ()
    assert len(journal_of(tmp_path).ended) == len([*A, *B]) + len(A), "those of the damaged lines took their places"
    asked = Runs(tmp_path, host, prompts=lambda call, inputs: "another question")
    asked.execute(PLAN, [*A, *B])
    assert asked.watcher.all(Redone) == [Redone(0.0, 2, {}, {"A": len(A), "B": len(B)})]


def damage_lines(path, *questions):
    """Change a byte of the calls of some questions that have ended."""
    lines = path.read_bytes().splitlines(keepends=True)
    hit = [f'["call",[["{question}"'.encode() for question in questions]
    path.write_bytes(b"".join(b"0" + line if any(name in line for name in hit) else line for line in lines))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_journal_loses_its_damaged_lines_and_no_others(tmp_path, host, damage):
    runs = Runs(tmp_path, host)
    runs.execute(PLAN, [*A, *B])
    tokens, path = runs.tokens, tmp_path / "journal" / FILE_NAME
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    kept = {record.key for record in ended_in(tmp_path / "journal")}
    num_kept = len(ended_in(tmp_path / "journal"))
    again = Runs(tmp_path, host)
    result = again.execute(PLAN, [*A, *B])
    assert sorted(record.key for record in result.calls) == sorted(call.key for call in [*A, *B])
    assert again.tokens == tokens
    assert len(ended_in(tmp_path / "journal")) == num_kept + len([*A, *B]) - len(kept), "what is there is not run again"


def test_a_journal_of_an_earlier_version_is_refused(tmp_path, host):
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / "worker-0.journal").write_text("")
    with pytest.raises(JournalError, match=r"version 0.2 wrote it \(worker-0.journal\); continue with that version"):
        Runs(tmp_path, host).execute(PLAN, [*A, *B])


def test_a_process_is_pinned_to_the_cores_of_its_workers(tmp_path, host):
    expert = tiny_expert("T", make_checkpoint(tmp_path, "T"), tp_degree=2)
    (tmp_path / "T" / "behave").write_text("note")
    calls = some_calls("T", 3)
    executor = Runs(tmp_path, host, experts=[expert])
    (session,) = executor.execute(make_plan(make_session(0, calls, workers=(0, 1))), calls).sessions
    assert session.workers == (0, 1)
    (note,) = (tmp_path / "T").glob("pid-*")
    assert json.loads(note.read_text()) == sorted({core for cores in cores_of_workers(2) for core in cores})


def test_a_process_whose_engine_is_elsewhere_is_not_pinned(tmp_path):
    (make_checkpoint(tmp_path, "A") / "behave").write_text("note")
    elsewhere = LocalLauncher(OPTIONS, FAKE_ENGINE, device=None)
    with elsewhere.kept():
        runs = Runs(tmp_path, elsewhere, names="A", num_workers=7)
        runs.execute(make_plan(make_session(0, A, workers=(6,)), num_workers=7), A)
    (note,) = (tmp_path / "A").glob("pid-*")
    assert json.loads(note.read_text()) == sorted(os.sched_getaffinity(0))


def test_cores_and_gpus_are_dealt_out(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {2, 3, 5, 7, 8})
    assert cores_of_workers(2) == ((2, 3), (5, 7))
    assert cores_of_workers(3) == ((2,), (3,), (5,))
    assert cores_of_workers(7) == ((2,), (3,), (5,), (7,), (8,), (2,), (3,))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus_of_workers(2) == ("0", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    assert gpus_of_workers(2) == ("GPU-a", "GPU-b")


def test_a_replayed_call_that_reaches_the_limit_never_came_to_its_answer(tmp_path, host):
    calls = [make_call("q0", prompt_tokens=500), make_call("q1"), make_call("q2"), make_call("q3")]
    lengths = {"q0": 12, "q1": 48, "q2": 47, "q3": 4000}
    executor = Runs(tmp_path, host, outcomes=lambda call, inputs: Outcome(lengths.get(call.key.question, 1), "B", 5))
    result = executor.execute(make_plan(make_session(0, calls)), calls)
    found = {
        record.key.question: (record.output_tokens, record.answer, record.visible_tokens) for record in result.calls
    }
    assert found == {"q0": (12, None, 0), "q1": (48, None, 0), "q2": (47, "B", 5), "q3": (48, None, 0)}
    with pytest.raises(
        BackendError,
        match="call q9/propose/0: prompt_tokens must be below A's context_tokens of 512, got 512: shorten the prompt",
    ):
        executor.execute(
            make_plan(make_session(0, [make_call("q9", prompt_tokens=512)])), [make_call("q9", prompt_tokens=512)]
        )


def test_seeds_and_random_prompts_follow_from_the_key():
    keys = [CallKey(q, role, slot) for q in ("q1", "q2") for role in (PROPOSE, AGGREGATE) for slot in range(3)]
    seeds = {response_seed(root, key) for root in range(2) for key in keys}
    assert len(seeds) == 24
    assert all(0 <= seed < 2**63 for seed in seeds)
    call = make_call(prompt_tokens=300)
    assert len(random_prompt(call, 5, 256)) == 300
    assert set(random_prompt(call, 5, 7)) == set(range(7))
    assert random_prompt(call, 5, 256) == random_prompt(call, 5, 256) != random_prompt(call, 6, 256)


def test_a_running_call_is_aborted_and_the_run_goes_on(tmp_path, host):
    quick = make_call("q0", expert="A")
    slow = [make_call(f"q{i}", expert="A", slot=1) for i in range(12)]
    cancels = [Cancel(slow[0].key), Cancel(slow[11].key)]
    listener = Reactor(lambda record: cancels if record.key == quick.key else ())
    executor = Runs(
        tmp_path, host, outcomes=lambda call, inputs: Outcome(40 if call.key.slot else 1),
        prompts=lambda call, inputs: "slow" if call.key.slot else "quick",
    )  # fmt: skip
    result = executor.execute(make_plan(make_session(0, [quick, *slow])), [quick, *slow], listener)
    cancelled = {record.key: record for record in result.calls if record.status is CallStatus.CANCELLED}
    assert cancelled.keys() == {slow[0].key, slow[11].key}
    running, waiting = cancelled[slow[0].key], cancelled[slow[11].key]
    assert 1 <= running.output_tokens == running.wasted_tokens < 40
    assert (waiting.output_tokens, waiting.admitted_ts) == (0, None)
    assert [action.command for action in result.actions if action.cause == f"finished {quick.key}"] == cancels
    assert len(result.calls) == 13
    again = Reactor(lambda record: ())
    repeated = executor.execute(make_plan(make_session(0, [quick, *slow])), [quick, *slow], again)
    assert (repeated.calls, repeated.sessions) == (result.calls, result.sessions)
    heard = [event.record for event in again.all(Finished)]
    assert heard == sorted((event.record for event in listener.all(Finished)), key=lambda record: record.finished_ts)


def test_a_session_that_broke_off_is_ready_again(tmp_path, host):
    executor = Runs(tmp_path, host, prompts=lambda call, inputs: "raise once" if call.key == A[3].key else "fine")
    executor.execute(PLAN, [*A, *B])
    assert sorted(event.session for event in executor.watcher.all(Ready)) == [0, 0, 1]


def test_what_an_engine_prints_is_in_its_workers_log(tmp_path, host, capfd):
    (make_checkpoint(tmp_path, "B") / "behave").write_text("print")
    Runs(tmp_path, host).execute(PLAN, [*A, *B])
    log = "said by \\x1b[1mthe engine\ncomplained by the engine\n"
    assert (tmp_path / "journal" / "worker-1.log").read_text() == log, "with control characters written out"
    assert (tmp_path / "journal" / "worker-0.log").read_text() == ""
    assert capfd.readouterr() == ("", "")


def test_a_backend_serves_one_run_and_says_what_is_missing(tmp_path, host):
    backend = Runs(tmp_path, host).backend()
    assert backend.name == "vllm"
    assert [type(event) for event in backend.events(reacts=False)] == [Started]
    with pytest.raises(BackendError, match="a backend serves one run"):
        next(backend.events(reacts=False))
    with pytest.raises(ValueError, match="prompts must be given unless outcomes are replayed"):
        RunContent()
    with pytest.raises(TypeError, match="root_seed must be a whole number"):
        RunContent(prompts=lambda call, inputs: "x", root_seed="0")
    experts = [tiny_expert("A", make_checkpoint(tmp_path, "A"))] * 2
    with pytest.raises(ValueError, match="expert name must be unique, got 'A' twice"):
        Runs(tmp_path, host, experts=experts).backend()


def test_a_response_is_another_where_a_checkpoints_code_may_run(tmp_path):
    def decides(loading: ModelLoading):
        engines = VllmEngines(options=replace(OPTIONS, loading=loading))
        return engines.served(tiny_expert("A", path)).decides

    path = make_checkpoint(tmp_path, "A")
    trusting = replace(CPU, trust_remote_code=True)
    assert decides(CPU) != decides(trusting)
    before = decides(trusting)
    (path / "modeling_tiny.py").write_text("raise SystemExit\n")
    assert decides(trusting) != before


@pytest.mark.parametrize("load_format", ["dummy", "auto"])
@pytest.mark.parametrize("tp_degree", [1, 2])
def test_what_planning_fits_into_a_gpu_passes_the_check(tmp_path, tp_degree, load_format):
    path = make_checkpoint(tmp_path, "A")
    expert = tiny_expert("A", path, tp_degree=tp_degree)
    if load_format == "auto":
        weight_bytes = (path / "model.safetensors").stat().st_size
        expert = replace(expert, shape=replace(expert.shape, num_parameters=weight_bytes // 4))
    options = EngineOptions(loading=ModelLoading(dtype="float32", load_format=load_format))
    engines = VllmEngines(options=options, with_tokenizer=False)
    cache_bytes = CONTEXT * expert.shape.kv_bytes_per_token(tp_degree)
    needed_bytes = expert.shape.weight_bytes // tp_degree + activation_bytes(expert, options, tp_degree) + cache_bytes
    for memory_bytes in (needed_bytes, needed_bytes - 1):
        gpu = Gpu(name="gpu", memory_bytes=memory_bytes, memory_utilization_frac=1.0)
        workers = uniform_cluster(name="gpus", num_workers=tp_degree, gpu=gpu).workers
        fits = fits_memory(expert, workers, options)
        assert fits == (memory_bytes == needed_bytes)
        with nullcontext() if fits else pytest.raises(BackendError, match="one call of 512 tokens needs 1.0 MiB of KV"):
            engines.spec(expert, workers)


@pytest.mark.parametrize(("loading", "given"), [(CPU, 2**20), (ModelLoading(dtype="float32"), 2**19)])
def test_a_cache_in_tokens_is_the_bytes_that_they_take_on_each_worker(tmp_path, loading, given):
    options = EngineOptions(block_size=32, kv_cache_tokens=512, loading=loading)
    expert = tiny_expert("A", make_checkpoint(tmp_path, "A"), tp_degree=2)
    spec = VllmEngines(options=options).spec(expert, make_cluster(2).workers)
    assert (spec.settings.kv_cache_memory_bytes, spec.num_workers) == (given, 2)
    assert spec.settings.gpu_memory_utilization == make_gpu().memory_utilization_frac


def test_random_weights_ask_for_the_configuration_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    expert = tiny_expert("A", "org/model")
    dummy = replace(OPTIONS, loading=replace(CPU, load_format="dummy"))
    with pytest.raises(BackendError, match="fetch it first: hf download org/model config.json$"):
        VllmEngines(options=dummy, with_tokenizer=False).served(expert)
    for options, with_tokenizer in ((OPTIONS, False), (dummy, True)):
        with pytest.raises(BackendError, match="fetch it first: hf download org/model$"):
            VllmEngines(options=options, with_tokenizer=with_tokenizer).served(expert)


@pytest.mark.parametrize(
    "cluster",
    [
        make_mixed_cluster(make_gpu("one"), make_gpu("other")),
        cluster_of_hosts(name="two", host_sizes=(1, 1), gpu=make_gpu()),
    ],
)
def test_a_session_over_unlike_workers_or_two_hosts_is_refused(tmp_path, host, cluster):
    expert = tiny_expert("T", make_checkpoint(tmp_path, "T"), tp_degree=2)
    calls = some_calls("T", 2)
    with pytest.raises(BackendError, match=r"workers must be of one kind and in one machine, got \['.* in "):
        Runs(tmp_path, host, experts=[expert], cluster=cluster).execute(
            make_plan(make_session(0, calls, workers=(0, 1))), calls
        )


def test_a_checkpoint_is_checked_before_any_process_starts(tmp_path, host):
    executor = Runs(tmp_path, host)
    (tmp_path / "B" / "tokenizer.json").unlink()
    with pytest.raises(BackendError, match="B: no tokenizer"):
        executor.execute(PLAN, [*A, *B])
    assert {path.name for path in (tmp_path / "journal").iterdir()} == {FILE_NAME}
    options = replace(OPTIONS, kv_cache_memory_bytes=2**19)
    small = Runs(tmp_path, host, options=options, outcomes=lambda call, inputs: Outcome(1))
    with pytest.raises(BackendError, match="one call of 512 tokens needs 1.0 MiB of KV cache, there are 0.5"):
        small.execute(PLAN, [*A, *B])
