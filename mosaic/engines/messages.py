"""Messages between a run and its worker processes; all are pickled."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

from mosaic.core.commands import Cancel, Close, Cut, Move
from mosaic.core.events import Finished, Prefilled, Progress, Ready
from mosaic.core.plan import Session
from mosaic.engines.engine import EngineSpec, Output, Request
from mosaic.runtime.journal import ClosedSession


@dataclass(frozen=True, slots=True, kw_only=True)
class Fork:
    """To the fork server: start a worker process. Its link follows as a file descriptor."""

    process: int
    """Number of the worker process, never used twice."""
    cores: tuple[int, ...]
    """It is pinned to them; empty: it is not."""
    gpus: tuple[str, ...]
    """Of CUDA_VISIBLE_DEVICES; empty: none."""
    log: Path
    """Where standard output and error go."""


class Kill(NamedTuple):
    """To the fork server: end a worker process and all it started, at once."""

    process: int


class Forked(NamedTuple):
    """From the fork server: a worker process runs."""

    process: int
    pid: int


class Reaped(NamedTuple):
    """From the fork server: a worker process is gone."""

    process: int
    exit_code: int
    """Negative: the signal that ended it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """To a worker process: load an expert."""

    spec: EngineSpec
    zero_ts: float
    """The run's zero on the machine's monotonic clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Serve:
    """To a worker process: serve a session on the expert it has loaded, until ``Close`` arrives."""

    session: Session
    """Without its calls."""
    load_start_ts: float
    is_resident: bool
    """The expert stayed from the session before, or is a server's, so nothing is loaded."""


class Quit(NamedTuple):
    """To a worker process: no session follows."""


class Failure(NamedTuple):
    """From a worker process: it cannot go on; it ends after this."""

    cause: str
    """One line."""
    is_worker: bool
    """The worker itself is broken, another session would fail on it too."""
    is_fatal: bool = False
    """No call will ever be served there, however often it is tried."""
    wait_s: float = 0.0
    """It is not to be tried before this time has passed."""


class Exited(NamedTuple):
    """From a launcher: a worker process is gone, and all it sent was received."""

    exit_code: int
    """Negative: the signal that ended it."""
    fork_server_died: bool = False
    """It had to end with the process that started it."""
    printed: bytes = b""
    """On another machine: the end of what it printed."""
    machine_is_lost: bool = False
    """With all that ran there: it says nothing of the worker."""


FORK_SERVER_DIED = Exited(-9, fork_server_died=True)
MACHINE_LOST = Exited(-9, machine_is_lost=True)


class Gone(NamedTuple):
    """From a launcher: workers are not there, and what was loaded on them is lost."""

    workers: tuple[int, ...]
    cause: str


class There(NamedTuple):
    """From a launcher: workers are there, again or for the first time."""

    workers: tuple[int, ...]


ToWorker: TypeAlias = Load | Serve | list[Request] | Cancel | Cut | Move | Close | Quit
"""A call that is moved is given back, with what it has written; one that is cancelled or cut ends."""
FromWorker: TypeAlias = Ready | Progress | Finished | Prefilled | Output | ClosedSession | Failure
"""An output is that of a call that is given back."""


def one_line(error: BaseException, limit: int = 300) -> str:
    """Say what an error is in one line of at most so many characters."""
    text = " ".join(str(error).split())
    return clipped(f"{type(error).__name__}: {text}" if text else type(error).__name__, limit)


def clipped(text: str, limit: int = 300) -> str:
    """Put a text into one line of at most so many characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 4] + " ..."
