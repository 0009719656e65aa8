"""One session in this process, with an engine that has no model: what it tells, in which order."""

import time
from multiprocessing import Pipe
from pathlib import Path

import pytest

from mosaic.core.commands import Cancel, Close, Cut, Move
from mosaic.core.engine_options import EngineOptions, ModelLoading
from mosaic.core.events import Finished, Prefilled, Progress, Ready
from mosaic.core.results import CallRecord, CallStatus
from mosaic.core.workload import PROPOSE, CallKey
from mosaic.engines.engine import EngineSpec, Output, Request
from mosaic.engines.messages import Load, Serve
from mosaic.engines.prompt_text import opens_thinking
from mosaic.engines.serving import SessionService
from mosaic.engines.vllm_engine import engine_arguments, is_device_lost
from mosaic.engines.worker import Sender
from mosaic.runtime.journal import ClosedSession
from tests.engines.engine_calls import make_vllm_settings
from tests.engines.executor_runs import CPU
from tests.engines.fake_engine import FakeEngine
from tests.factories import make_session

CPU_OPTIONS = EngineOptions(max_num_seqs=2, block_size=32, kv_cache_memory_bytes=64 * 2**20, loading=CPU)
CPU_SETTINGS = make_vllm_settings(Path("nowhere"), CPU_OPTIONS)
SPEC = EngineSpec(expert="A", num_workers=1, context_tokens=512, max_num_seqs=2, settings=CPU_SETTINGS)


def make_request(
    slot: int, *, output_tokens: int | None = 3, prompt: str = "x", queued_ts: float = 0.0, **changes
) -> Request:
    return Request(
        key=CallKey("q", PROPOSE, slot), fingerprint=f"f{slot}", prompt=prompt, prompt_tokens=7, seed=slot,
        temperature=0.7, output_tokens=output_tokens, queued_ts=queued_ts, **({"max_output_tokens": 48} | changes),
    )  # fmt: skip


def make_serve(*, is_resident: bool = False) -> Serve:
    return Serve(session=make_session(4, expert="A", workers=(1,)), load_start_ts=0.25, is_resident=is_resident)


class Script:
    """An engine that sends its own session messages, each after so many steps."""

    def __init__(self, engine, send, later) -> None:
        self.engine, self.send, self.later, self.num_steps = engine, send, dict(later), 0

    def step(self):
        finished = self.engine.step()
        self.num_steps += 1
        for message in self.later.pop(self.num_steps, ()):
            self.send(message)
        return finished

    def __getattr__(self, name):
        return getattr(self.engine, name)


def serve(*requests: Request, later=(), is_resident: bool = False):
    """Serve a session whose run began a second ago; ``later`` has messages by the number of the step they follow."""
    ours, theirs = Pipe()
    ours.send([*requests])
    if not later:
        ours.send(Close(4))
    said = []
    engine = Script(FakeEngine(SPEC), ours.send, later)
    load = Load(spec=SPEC, zero_ts=time.monotonic() - 1.0)
    SessionService(make_serve(is_resident=is_resident), load, engine, said.append, theirs).run()
    return said


def ended(said) -> dict[int, CallRecord]:
    return {event.record.key.slot: event.record for event in said if isinstance(event, Finished)}


def test_a_session_is_opened_served_and_closed_in_this_order():
    said = serve(*(make_request(slot, attempt=2) for slot in range(6)))
    opened, closed = said[0], said[-1]
    assert isinstance(opened, Ready)
    assert isinstance(closed, ClosedSession)
    assert (opened.session, closed.session) == (4, 4)
    assert opened.ts >= 1.0
    assert closed.cpu_s > 0
    records = ended(said)
    assert sorted(records) == list(range(6))
    for slot, record in records.items():
        assert (record.output_tokens, record.status, record.session) == (3, CallStatus.FINISHED, 4)
        assert (record.attempt, record.response.fingerprint, record.workers) == (2, f"f{slot}", (1,))
        assert opened.ts == record.queued_ts <= record.admitted_ts <= record.first_token_ts <= record.finished_ts
    assert closed.end_ts >= max(record.finished_ts for record in records.values())


