"""The real backends' part of the configuration: engines, servers, and how patient to be with them."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mosaic.config.instantiation import call
from mosaic.config.sections import EndpointSection, Mode, RaySection, VllmSection, section
from mosaic.config.sites import Backend, Parts, sim_site
from mosaic.core.checks import require
from mosaic.core.engine_options import Device, EngineOptions, ModelLoading
from mosaic.core.workload import Expert
from mosaic.engines.backend import EngineBackend
from mosaic.engines.checkpoints import find_checkpoint
from mosaic.engines.endpoint import (
    ENDPOINT_ENGINE,
    Endpoint,
    EndpointEngines,
    EndpointPatience,
    EndpointSettings,
    key_problems,
)
from mosaic.engines.launcher import Patience
from mosaic.engines.local_launcher import VLLM_ENGINE as VLLM_ENGINE
from mosaic.engines.local_launcher import LocalLauncher
from mosaic.engines.machine_agent import make_setup
from mosaic.engines.ray_cluster import RayCluster, Room
from mosaic.engines.remote_launcher import RemoteLauncher
from mosaic.engines.requests import RunContent
from mosaic.engines.site import EngineSite, Replayed
from mosaic.engines.token_embeddings import TokenEmbeddings
from mosaic.engines.vllm_engines import VllmEngines, loading_problems
from mosaic.pipelines.prompts import check_texts, expert_prompt

CPU_KV_CACHE_BYTES = 64 * 2**20


def vllm(config: Mapping[str, Any]) -> Backend:
    """Build ``backend=vllm``.

    Raises
    ------
    ValueError, TypeError
        Naming the key, the rule and the value.
    """
    settings = section(config, VllmSection, "backend")
    options = vllm_options(settings)
    embed_by = partial(_embed_by, settings, options)
    return Backend(name="vllm", site=partial(_vllm_site, settings, options), options=options, embed_by=embed_by)


def _vllm_site(backend: VllmSection, options: EngineOptions, parts: Parts) -> EngineSite:
    mode = backend.mode
    rule = "auto in live mode: random weights answer nothing"
    dummy = options.loading.dummy_weights
    require(mode is Mode.REPLAY or not dummy, "backend.engine.load_format", rule, options.loading.load_format)
    patience: Patience = call(Patience, "backend.patience", **backend.patience)
    checkpoints = Path(backend.checkpoints)
    engines = VllmEngines(options=options, with_tokenizer=mode is Mode.LIVE, checkpoints=checkpoints)
    measured = replace(engines, options=replace(options, enable_prefix_caching=False))
    local = LocalLauncher(options, VLLM_ENGINE, options.loading.device)
    launcher = local if parts.ray is None else _ray_launcher(parts, parts.ray, engines)

    def make(journal: Path, content: RunContent, *, is_measured: bool) -> EngineBackend:
        return EngineBackend(
            name="vllm",
            experts=parts.experts,
            cluster=parts.cluster,
            journal=journal,
            content=replace(content, with_confidence=_reads_confidence(backend, parts)),
            engines=measured if is_measured else engines,
            launcher=launcher,
            patience=patience,
        )

    def problems(is_failing: bool) -> Sequence[str]:
        found = loading_problems(parts.called_experts, parts.cluster, engines)
        # The nodes of a cluster are asked when they serve.
        own = local.problems(is_kept=not (found or is_failing)) if parts.ray is None else ()
        return (*own, *found)

    return _site(parts, "vllm", make, launcher.kept, backend, options=options, problems=problems)


def _reads_confidence(backend: VllmSection, parts: Parts) -> bool:
    """Tell whether responses are to say how probable their tokens were."""
    return backend.confidence or parts.graph.rule.reads_confidence


def _ray_launcher(parts: Parts, ray: RaySection, engines: VllmEngines) -> RemoteLauncher:
    """Build what ``cluster=ray`` says."""
    called = {expert.name for expert in parts.called_experts}
    wanted = [expert for expert in parts.experts if expert.name in called]
    options = engines.options
    cluster = RayCluster(
        ray.address,
        Room(device=options.loading.device, cpus_per_worker=ray.cpus_per_worker),
        lambda: make_setup(options, VLLM_ENGINE, engines.wanted(wanted)),
    )
    return RemoteLauncher(cluster, ray.host_sizes, log=lambda line: print(line, file=sys.stderr, flush=True))


def _embed_by(backend: VllmSection, options: EngineOptions, expert: Expert) -> TokenEmbeddings:
    """Give what embeds texts by an expert's checkpoint.

    Raises
    ------
    CheckpointError, ValueError
        If there is none, or nothing is written.
    """
    rule = "answers where nothing is written (backend.mode=replay)"
    require(backend.mode is Mode.LIVE, "exit.similarity", rule, "embeddings")
    found = find_checkpoint(expert.checkpoint, Path(backend.checkpoints), weights=True, tokenizer=True)
    return TokenEmbeddings(found, expert.context_tokens, options)


def endpoint(config: Mapping[str, Any]) -> Backend:
    """Build ``backend=endpoint``: live only, servers do not write to length, and nothing is measured.

    Raises
    ------
    ValueError, TypeError
        Naming the key, the rule and the value.
    """
    return Backend(name="endpoint", site=partial(_endpoint_site, section(config, EndpointSection, "backend")))


def _endpoint_site(backend: EndpointSection, parts: Parts) -> EngineSite:
    rule = parts.graph.rule
    require(not rule.reads_confidence, "exit", "one that reads no confidence: servers are not asked", rule.name)
    for expert in parts.experts:
        kv = expert.kv and expert.kv.policy.value
        require(expert.kv is None, f"expert {expert.name}: kv", "null: servers keep their KV cache as they do", kv)
    endpoints = _endpoints(backend.endpoints, parts)
    patience: EndpointPatience = call(EndpointPatience, "backend.patience", **backend.patience)
    engines = EndpointEngines(endpoints=endpoints, patience=patience, max_in_flight=backend.max_in_flight)
    settings = EndpointSettings(endpoint=endpoints[0], patience=patience)
    launcher = LocalLauncher(settings, ENDPOINT_ENGINE, device=None)
    expert_by_server = {worker: endpoint.expert for worker, endpoint in enumerate(endpoints)}

    def make(journal: Path, content: RunContent, *, is_measured: bool) -> EngineBackend:
        return EngineBackend(
            name="endpoint",
            experts=parts.experts,
            cluster=parts.cluster,
            journal=journal,
            content=content,
            engines=engines,
            launcher=launcher,
            patience=Patience(
                stall_timeout_s=_longest_silence_s(patience),
                outage_timeout_s=patience.outage_timeout_s,
                first_pause_s=patience.first_wait_s,
                max_pause_s=patience.max_wait_s,
            ),
        )

    problems = lambda is_failing: key_problems(endpoints)  # noqa: E731
    return _site(parts, "endpoint", make, launcher.kept, None, expert_by_server, problems=problems)


def vllm_options(backend: VllmSection) -> EngineOptions:
    """Build the engines' options from ``backend.engine`` and ``backend.device``.

    Raises
    ------
    ValueError, TypeError
        Naming the key, the rule and the value.
    """
    device = find_device() if backend.device == "auto" else Device(backend.device)
    engine = dict(backend.engine)
    names = ("dtype", "load_format", "enforce_eager", "trust_remote_code")
    loading = {name: engine.pop(name) for name in names if name in engine}
    if loading.get("dtype") is None:
        loading["dtype"] = "float32" if device is Device.CPU else "auto"
    if engine.get("kv_cache_memory_bytes") is None and device is Device.CPU:
        engine["kv_cache_memory_bytes"] = CPU_KV_CACHE_BYTES
    made: EngineOptions = call(
        EngineOptions,
        "backend.engine",
        loading=call(ModelLoading, "backend.engine", device=device, **loading),
        **engine,
    )
    return made


def find_device() -> Device:
    """Tell whether this machine has GPUs that may be used, without touching one."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return Device.CPU
    return Device.GPU if Path("/dev/nvidia0").exists() or Path("/dev/dxg").exists() else Device.CPU


