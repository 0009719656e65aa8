"""Defines the messages between a run and its worker processes; all are pickled."""

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
    """Cores to which it is pinned; empty: it is not pinned."""
    gpus: tuple[str, ...]
    """Of CUDA_VISIBLE_DEVICES; empty: none."""
    log: Path
    """File for standard output and error."""


class Kill(NamedTuple):
    """To the fork server: end a worker process and all processes that it started, at once."""

    process: int


class Forked(NamedTuple):
    """From the fork server: a worker process runs."""

    process: int
    pid: int


class Reaped(NamedTuple):
    """From the fork server: a worker process has ended."""

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
    """The expert is still loaded from the session before, or is a server's, so nothing is loaded."""


class Quit(NamedTuple):
    """To a worker process: no session follows."""


class Failure(NamedTuple):
    """From a worker process: it cannot continue, and ends after this."""

    cause: str
    """One line."""
    is_worker: bool
    """The worker itself is broken: another session would fail on it too."""
    is_fatal: bool = False
    """No call will ever be served there, with any number of tries."""
    wait_s: float = 0.0
    """It must not be tried before this time has passed."""


class Exited(NamedTuple):
    """From a launcher: a worker process has ended, and all its messages were received."""

    exit_code: int
    """Negative: the signal that ended it."""
    fork_server_died: bool = False
    """It had to end with the process that started it."""
    printed: bytes = b""
    """On another machine: the end of its output."""
    machine_is_lost: bool = False
    """The machine is lost with all its processes: this shows nothing about the worker."""


FORK_SERVER_DIED = Exited(-9, fork_server_died=True)
MACHINE_LOST = Exited(-9, machine_is_lost=True)


class Gone(NamedTuple):
    """From a launcher: workers are down, and the models loaded on them are lost."""

    workers: tuple[int, ...]
    cause: str


class There(NamedTuple):
    """From a launcher: workers are up, again or for the first time."""

    workers: tuple[int, ...]


ToWorker: TypeAlias = Load | Serve | list[Request] | Cancel | Cut | Move | Close | Quit
"""A moved call is returned, with its written tokens; a cancelled or cut call ends."""
FromWorker: TypeAlias = Ready | Progress | Finished | Prefilled | Output | ClosedSession | Failure
"""An output is that of a returned call."""


def one_line(error: BaseException, limit: int = 300) -> str:
    """Describe an error in one line of at most so many characters."""
    text = " ".join(str(error).split())
    return clipped(f"{type(error).__name__}: {text}" if text else type(error).__name__, limit)


def clipped(text: str, limit: int = 300) -> str:
    """Shorten a text to one line of at most so many characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 4] + " ..."