def test_a_session_of_an_expert_that_stayed_starts_where_its_workers_became_free():
    said = serve(make_request(0), is_resident=True)
    assert said[0] == Ready(0.25, 4)
    assert ended(said)[0].queued_ts == 0.25


def test_a_call_is_queued_when_it_came_or_the_session_starts():
    said = serve(make_request(0, queued_ts=1.0001), make_request(1, queued_ts=0.5))
    assert {slot: record.queued_ts for slot, record in ended(said).items()} == {
        0: max(1.0001, said[0].ts), 1: said[0].ts,
    }  # fmt: skip


def test_a_call_that_the_engine_refuses_fails_and_the_others_finish():
    records = ended(serve(make_request(0), make_request(1, prompt="refuse"), make_request(2)))
    assert records[1].status is CallStatus.FAILED
    assert records[1].response.error == "prompt must be one that the engine likes"
    assert (records[1].prompt_tokens, records[1].output_tokens) == (7, 0)
    assert {records[0].status, records[2].status} == {CallStatus.FINISHED}


def test_a_session_takes_calls_until_it_has_all():
    later = {2: [[make_request(1)]], 4: [[make_request(2), make_request(3)], Close(4)]}
    assert sorted(ended(serve(make_request(0, output_tokens=40), later=later))) == [0, 1, 2, 3]


def test_calls_are_cancelled_where_they_run_or_wait_in_the_engine():
    calls = [make_request(slot, output_tokens=30, wasted_tokens=5) for slot in range(3)]
    elsewhere = CallKey("elsewhere", PROPOSE, 0)
    keys = (calls[0].key, calls[2].key, make_request(9).key, elsewhere)
    said = serve(*calls, later={6: [*map(Cancel, keys), Close(4)]})
    records = ended(said)
    running, waiting = records[0], records[2]
    assert (running.status, waiting.status, records[1].status) == ("cancelled", "cancelled", "finished")
    assert (running.output_tokens, running.wasted_tokens, running.response.token_ids) == (6, 11, ())
    assert (waiting.output_tokens, waiting.wasted_tokens, waiting.admitted_ts) == (0, 5, None)


def test_a_call_is_cut_once_it_has_written_so_many_tokens():
    calls = [make_request(0, output_tokens=40), make_request(1, output_tokens=5), make_request(2, output_tokens=40)]
    calls[2] = calls[2]._replace(cut_tokens=7)
    records = ended(serve(*calls, later={2: [Cut(calls[0].key, 10), Cut(calls[1].key, 10), Close(4)]}))
    assert {slot: (record.output_tokens, record.response.finish_reason) for slot, record in records.items()} == {
        0: (10, "cut"), 1: (5, "stop"), 2: (7, "cut"),
    }  # fmt: skip
    assert [records[slot].status for slot in range(3)] == [CallStatus.CUT, CallStatus.FINISHED, CallStatus.CUT]
    assert records[0].response.text.endswith(".")
    assert len(records[0].response.token_ids) == 10


def test_a_call_that_has_written_more_than_it_may_is_cut_at_once():
    calls = make_request(0, output_tokens=40), make_request(1, output_tokens=9)
    records = ended(serve(*calls, later={6: [Cut(calls[0].key, 2), Close(4)]}))
    assert 6 <= records[0].output_tokens <= 8


def test_a_call_that_moves_takes_along_what_it_wrote_and_says_the_same():
    call, other = make_request(0, output_tokens=20), make_request(1, output_tokens=30)
    whole = ended(serve(call))[0].response.token_ids
    said = serve(call, other, later={8: [Move(call.key, 5), Close(4)]})
    (output,) = [message for message in said if isinstance(message, Output)]
    assert sorted(ended(said)) == [1]
    assert (output.key, output.token_ids, output.prompt_tokens, output.finish_reason) == (call.key, whole[:8], 1, None)
    record = ended(serve(call._replace(generated=output.token_ids, wasted_tokens=8, attempt=1)))[0]
    assert (record.response.token_ids, record.output_tokens) == (whole, 20)
    assert (record.wasted_tokens, record.attempt) == (8, 1)