def _site(
    parts: Parts,
    name: str,
    make: Callable[..., EngineBackend],
    opened: Callable[[], AbstractContextManager[object]],
    vllm: VllmSection | None,
    expert_by_server: Mapping[int, str] | None = None,
    options: EngineOptions | None = None,
    *,
    problems: Callable[[bool], Sequence[str]],
) -> EngineSite:
    replays = vllm is not None and vllm.mode is Mode.REPLAY
    if not replays:
        check_texts(parts.workload)
        rule = "1 where models really answer: what was measured cannot be made wrong"
        require(parts.length_error == 1, "profile.length_error", rule, parts.length_error)
    replayed = None
    if replays:
        simulated = sim_site(parts, EngineOptions())
        replayed = Replayed(
            run=simulated.world.outcome,
            calibration=simulated.calibration_world.outcome,
            ask=simulated.draw,
            answers_source=simulated.answers_source,
        )
    if expert_by_server is not None:
        served = sorted(set(expert_by_server.values()))
        rule = f"servers of every expert that is called; they serve {served}"
        for expert in (*parts.workload.num_calls_by_expert, *(expert.name for expert in parts.graph.experts)):
            require(expert in served, "backend.endpoints", rule, expert)
    assert parts.journal is not None, "a real run has a folder"
    return EngineSite(
        name=name,
        make=make,
        batch=parts.workload,
        calibration=parts.calibration,
        cluster=parts.cluster,
        journal=parts.journal,
        seed=parts.seed,
        profile_seed=parts.profile_seed,
        circumstances=f"on {parts.hardware.gpu.name}{parts.luck}",
        prompt_text=expert_prompt,
        num_calibration_questions=0 if vllm is None else vllm.num_calibration_questions,
        replayed=replayed,
        expert_by_server=expert_by_server,
        opened=opened,
        options=options,
        problems=problems,
    )


def _endpoints(config: Sequence[Mapping[str, Any]], parts: Parts) -> tuple[Endpoint, ...]:
    endpoints = tuple(call(Endpoint, f"backend.endpoints[{number}]", **entry) for number, entry in enumerate(config))
    rule = f"one for each worker, cluster.num_workers={parts.cluster.num_workers}"
    require(len(endpoints) == parts.cluster.num_workers, "backend.endpoints", rule, len(endpoints))
    names = [expert.name for expert in parts.experts]
    for endpoint in endpoints:
        require(endpoint.expert in names, "backend.endpoints: expert", f"one of the pool {names}", endpoint.expert)
    return endpoints


def _longest_silence_s(patience: EndpointPatience) -> float:
    """How long a worker may finish no step: its engine steps while its server is silent."""
    return patience.reply_timeout_s + patience.max_wait_s
