"""The executor for the contract suite: with an engine that has no model, and with vLLM where it is installed."""

import atexit
import functools
from pathlib import Path

from mosaic.engines.backend import EngineBackend
from mosaic.engines.call_specs import RunContent
from mosaic.engines.host_process import VLLM_ENGINE, HostProcess
from mosaic.engines.vllm_engines import make_vllm_backend
from tests.engines.executor_runs import FAKE_ENGINE, OPTIONS
from tests.engines.tiny_checkpoint import write_tiny_checkpoint


@functools.cache
def host_of(engine_module: str) -> HostProcess:
    """One host for all tests of a process; it ends with it."""
    host = HostProcess(OPTIONS, engine_module)
    atexit.register(host.close)
    return host


def make_executor(engine_module: str, outcomes, *, experts, cluster, folder: Path) -> EngineBackend:
    """Make the backend of one run: a replay on tiny checkpoints, found by the experts' names of them.

    Over a folder where a run was interrupted it goes on with it; ``log`` is the log of its commands.
    """
    for expert in experts:
        write_tiny_checkpoint(folder / expert.checkpoint, seed=len(expert.name))
    return make_vllm_backend(
        experts=experts,
        cluster=cluster,
        journal=folder / "journal",
        content=RunContent(outcomes=outcomes),
        options=OPTIONS,
        checkpoints=folder,
        host=host_of(engine_module),
    )


make_fake_executor = functools.partial(make_executor, FAKE_ENGINE)
make_vllm_executor = functools.partial(make_executor, VLLM_ENGINE)
