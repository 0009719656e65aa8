"""The real backends' part of the configuration: engines, servers, and how patient to be with them."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from experiments.config.checks import require_section
from experiments.config.instantiation import call
from mosaic.core.checks import require, require_count, require_name
from mosaic.core.cluster import Cluster
from mosaic.core.workload import Expert, ExpertName, Workload
from mosaic.engines.endpoint import Endpoint, EndpointPatience
from mosaic.engines.engine import Device, EngineSettings
from mosaic.engines.host_process import HostProcess, host_process
from mosaic.engines.live_sessions import Patience
from mosaic.planning.restricted_costs import OnServers
from mosaic.runtime.run import CostFactory

CPU_KV_CACHE_BYTES = 64 * 2**20


class Mode(StrEnum):
    """Where a response comes from."""

    LIVE = "live"
    """The model reads the real prompt and decides what to write."""
    REPLAY = "replay"
    """The model writes as many tokens as the simulated world says, and the world says what they mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSetup:
    """Engines that a run starts itself."""

    mode: Mode
    settings: EngineSettings
    checkpoints: Path
    num_calibration_questions: int
    patience: Patience


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSetup:
    """Servers that are running already."""

    endpoints: tuple[Endpoint, ...]
    max_in_flight: int
    num_calibration_questions: int
    patience: EndpointPatience
    mode: Mode = Mode.LIVE

    @property
    def expert_by_worker(self) -> dict[int, ExpertName]:
        """Whom each worker serves."""
        return {worker: endpoint.expert for worker, endpoint in enumerate(self.endpoints)}


def engine_setup(backend: Mapping[str, Any]) -> EngineSetup:
    """Build what ``backend=vllm`` says.

    Raises
    ------
    ValueError, TypeError
        Naming the key, the rule and the value.
    """
    groups = ("engine", "patience")
    _require_keys(backend, ("mode", "device", "checkpoints", "num_calibration_questions", *groups))
    require_section(backend, groups, "backend.")
    modes = [mode.value for mode in Mode]
    require(backend["mode"] in modes, "backend.mode", f"one of {modes}", backend["mode"])
    devices = ["auto", *(device.value for device in Device)]
    require(backend["device"] in devices, "backend.device", f"one of {devices}", backend["device"])
    require_name(backend["checkpoints"], "backend.checkpoints")
    require_count(backend["num_calibration_questions"], "backend.num_calibration_questions", at_least=1)
    device = find_device() if backend["device"] == "auto" else Device(backend["device"])
    engine = dict(backend["engine"])
    if engine.get("dtype") is None:
        engine["dtype"] = "float32" if device is Device.CPU else "auto"
    if engine.get("kv_cache_bytes") is None and device is Device.CPU:
        engine["kv_cache_bytes"] = CPU_KV_CACHE_BYTES
    settings = call(EngineSettings, "backend.engine", device=device, **engine)
    mode = Mode(backend["mode"])
    rule = "false in live mode: random weights answer nothing"
    require(mode is Mode.REPLAY or not settings.dummy_weights, "backend.engine.dummy_weights", rule, True)
    return EngineSetup(
        mode=mode,
        settings=settings,
        checkpoints=Path(backend["checkpoints"]),
        num_calibration_questions=backend["num_calibration_questions"],
        patience=call(Patience, "backend.patience", **backend["patience"]),
    )


def server_setup(backend: Mapping[str, Any], experts: tuple[Expert, ...], cluster: Cluster) -> ServerSetup:
    """Build what ``backend=endpoint`` says.

    Raises
    ------
    ValueError, TypeError
        Naming the key, the rule and the value.
    """
    _require_keys(backend, ("endpoints", "max_in_flight", "num_calibration_questions", "patience"))
    require_section(backend, ("patience",), "backend.")
    require_count(backend["max_in_flight"], "backend.max_in_flight", at_least=1)
    require_count(backend["num_calibration_questions"], "backend.num_calibration_questions", at_least=1)
    if not isinstance(backend["endpoints"], list):
        raise TypeError(f"backend.endpoints must be a list of servers, got {backend['endpoints']!r}")
    for number, entry in enumerate(backend["endpoints"]):
        if not isinstance(entry, Mapping):
            raise TypeError(f"backend.endpoints[{number}] must have keys, got {entry!r}")
    endpoints = tuple(
        call(Endpoint, f"backend.endpoints[{number}]", **entry) for number, entry in enumerate(backend["endpoints"])
    )
    rule = f"one for each worker, cluster.num_workers={cluster.num_workers}"
    require(len(endpoints) == cluster.num_workers, "backend.endpoints", rule, len(endpoints))
    names = [expert.name for expert in experts]
    for endpoint in endpoints:
        require(endpoint.expert in names, "backend.endpoints: expert", f"one of the pool {names}", endpoint.expert)
    return ServerSetup(
        endpoints=endpoints,
        max_in_flight=backend["max_in_flight"],
        num_calibration_questions=backend["num_calibration_questions"],
        patience=call(EndpointPatience, "backend.patience", **backend["patience"]),
    )


def check_servers(servers: ServerSetup, workload: Workload, aggregator: ExpertName | None) -> None:
    """Check that every expert that is called has a server."""
    served = sorted(set(servers.expert_by_worker.values()))
    for name in [*workload.num_calls_by_expert, *([] if aggregator is None else [aggregator])]:
        rule = f"servers of every expert that is called; they serve {served}"
        require(name in served, "backend.endpoints", rule, name)


def on_servers(costs: CostFactory, servers: ServerSetup) -> CostFactory:
    """Let experts run only where a server holds them, loaded."""
    return lambda **known: OnServers(costs(**known), servers.expert_by_worker)


def find_device() -> Device:
    """Tell whether this machine has GPUs that may be used, without touching one."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return Device.CPU
    return Device.GPU if Path("/dev/nvidia0").exists() or Path("/dev/dxg").exists() else Device.CPU


@contextmanager
def open_host(setup: EngineSetup | ServerSetup) -> Iterator[HostProcess | None]:
    """Keep the process that imports vLLM, where the run starts engines itself."""
    if isinstance(setup, ServerSetup):
        yield None
        return
    with host_process(setup.settings) as host:
        yield host


def _require_keys(backend: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    for key in keys:
        require(key in backend, f"backend.{key}", "given", None)
    for key in backend:
        require(key in keys, "backend: key", f"one of {list(keys)}", key)
