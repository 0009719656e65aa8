"""Builds the real backends from their part of the configuration: engines, servers, and time limits."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from mosaic.config.errors import log
from mosaic.config.sections import Group, RaySection, keys_of, require_keys, section
from mosaic.config.sites import Backend, SiteInputs, sim_site
from mosaic.core.checks import AtLeast1, Name, Positive, require
from mosaic.core.engine_options import Device, EngineOptions, ModelLoading
from mosaic.core.spending import Cap
from mosaic.core.workload import Expert
from mosaic.engines.backend import EngineBackend
from mosaic.engines.billing import Billing
from mosaic.engines.checkpoints import find_checkpoint
from mosaic.engines.endpoint import (
    ENDPOINT_ENGINE,
    Endpoint,
    EndpointEngines,
    EndpointPatience,
    key_problems,
)
from mosaic.engines.launcher import Patience
from mosaic.engines.local_launcher import VLLM_ENGINE as VLLM_ENGINE
from mosaic.engines.local_launcher import LocalLauncher
from mosaic.engines.machine_agent import make_setup
from mosaic.engines.ray_cluster import RayCluster, Room
from mosaic.engines.remote_launcher import RemoteLauncher
from mosaic.engines.requests import Engines, RunContent
from mosaic.engines.site import EngineSite, Replayed
from mosaic.engines.token_embeddings import TokenEmbeddings
from mosaic.engines.vllm_engines import VllmEngines, loading_problems
from mosaic.pipelines.prompts import check_texts

CPU_KV_CACHE_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmSection:
    """Engines of vLLM."""

    mode: Literal["live", "replay"]
    """live: the model reads the real prompt and decides what to write. replay: it writes as many tokens as the
    simulated world determines, and the world provides the answer."""
    device: Literal["auto", "gpu", "cpu"]
    checkpoints: Name
    confidence: bool
    num_calibration_questions: AtLeast1
    engine: Group
    patience: Patience


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSection:
    """Servers that are running."""

    endpoints: tuple[Endpoint, ...]
    max_in_flight: AtLeast1
    patience: EndpointPatience
    max_requests: AtLeast1 | None = None
    """See ``Cap``."""
    max_dollars: Positive | None = None


def vllm(config: Mapping[str, Any]) -> Backend:
    """Build ``backend=vllm``.

    Raises
    ------
    ValueError, TypeError
        Naming the key, the rule and the value.
    """
    if "patience" in config:
        require_keys(config["patience"], "backend.patience", keys_of(Patience, unread=("servers",)))
    settings = section(config, VllmSection, "backend")
    options = vllm_options(settings)
    embed_by = partial(_embed_by, settings, options)
    return Backend(name="vllm", site=partial(_vllm_site, settings, options), options=options, embed_by=embed_by)


def _vllm_site(backend: VllmSection, options: EngineOptions, inputs: SiteInputs) -> EngineSite:
    _check_dp_attention(inputs)
    is_live, cluster, ray = backend.mode == "live", inputs.machines.cluster, inputs.machines.ray
    rule = "auto in live mode: random weights answer nothing"
    is_dummy = options.loading.dummy_weights
    require(not (is_live and is_dummy), "backend.engine.load_format", rule, options.loading.load_format)
    engines = VllmEngines(options=options, with_tokenizer=is_live, checkpoints=Path(backend.checkpoints))
    measured = replace(engines, options=replace(options, enable_prefix_caching=False))
    local = LocalLauncher(options, VLLM_ENGINE, options.loading.device)
    launcher = local if ray is None else _ray_launcher(inputs, ray, engines)

    def problems(is_failing: bool) -> Sequence[str]:
        found = loading_problems(inputs.called_experts, cluster, engines)
        # The nodes of a cluster are checked when they serve.
        own = local.problems(is_kept=not (found or is_failing)) if ray is None else ()
        return (*own, *found)

    return _site(
        inputs,
        "vllm",
        (engines, measured),
        launcher,
        backend.patience,
        with_confidence=backend.confidence or inputs.graph.rule.reads_confidence,
        options=options,
        problems=problems,
        give_up=local.close,
        num_calibration_questions=backend.num_calibration_questions,
        replayed=None if is_live else _replayed(inputs),
    )


def _check_dp_attention(inputs: SiteInputs) -> None:
    for expert in inputs.experts:
        require(not expert.dp_attention, f"expert {expert.name}: dp_attention", "false on real engines", True)


def _replayed(inputs: SiteInputs) -> Replayed:
    """Return the worlds of the simulator, which determine lengths and answers of calls."""
    simulated = sim_site(inputs, EngineOptions())
    return Replayed(
        run=simulated.world.outcome,
        calibration=simulated.calibration_world.outcome,
        draw=simulated.draw,
        answers_source=simulated.answers_source,
    )


def _ray_launcher(inputs: SiteInputs, ray: RaySection, engines: VllmEngines) -> RemoteLauncher:
    """Build the cluster of ``cluster=ray``."""
    called = {expert.name for expert in inputs.called_experts}
    wanted = [expert for expert in inputs.experts if expert.name in called]
    cluster = RayCluster(
        ray.address,
        Room(device=engines.options.loading.device, cpus_per_worker=ray.cpus_per_worker),
        lambda: make_setup(engines, VLLM_ENGINE, wanted),
    )
    return RemoteLauncher(cluster, ray.host_sizes, log=log)


def _embed_by(backend: VllmSection, options: EngineOptions, expert: Expert) -> TokenEmbeddings:
    """Return the embedder of texts by an expert's checkpoint.

    Raises
    ------
    CheckpointError, ValueError
        If there is none, or no text is written.
    """
    rule = "answers where nothing is written (backend.mode=replay)"
    require(backend.mode == "live", "exit.similarity", rule, "embeddings")
    found = find_checkpoint(expert.checkpoint, Path(backend.checkpoints), weights=True, tokenizer=True)
    return TokenEmbeddings(found, expert.context_limit, options)


def endpoint(config: Mapping[str, Any]) -> Backend:
    """Build ``backend=endpoint``: live only, since servers do not write to length; without measurements.

    Raises
    ------
    ValueError, TypeError
        Naming the key, the rule and the value.
    """
    site = partial(_endpoint_site, section(config, EndpointSection, "backend"))
    return Backend(name="endpoint", site=site, places=False)


def _endpoint_site(backend: EndpointSection, inputs: SiteInputs) -> EngineSite:
    _check_dp_attention(inputs)
    rule = inputs.graph.rule
    require(not rule.reads_confidence, "exit", "one that reads no confidence: servers do not report it", rule.name)
    for expert in inputs.experts:
        kv = expert.kv and expert.kv.policy.value
        require(expert.kv is None, f"expert {expert.name}: kv", "null: servers keep their KV cache as they do", kv)
    endpoints = backend.endpoints
    _check_endpoints(endpoints, inputs)
    patience = backend.patience
    engines = EndpointEngines(endpoints=endpoints, patience=patience, max_in_flight=backend.max_in_flight)
    launcher = LocalLauncher(engines, ENDPOINT_ENGINE, device=None)
    return _site(
        inputs,
        "endpoint",
        (engines, engines),
        launcher,
        Patience(
            # How long a worker may finish no step: its engine makes steps while its server sends nothing.
            stall_timeout_s=patience.reply_timeout_s + patience.max_wait_s,
            servers=patience,
        ),
        expert_by_server={worker: endpoint.expert for worker, endpoint in enumerate(endpoints)},
        billing=_billing(backend),
        problems=lambda is_failing: key_problems(endpoints),
    )


def _billing(backend: EndpointSection) -> Billing:
    prices = {worker: one.price for worker, one in enumerate(backend.endpoints) if one.price is not None}
    unknown = {one.expert: None for one in backend.endpoints if one.price is None}
    rule = f"null, or the price of every server known: of {', '.join(unknown)} none is (--price MODEL=IN/OUT)"
    require(backend.max_dollars is None or not unknown, "backend.max_dollars", rule, backend.max_dollars)
    cap = Cap(max_requests=backend.max_requests, max_dollars=backend.max_dollars)
    return Billing(prices=prices, cap=cap, max_retries=backend.patience.max_retries)


def _check_endpoints(endpoints: Sequence[Endpoint], inputs: SiteInputs) -> None:
    num_workers = inputs.machines.cluster.num_workers
    rule = f"one for each worker, cluster.num_workers={num_workers}"
    require(len(endpoints) == num_workers, "backend.endpoints", rule, len(endpoints))
    names = [expert.name for expert in inputs.experts]
    for endpoint in endpoints:
        require(endpoint.expert in names, "backend.endpoints: expert", f"one of the pool {names}", endpoint.expert)
    served = sorted({endpoint.expert for endpoint in endpoints})
    for name in (*inputs.workload.num_calls_by_expert, *(expert.name for expert in inputs.graph.experts)):
        rule = f"servers of every expert that is called; they serve {served}"
        require(name in served, "backend.endpoints", rule, name)


def _site(
    inputs: SiteInputs,
    name: str,
    engines: tuple[Engines, Engines],
    launcher: LocalLauncher | RemoteLauncher,
    patience: Patience,
    *,
    with_confidence: bool = False,
    replayed: Replayed | None = None,
    **own: Any,
) -> EngineSite:
    """Build a site from the engines of the run and of measurements, their launcher, and further fields."""
    if replayed is None:
        check_texts(inputs.workload)
        rule = "1 where models really answer: what was measured cannot be made wrong"
        require(inputs.length_error == 1, "profile.length_error", rule, inputs.length_error)

    def make(journal: Path, content: RunContent, *, is_measured: bool) -> EngineBackend:
        return EngineBackend(
            name=name,
            experts=inputs.experts,
            cluster=inputs.machines.cluster,
            journal=journal,
            content=replace(content, with_confidence=with_confidence),
            engines=engines[is_measured],
            launcher=launcher,
            patience=patience,
        )

    assert inputs.journal is not None, "a real run has a folder"
    return EngineSite(
        name=name,
        make=make,
        batch=inputs.workload,
        others=inputs.calibration,
        cluster=inputs.machines.cluster,
        journal=inputs.journal,
        seed=inputs.seed,
        profile_seed=inputs.profile_seed,
        description=f"on {inputs.machines.kinds[0].gpu.name}{inputs.draws}",
        opened=launcher.kept,
        replayed=replayed,
        **own,
    )


def vllm_options(backend: VllmSection) -> EngineOptions:
    """Build the engines' options from ``backend.engine`` and ``backend.device``.

    Raises
    ------
    ValueError, TypeError
        Naming the key, the rule and the value.
    """
    device = find_device() if backend.device == "auto" else Device(backend.device)
    known = keys_of(EngineOptions, ModelLoading, unread=("loading", "device"))
    engine = dict(require_keys(backend.engine, "backend.engine", known))
    names = ("dtype", "load_format", "enforce_eager", "trust_remote_code")
    loading = {name: engine.pop(name) for name in names if name in engine}
    if loading.get("dtype") is None:
        loading["dtype"] = "float32" if device is Device.CPU else "auto"
    if engine.get("kv_cache_memory_bytes") is None and device is Device.CPU:
        engine["kv_cache_memory_bytes"] = CPU_KV_CACHE_BYTES
    loaded = section({**loading, "device": device}, ModelLoading, "backend.engine")
    return section({**engine, "loading": loaded}, EngineOptions, "backend.engine")


def find_device() -> Device:
    """Return whether this machine has GPUs that may be used, without using one."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return Device.CPU
    return Device.GPU if Path("/dev/nvidia0").exists() or Path("/dev/dxg").exists() else Device.CPU
