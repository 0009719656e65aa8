"""What the driver of a run and the agents on machines tell each other; all of it is pickled."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

from mosaic.core.engine_options import Device
from mosaic.engines.engine import EngineSpec
from mosaic.engines.messages import Exited, FromWorker, ToWorker


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedCheckpoint:
    """A checkpoint that every machine must have, as the driver found it."""

    expert: str
    name: str
    """By which each machine finds it."""
    folder: Path | None
    """Where it lies if its name is no path."""
    path: Path
    """Where the driver has it."""
    fingerprint: str
    weights: bool
    """They are loaded."""
    tokenizer: bool
    """It is used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSetup:
    """What an agent needs to know of the run."""

    settings: object
    """Of the engine module."""
    engine_module: str
    device: Device
    versions: dict[str, str]
    """What the driver has installed, by name."""
    checkpoints: tuple[WantedCheckpoint, ...] = ()
    num_threads: str | None = None
    """OMP_NUM_THREADS of the driver: Ray sets its own for what it starts."""


class OpenOn(NamedTuple):
    """To an agent: start a worker process."""

    number: int
    """Of the process, as the driver counts."""
    spec: EngineSpec
    workers: tuple[int, ...]
    """As the machine counts its own, from 0."""


class Pass(NamedTuple):
    """To an agent: tell a worker process something."""

    number: int
    message: ToWorker


class End(NamedTuple):
    """To an agent: end a worker process and all it started, at once."""

    number: int


class Printed(NamedTuple):
    """From an agent: the end of what a worker process printed."""

    text: bytes


class News(NamedTuple):
    """From an agent: what its worker processes said, in order, with their numbers."""

    said: list[tuple[int, FromWorker | Printed | Exited]]
    num_host_deaths: int


Order: TypeAlias = OpenOn | Pass | End
