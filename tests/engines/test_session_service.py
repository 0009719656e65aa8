"""One session in this process, with an engine that has no model: what it tells, in which order."""

import time
from itertools import pairwise
from multiprocessing import Pipe
from pathlib import Path

import pytest
from mosaic.engines.orders import CancelOrder, Job, Progress, Served, ServeOrder
from mosaic.engines.vllm_worker import Reporter

from mosaic.core.results import CallStatus
from mosaic.core.workload import PROPOSE, CallKey
from mosaic.engines.engine import Device, EngineSettings, EngineSpec
from mosaic.engines.session_service import SessionService
from mosaic.engines.vllm_engine import engine_arguments, is_device_lost, opens_thinking
from mosaic.runtime.journal import Log, read_log
from mosaic.runtime.journal_records import ClosedSession, EndedCall, OpenedSession, decode_entry, view
from tests.engines.fake_engine import FakeEngine

SPEC = EngineSpec(
    expert="A", checkpoint=Path("nowhere"), context_tokens=512, num_workers=1, num_threads=1, with_tokenizer=True,
    settings=EngineSettings(max_num_seqs=2),
)  # fmt: skip


def make_job(slot: int, *, output_tokens: int = 3, prompt: str = "x", ready_s: float = 0.0) -> Job:
    return Job(
        key=CallKey("q", PROPOSE, slot), fingerprint=f"f{slot}", prompt=prompt, prompt_tokens=7, seed=slot,
        temperature=0.7, max_output_tokens=48, output_tokens=output_tokens, ready_s=ready_s,
    )  # fmt: skip


def make_order(
    *jobs: Job, is_resident: bool = False, load_start_ts: float = 0.25, one_at_a_time: bool = False
) -> ServeOrder:
    return ServeOrder(
        plan="p", session=4, attempt=2, node=PROPOSE, expert="A", workers=(1,), load_start_ts=load_start_ts,
        is_resident=is_resident, one_at_a_time=one_at_a_time, jobs=jobs,
    )  # fmt: skip


def serve(order: ServeOrder, *orders_at_start, elapsed_s: float = 1.0):
    """Serve a session whose run began some seconds ago."""
    ours, theirs = Pipe()
    for each in orders_at_start:
        ours.send(each)
    said = []
    SessionService(order, FakeEngine(SPEC), said.append, theirs, time.monotonic() - elapsed_s, batch_size=2).run()
    return said


def ended(said) -> dict[int, EndedCall]:
    return {entry.key.slot: entry for entry in said if isinstance(entry, EndedCall)}


def test_a_session_is_opened_served_and_closed_in_this_order():
    said = serve(make_order(*(make_job(slot) for slot in range(6))))
    assert isinstance(said[0], OpenedSession)
    assert isinstance(said[-2], ClosedSession)
    assert said[-1] == Served(4, said[-2].end_ts)
    assert (said[0].load_start_ts, said[0].attempt) == (0.25, 2)
    assert said[0].start_ts == pytest.approx(0.25 + said[0].load_s)
    assert said[0].start_ts >= 1.0
    entries = ended(said)
    assert sorted(entries) == list(range(6))
    for entry in entries.values():
        assert (entry.output_tokens, entry.status, entry.session) == (3, CallStatus.FINISHED, 4)
        assert said[0].start_ts == entry.queued_ts <= entry.admitted_ts <= entry.first_token_ts <= entry.finished_ts
    assert said[-2].end_ts >= max(entry.finished_ts for entry in entries.values())


def test_a_session_of_an_expert_that_stayed_starts_where_its_workers_became_free():
    said = serve(make_order(make_job(0), is_resident=True))
    assert (said[0].load_start_ts, said[0].load_s, said[0].start_ts) == (0.25, 0.0, 0.25)
    assert ended(said)[0].queued_ts == 0.25


def test_jobs_start_when_they_are_ready_whatever_their_place():
    said = serve(make_order(make_job(0, ready_s=1.3), make_job(1), make_job(2, ready_s=1.1)))
    assert list(ended(said)) == [1, 2, 0]
    assert {slot: entry.queued_ts for slot, entry in ended(said).items()} == {
        0: 1.3,
        1: said[0].start_ts,
        2: 1.1,
    }


def test_a_job_that_the_engine_refuses_fails_and_the_others_finish():
    entries = ended(serve(make_order(make_job(0), make_job(1, prompt="refuse"), make_job(2))))
    assert entries[1].status is CallStatus.FAILED
    assert entries[1].error == "prompt must be one that the engine likes"
    assert (entries[1].prompt_tokens, entries[1].output_tokens) == (7, 0)
    assert {entries[0].status, entries[2].status} == {CallStatus.FINISHED}


