"""The executor for the contract suite: with an engine that has no model, and with vLLM where it is installed."""

import atexit
import functools
from pathlib import Path

from mosaic.engines.host_process import VLLM_ENGINE, HostProcess
from mosaic.engines.vllm_backend import VllmBackend
from tests.engines.executor_runs import FAKE_ENGINE, SETTINGS
from tests.engines.tiny_checkpoint import write_tiny_checkpoint


@functools.cache
def host_of(engine_module: str) -> HostProcess:
    """One host for all tests of a process; it ends with it."""
    host = HostProcess(SETTINGS, engine_module)
    atexit.register(host.close)
    return host


def make_executor(engine_module: str, outcomes, *, experts, cluster, folder: Path) -> VllmBackend:
    """Replay on tiny checkpoints, found by the experts' names of them."""
    for expert in experts:
        write_tiny_checkpoint(folder / expert.checkpoint, seed=len(expert.name))
    return VllmBackend(
        experts=experts,
        cluster=cluster,
        journal=folder / "journal",
        outcomes=outcomes,
        settings=SETTINGS,
        checkpoints=folder,
        host=host_of(engine_module),
    )


make_fake_executor = functools.partial(make_executor, FAKE_ENGINE)
make_vllm_executor = functools.partial(make_executor, VLLM_ENGINE)