def test_a_long_session_says_that_it_lives_and_what_it_has_written():
    said = serve(*(make_request(slot, output_tokens=40, prompt="slow") for slot in range(4)))
    alive = [message for message in said if isinstance(message, Progress)]
    assert len(alive) >= 2
    assert {message.session for message in alive} == {4}
    seen = [tokens for message in alive for tokens in message.tokens.values()]
    assert 0 < max(seen) <= 40


def test_an_idle_session_says_that_it_lives():
    ours, theirs = Pipe()
    said = []

    def tell(message):
        said.append(message)
        if len(said) == 3:
            ours.send(Close(4))

    SessionService(make_serve(), Load(spec=SPEC, zero_ts=time.monotonic()), FakeEngine(SPEC), tell, theirs).run()
    assert [message.tokens for message in said if isinstance(message, Progress)][:2] == [{}, {}]


def test_a_worker_never_waits_for_its_driver_to_read():
    ours, theirs = Pipe()
    sender = Sender(theirs)
    said = [
        *serve(*(make_request(slot) for slot in range(5))),
        *(Output(CallKey("q", PROPOSE, slot)) for slot in range(20_000)),
    ]
    for message in said:
        sender.send(message)  # more than a pipe holds
    heard = []
    while len(heard) < len(said):
        heard += ours.recv()
    sender.finish()
    assert heard == said


def beginning(slot: int, prompt: str):
    return [make_request(slot, output_tokens=None, prompt=prompt, is_beginning=True, max_output_tokens=1)]


@pytest.mark.parametrize(
    ("messages", "num_steps", "read", "calls"),
    [
        pytest.param([beginning(7, "abc")], 12, [(7, 3, 3)], [0], id="a beginning is read and is no call"),
        pytest.param(
            [beginning(7, "abc"), [make_request(7)]], 12, [(7, 3, 0)], [0, 7],
            id="the call takes the place of its beginning, which had not been started",
        ),
        pytest.param(
            [beginning(7, "abc"), beginning(7, "abcdef"), beginning(8, "ab")], 20, [(7, 3, 0), (7, 6, 6), (8, 2, 2)],
            [0], id="a longer beginning takes the place of a shorter one",
        ),
        pytest.param([beginning(7, "refuse")], 12, [], [0], id="what the engine refuses is left to the call"),
    ],
)  # fmt: skip
def test_beginnings_are_read_behind_each_other(messages, num_steps, read, calls):
    said = serve(make_request(0, output_tokens=40), later={2: messages, num_steps: [Close(4)]})
    records = [event.record for event in said if isinstance(event, Prefilled)]
    assert [(record.key.slot, record.prompt_tokens, record.computed_tokens) for record in records] == read
    for record in records:
        assert record.session == 4
        assert 1.0 < record.queued_ts <= record.finished_ts
    assert {slot: record.output_tokens for slot, record in ended(said).items()} == {
        slot: 3 if slot else 40 for slot in calls
    }


def test_a_session_does_not_wait_for_what_nobody_will_read():
    said = serve(make_request(0, output_tokens=3), later={2: [beginning(7, "abc"), beginning(8, "ab"), Close(4)]})
    assert isinstance(said[-1], ClosedSession)
    assert sorted(event.record.key.slot for event in said if isinstance(event, Prefilled)) == [7, 8]


def test_cpu_engines_read_prompts_whole_and_need_no_gpu_arguments():
    arguments = engine_arguments(SPEC)
    assert (arguments["dtype"], arguments["block_size"], arguments["max_model_len"]) == ("float32", 32, 512)
    assert arguments["kv_cache_memory_bytes"] == 64 * 2**20
    assert (arguments["enable_chunked_prefill"], arguments["trust_remote_code"]) == (False, False)
    assert {"gpu_memory_utilization", "tensor_parallel_size", "max_num_batched_tokens"}.isdisjoint(arguments)


def test_gpu_engines_split_a_model_over_the_sessions_workers():
    loading = ModelLoading(enforce_eager=False, load_format="dummy", trust_remote_code=True)
    options = EngineOptions(max_num_batched_tokens=4096, loading=loading)
    settings = make_vllm_settings(Path("nowhere"), options, with_tokenizer=False)
    spec = EngineSpec(expert="A", num_workers=4, context_tokens=8192, max_num_seqs=256, settings=settings)
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
