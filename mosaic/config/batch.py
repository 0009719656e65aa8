"""Makes the configuration of a batch from its file and a few names, so that its user need not write YAML."""

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mosaic.config.compose import compose_config
from mosaic.config.engines import find_device
from mosaic.config.instantiation import TARGET, make
from mosaic.config.litellm import deployments_of_litellm, is_litellm, litellm_entries, without_provider
from mosaic.config.servers import Deployment, deployments_of_servers, names_of, pool_of_servers
from mosaic.core.checks import require, require_unique
from mosaic.core.engine_options import Device
from mosaic.core.spending import Cap, TokenPrice
from mosaic.core.workload import Expert
from mosaic.engines.checkpoints import CheckpointError
from mosaic.report.batch_output import plain_stem
from mosaic.workloads.loaders import ANSWERS

MODELS = "mosaic.engines.named_models.expert_of_checkpoint"
PLACEHOLDER = "batch"
KNOWN_GPUS = {"A100": "a100_80gb", "4090": "rtx4090", "PRO 6000": "rtxpro6000", "H100 80GB": "h100_80gb"}
"""What the names of cards hold, by our files of them."""
DEFAULTS = ("workload=file", f"workload.path={PLACEHOLDER}", "backend=vllm", "cluster=local", "costs=affine")
ON_SERVERS = (
    "workload=file",
    f"workload.path={PLACEHOLDER}",
    "backend=endpoint",
    "backend.endpoints=[]",
    "cluster=local",
)
PLACED = ("backend", "cluster", "hardware", "pool", "scheduler", "costs")
"""Groups that define where experts run."""


class Gpu(NamedTuple):
    """A card of this machine."""

    name: str
    memory_gib: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRequest:
    """The questions of a user, and the models that answer them."""

    path: Path
    models: str | None = None
    """Names, or a LiteLLM file; None: the overrides name a pool, or all that the servers list."""
    servers: tuple[str, ...] = ()
    """URLs of servers that have the models; none: they are loaded, or the LiteLLM file names their servers."""
    key_env: str | None = None
    """Variable that holds the key of these servers."""
    token_prices: Mapping[str | None, TokenPrice] = field(default_factory=dict)
    """Of experts on servers, by name; of None: of all others."""
    cap: Cap = field(default_factory=Cap)
    """The most to spend on servers."""
    max_requests_per_min: int | None = None
    """Of each server and model; None: as a LiteLLM file says."""
    max_tokens_per_min: int | None = None
    """Likewise."""
    aggregator: str | None = None
    """A name among the models, or one more; none: no aggregator; None: the pool's, the largest checkpoint, or of
    models on servers the first."""
    per_question: int | None = None
    """Models that answer each question; None: three, or all if there are fewer."""
    workers: int | None = None
    """None: every GPU, or two of the machine's cores; on a Ray cluster as many as there is room for."""
    on: str | None = None
    """``ray``, or ``ray://HEAD``: the machines of a Ray cluster; None: this one."""
    checkpoints: str = "checkpoints"
    question_column: str | None = None
    """Column or key of the questions; None: one of the usual names."""
    answers: str | None = None
    """How answers compare: number, choice or text; None: guessed."""
    limit: int | None = None
    """Questions from the start of the file; None: all."""
    overrides: tuple[str, ...] = ()


def work_folder(path: Path) -> Path:
    """Return the folder of a batch's journal, next to its file."""
    return path.with_name(f"{plain_stem(path)}.mosaic")


def is_on_servers(request: BatchRequest) -> bool:
    """Return whether a batch names servers that have its models."""
    if request.servers or not is_litellm(request.models):
        return bool(request.servers)
    return any("api_base" in parameters for _, parameters, _ in litellm_entries(Path(str(request.models))))


def runs_vllm_here(request: BatchRequest) -> bool:
    """Return whether a batch loads its models on this machine: neither on others, nor on servers."""
    if is_on_servers(request):
        return False
    elsewhere = [name for name in request.overrides if name.startswith(("backend=", "cluster=ray"))]
    return request.on is None and set(elsewhere) <= {"backend=vllm"}


