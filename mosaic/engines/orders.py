"""What the executor and its processes tell each other; all of it is pickled."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

from mosaic.core.workload import CallKey, ExpertName
from mosaic.engines.engine import EngineSettings, EngineSpec, Prompt
from mosaic.runtime.journal_records import ClosedSession, EndedCall, OpenedSession


@dataclass(frozen=True, slots=True, kw_only=True)
class HostOrder:
    """To a new host process: which engines its workers will open."""

    engine_module: str
    """Name of an `EngineModule`."""
    settings: EngineSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkOrder:
    """To the host: start a worker process. Its link and the journal's lock follow as file descriptors."""

    process: int
    """Number of the worker process, never used twice."""
    cores: tuple[int, ...]
    gpus: tuple[str, ...]
    """Of CUDA_VISIBLE_DEVICES; empty on CPU."""
    log: Path
    """Where standard output and error go."""


class KillOrder(NamedTuple):
    """To the host: end a worker process and all it started, at once."""

    process: int


class HostReady(NamedTuple):
    """From the host: it can fork workers."""


class HostFailed(NamedTuple):
    """From the host: it cannot."""

    cause: str


class Forked(NamedTuple):
    """From the host: a worker process runs."""

    process: int
    pid: int


class Ended(NamedTuple):
    """From the host: a worker process is gone."""

    process: int
    exit_code: int
    """Negative: the signal that ended it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenOrder:
    """To a worker process: load an expert."""

    spec: EngineSpec
    journal: Path
    """The log that this process alone writes."""
    zero_ts: float
    """The run's zero on the machine's monotonic clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A call with all that its generation needs."""

    key: CallKey
    fingerprint: str
    prompt: Prompt
    prompt_tokens: int
    """As the call says; the record has what the engine counted."""
    seed: int
    temperature: float
    max_output_tokens: int
    output_tokens: int | None
    ready_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOrder:
    """To a worker process: serve what is left of a session, on the expert it has loaded."""

    plan: str
    session: int
    attempt: int
    role: Role
    expert: ExpertName
    workers: tuple[int, ...]
    load_start_ts: float
    is_resident: bool
    """The expert stayed from the session before, so nothing is loaded."""
    one_at_a_time: bool
    """No two calls together: one of them breaks the engine."""
    jobs: tuple[Job, ...]


class CancelOrder(NamedTuple):
    """To a worker process: drop calls that have not finished."""

    keys: tuple[CallKey, ...]


class CloseOrder(NamedTuple):
    """To a worker process: no session follows."""


class Progress(NamedTuple):
    """From a worker process: it lives and its engine moves."""

    session: int
    num_ended: int
    num_running: int
    """Submitted to the engine and not ended."""
    output_tokens: int
    """Of the calls that ended."""


class Served(NamedTuple):
    """From a worker process: a session is over and on the disk."""

    session: int
    end_ts: float


class Failure(NamedTuple):
    """From a worker process: it cannot go on; it ends after this."""

    cause: str
    """One line."""
    is_worker: bool
    """The worker itself is broken, another session would fail on it too."""
    is_journal: bool = False
    """The journal cannot be written, so the run cannot go on."""


ToHost: TypeAlias = ForkOrder | KillOrder
FromHost: TypeAlias = HostReady | HostFailed | Forked | Ended
ToWorker: TypeAlias = OpenOrder | ServeOrder | CancelOrder | CloseOrder
FromWorker: TypeAlias = EndedCall | OpenedSession | ClosedSession | Progress | Served | Failure


def one_line(error: BaseException, limit: int = 300) -> str:
    """Say what an error is in one line of at most so many characters."""
    text = " ".join(str(error).split())
    return clipped(f"{type(error).__name__}: {text}" if text else type(error).__name__, limit)


def clipped(text: str, limit: int = 300) -> str:
    """Put a text into one line of at most so many characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 4] + " ..."
