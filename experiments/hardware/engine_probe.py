"""Finds what only an engine on the device knows: the kind of device, and the room for KV cache.

Each fact is found in a process of its own, which releases the device when it ends.
"""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

from mosaic.core.engine_options import Device
from mosaic.core.errors import BackendError
from mosaic.engines.engine import EngineSpec
from mosaic.engines.local_launcher import import_advice
from mosaic.engines.messages import one_line

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """What a worker drives."""

    name: str
    memory_bytes: int
    num_sms: int
    """Streaming multiprocessors of a GPU; a worker on CPU is one core."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What an engine was found to be."""

    kv_cache_tokens: int


def device_facts(device: Device, log: Path) -> DeviceFacts:
    """Ask for the first device of a kind.

    Raises
    ------
    BackendError
        If there is none that may be used.
    """
    return _in_own_process(_read_cpu if device is Device.CPU else _read_gpu, log, "the device")


def engine_facts(spec: EngineSpec, log: Path) -> EngineFacts:
    """Load an engine once and ask it.

    Raises
    ------
    BackendError
        If it cannot be loaded.
    """
    return _in_own_process(_Loading(spec), log, f"an engine of {spec.expert}")


def _read_cpu() -> DeviceFacts:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "a CPU")
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return DeviceFacts(name=f"a core of {name}", memory_bytes=memory_bytes, num_sms=1)


def _read_gpu() -> DeviceFacts:
    import torch

    found = torch.cuda.get_device_properties(0)
    return DeviceFacts(name=found.name, memory_bytes=found.total_memory, num_sms=found.multi_processor_count)


@dataclass(frozen=True, slots=True)
class _Loading:
    spec: EngineSpec

    def __call__(self) -> EngineFacts:
        from mosaic.engines.vllm_engine import open_engine, prepare

        prepare(self.spec.settings.options)
        return EngineFacts(kv_cache_tokens=open_engine(self.spec).kv_cache_tokens)


def _in_own_process(ask: Callable[[], T], log: Path, what: str) -> T:
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            answer = pool.submit(_logged, ask, log).result()
    except BrokenProcessPool as error:
        raise BackendError(f"{what}: the process that was to find out died; see {log}") from error
    if isinstance(answer, str):
        raise BackendError(f"{what}: {answer}; {import_advice(answer)}; see {log}")
    return answer


def _logged(ask: Callable[[], T], log: Path) -> T | str:
    """Ask with all that is printed in a log; an error comes back as a line, since not all of them can be pickled."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    try:
        return ask()
    except Exception as error:
        return one_line(error)