def batch_config(request: BatchRequest) -> dict[str, Any]:
    """Compose the configuration of a batch.

    Raises
    ------
    ValueError, TypeError, MosaicError, HydraException
        Naming the option, the rule and the value.
    """
    require(request.path.is_file(), "FILE", "a file with questions", str(request.path))
    require(request.answers in (None, *ANSWERS), "--answers", f"one of {list(ANSWERS)}", request.answers)
    chosen = {override.lstrip("+~").partition("=")[0] for override in request.overrides}
    served = deployments_of(request, chosen)
    named = {} if served or request.models is None else named_models(request.models)
    rule = "names of checkpoints, A,B,C, or left out beside --server URL or pool=NAME"
    require(bool(served or named) or "pool" in chosen, "--models", rule, request.models)
    pool = pool_of_servers(served, request.aggregator) if served else pool_of(named, request) if named else None
    given = [*ON_SERVERS] if served else _on_machines(request, chosen)
    if pool is not None or request.aggregator is not None:
        has_none = request.aggregator == "none" or (pool is not None and pool["aggregator"] is None)
        given.append("aggregator=none" if has_none else "aggregator=dp")
    kept = [line for line in given if line.partition("=")[0] not in chosen]
    config = compose_config([*kept, *request.overrides])
    config["pipeline"]["count_tokens"] = True  # a merge that does not fit is cut further, and not left out
    workload = config["workload"]
    if workload.get("path") == PLACEHOLDER:
        workload |= {"path": str(request.path), "name": plain_stem(request.path)}
        wanted = (("question_column", request.question_column), ("answers", request.answers), ("limit", request.limit))
        workload |= {key: value for key, value in wanted if value is not None}
        if "workload.bad_lines" not in chosen:
            workload["bad_lines"] = "leave_out"
    if pool is not None:
        config["pool"] = pool
    elif request.aggregator not in (None, "none"):
        config["pool"]["aggregator"] = request.aggregator
    _set_backend(config, request, chosen, served)
    if workload.get("experts") is None and workload.get("profiles") is None and "experts" in workload:
        workload["experts"] = list(named) or _proposers(config["pool"], request, is_served=bool(served))
    if request.per_question is not None:
        workload["num_slots_per_question"] = request.per_question
    return config


def _on_machines(request: BatchRequest, chosen: set[str]) -> list[str]:
    """Choose where models are loaded."""
    defaults = [line for line in DEFAULTS if request.on is None or not line.startswith("cluster=")]
    given = [*defaults, *(_hardware(chosen, request.workers) if request.on is None else _on_ray(request, chosen))]
    if not any(key == "policy" or key.startswith("pipeline") for key in chosen):
        given.append("pipeline.replan=true")
    return given


def deployments_of(request: BatchRequest, chosen: set[str]) -> list[Deployment]:
    """Find the models at the named servers; empty without servers."""
    if not is_on_servers(request):
        require(request.key_env is None, "--key-env", "left out without --server", request.key_env)
        return []
    for key in sorted(chosen):
        require(key not in PLACED, key, "left out where servers have the models: nothing is loaded or planned", key)
    for option, value in (("--on", request.on), ("--workers", request.workers)):
        require(value is None, option, "left out where servers have the models", value)
    if not request.servers:
        require(request.key_env is None, "--key-env", "left out: the file names keys", request.key_env)
        return deployments_of_litellm(litellm_entries(Path(str(request.models))), str(request.models))
    rule = "names that the servers have, or left out: a LiteLLM file names its servers itself"
    require(not is_litellm(request.models), "--models", rule, request.models)
    return deployments_of_servers(request.servers, request.models, request.key_env, request.aggregator)


def _set_backend(config: dict[str, Any], request: BatchRequest, chosen: set[str], served: Sequence[Deployment]) -> None:
    """Write the user's settings of engines or servers into the configuration: limits, prices and caps."""
    backend = config["backend"]
    name = backend["name"]
    require(name in ("vllm", "endpoint"), "backend.name", "vllm or endpoint in a batch", name)
    if name == "vllm" and "backend.checkpoints" not in chosen:
        backend["checkpoints"] = request.checkpoints
    limits = {
        "max_requests_per_min": request.max_requests_per_min,
        "max_tokens_per_min": request.max_tokens_per_min,
    }
    caps = asdict(request.cap)
    if name == "vllm":
        rule = "left out where models are loaded here: only servers (--server URL) bill requests and tokens"
        given = {**limits, **caps, "price of tokens": request.token_prices or None}
        for key, value in given.items():
            require(value is None, key, rule, value)
        return
    if served:
        backend["endpoints"] = [one.as_endpoint() for one in served]
        config["cluster"]["num_workers"] = len(served)
    backend |= {key: value for key, value in caps.items() if value is not None}
    experts = {str(endpoint["expert"]) for endpoint in backend["endpoints"]}
    for model in request.token_prices:
        require(model is None or model in experts, "--price", f"of one of {sorted(experts)}", model)
    for endpoint in backend["endpoints"]:
        endpoint |= {key: value for key, value in limits.items() if value is not None}
        price = request.token_prices.get(endpoint["expert"], request.token_prices.get(None))
        if price is not None:
            endpoint["price"] = asdict(price)