def test_calls_are_cancelled_before_they_reach_the_engine():
    keys = (make_job(1).key, make_job(9).key, CallKey("elsewhere", PROPOSE, 0))
    entries = ended(serve(make_order(*(make_job(slot) for slot in range(3))), CancelOrder(keys)))
    assert sorted(entries) == [0, 1, 2]
    assert (entries[1].status, entries[1].wasted_tokens, entries[1].admitted_ts) == (CallStatus.CANCELLED, 0, None)


def test_calls_are_served_one_at_a_time_where_one_of_them_breaks_the_engine():
    entries = list(ended(serve(make_order(*(make_job(slot) for slot in range(5)), one_at_a_time=True))).values())
    assert all(before.finished_ts <= after.admitted_ts for before, after in pairwise(entries))
    assert len(entries) == 5


def test_a_long_session_says_that_it_lives():
    said = serve(make_order(*(make_job(slot, output_tokens=40, prompt="slow") for slot in range(4))))
    progress = [message for message in said if isinstance(message, Progress)]
    assert len(progress) >= 2
    assert progress[0].num_running > 0
    assert [p.num_ended for p in progress] == sorted(p.num_ended for p in progress)
    assert {p.session for p in progress} == {4}


def test_what_is_told_is_on_the_disk_before(tmp_path):
    ours, theirs = Pipe()
    path = tmp_path / "a.journal"
    reporter = Reporter(Log(path), theirs)
    said = serve(make_order(*(make_job(slot) for slot in range(5))))
    for message in said:
        reporter.tell(message)
    heard = []
    while len(heard) < len(said):
        heard += ours.recv()
        entries = [decode_entry(line) for line in heard if isinstance(line, bytes)]
        on_disk = view(read_log(path).records)
        assert set(entries) <= {*on_disk.ended, *on_disk.opened, *on_disk.closed}
    reporter.finish()
    assert [decode_entry(line) if isinstance(line, bytes) else line for line in heard] == said


def test_cpu_engines_read_prompts_whole_and_need_no_gpu_arguments():
    arguments = engine_arguments(SPEC)
    assert (arguments["dtype"], arguments["block_size"], arguments["max_model_len"]) == ("float32", 32, 512)
    assert arguments["kv_cache_memory_bytes"] == 64 * 2**20
    assert (arguments["enable_chunked_prefill"], arguments["trust_remote_code"]) == (False, False)
    assert {"gpu_memory_utilization", "tensor_parallel_size", "max_num_batched_tokens"}.isdisjoint(arguments)


def test_gpu_engines_split_a_model_over_the_sessions_workers():
    settings = EngineSettings(
        device=Device.GPU, dtype="auto", kv_cache_bytes=None, block_size=16, enforce_eager=False, dummy_weights=True,
        max_num_batched_tokens=4096, trust_remote_code=True,
    )  # fmt: skip
    spec = EngineSpec(
        expert="A", checkpoint=Path("nowhere"), context_tokens=8192, num_workers=4, num_threads=8, with_tokenizer=False,
        settings=settings,
    )  # fmt: skip
    arguments = engine_arguments(spec)
    assert (arguments["tensor_parallel_size"], arguments["distributed_executor_backend"]) == (4, "mp")
    assert (arguments["gpu_memory_utilization"], arguments["load_format"]) == (0.9, "dummy")
    assert (arguments["skip_tokenizer_init"], arguments["trust_remote_code"]) == (True, True)
    assert arguments["max_num_batched_tokens"] == 4096
    assert {"kv_cache_memory_bytes", "enable_chunked_prefill"}.isdisjoint(arguments)


@pytest.mark.parametrize(
    ("message", "lost"),
    [
        ("CUDA error: an illegal memory access was encountered", True),
        ("No CUDA GPUs are available", True),
        ("CUDA out of memory. Tried to allocate 2 GiB", False),
        ("CUDA error: out of memory", False),
        ("Error while deserializing header", False),
    ],
)
def test_only_errors_of_the_device_are_the_workers(message, lost):
    assert is_device_lost(RuntimeError(message)) is lost


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [
        ("<|im_start|>assistant\n<think>\n", True),
        ("<|Assistant|><think>", True),
        ("<|Assistant|><think>\n\n</think>\n\n", False),
        ("<|Assistant|>", False),
        ("what does <think> do?\n<|Assistant|>", False),
    ],
)
def test_a_template_that_opens_thinking_is_told(prompt, opened):
    assert opens_thinking(prompt) is opened