def named_models(models: str) -> dict[str, str]:
    """Read ``A,B,C`` or a LiteLLM file with a ``model_list``: checkpoints by name.

    Raises
    ------
    ValueError, TypeError
        Naming the rule and the value.

    Examples
    --------
    >>> named_models("Qwen/Qwen2.5-7B-Instruct,/models/Llama")
    {'Qwen2.5-7B-Instruct': 'Qwen/Qwen2.5-7B-Instruct', 'Llama': '/models/Llama'}
    """
    if is_litellm(models):
        entries = litellm_entries(Path(models))
        require_unique((name for name, _, _ in entries), f"{models}: model_name")
        return {name: without_provider(str(parameters["model"])) for name, parameters, _ in entries}
    names = names_of(models)
    require(len(names) > 0, "--models", "names of checkpoints, A,B,C", models)
    require_unique((Path(name).name for name in names), "--models: last part of a name")
    return {Path(name).name: name for name in names}


def pool_of(named: Mapping[str, str], request: BatchRequest) -> dict[str, Any]:
    """Make a pool of checkpoints; each is read once here, to find the largest.

    Raises
    ------
    CheckpointError
        With a line for each that cannot be read.
    """
    experts = {name: _entry(name, checkpoint, request) for name, checkpoint in named.items()}
    aggregator = request.aggregator
    if aggregator not in (None, "none") and aggregator not in experts:
        name = Path(str(aggregator)).name
        require(name not in experts, "--aggregator", "another name than those of --models", aggregator)
        experts[name] = _entry(name, str(aggregator), request)
        aggregator = name
    made = _read_all(experts)
    if aggregator is None:
        aggregator = max(made, key=lambda expert: expert.known_shape.num_parameters).name
    return {"name": "models", "aggregator": None if aggregator == "none" else aggregator, "experts": experts}


def _read_all(entries: Mapping[str, Mapping[str, Any]]) -> list[Expert]:
    made, found = [], []
    for entry in entries.values():
        try:
            made.append(make(entry, "--models"))
        except CheckpointError as error:
            found.append(str(error))
    if found:
        raise CheckpointError("\n".join(found))
    return made


def _entry(name: str, checkpoint: str, request: BatchRequest) -> dict[str, Any]:
    return {TARGET: MODELS, "name": name, "checkpoint": checkpoint, "checkpoints": request.checkpoints}


def _proposers(pool: Mapping[str, Any], request: BatchRequest, *, is_served: bool) -> list[str]:
    """Name the experts that answer: all except the aggregator; on servers all except one named only by --aggregator."""
    names = [str(entry["name"]) for entry in pool["experts"].values()]
    aggregator = pool.get("aggregator")
    if is_served and (is_litellm(request.models) or aggregator in names_of(request.models) or not request.models):
        return names
    return [name for name in names if name != aggregator] or names


def _hardware(chosen: set[str], workers: int | None) -> list[str]:
    """Name the GPUs of this machine, unless the overrides do."""
    gpus = find_gpus() if find_device() is Device.GPU and not {"cluster", "hardware"} & chosen else ()
    lines = [f"cluster.num_workers={workers or len(gpus)}"] if workers or gpus else []
    if not gpus:
        return lines
    known = next((file for part, file in KNOWN_GPUS.items() if part in gpus[0].name), "a100_80gb")
    memory_gib = min(gpu.memory_gib for gpu in gpus)
    return [*lines, f"hardware={known}", f"hardware.memory_gib={memory_gib:.1f}"]


def _on_ray(request: BatchRequest, chosen: set[str]) -> list[str]:
    """Take the machines of a Ray cluster; their kind of GPU is what Ray says, unless the overrides name one."""
    from mosaic.engines.ray_cluster import accelerator_of

    on = str(request.on)
    require(on == "ray" or on.startswith("ray://"), "--on", "ray or ray://HEAD", on)
    require("cluster" not in chosen, "cluster", "left out beside --on", "cluster=...")
    address = "auto" if on == "ray" else on
    lines = ["cluster=ray", f"cluster.address={address}"]
    lines += [f"cluster.num_workers={request.workers}"] if request.workers else []
    if "hardware" in chosen:
        return lines
    kind = accelerator_of(address)
    if kind is None:
        return [*lines, "hardware=cpu_core"]
    known = next((file for part, file in KNOWN_GPUS.items() if part in kind), None)
    require(known is not None, "hardware", f"given: no file of ours is of the cluster's {kind}", None)
    return [*lines, f"hardware={known}"]


def find_gpus() -> Sequence[Gpu]:
    """List the GPUs that may be used, by the driver's names; empty if the driver does not list them."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = [line.rsplit(",", 1) for line in listed.splitlines() if line.strip()]
    return tuple(Gpu(name.strip(), float(memory) / 1024) for name, memory in rows)
