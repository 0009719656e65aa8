"""From a batch file and a few names to a configuration: what a user of `mosaic batch` need not write as YAML."""

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from mosaic.config.compose import compose_config
from mosaic.config.engines import find_device
from mosaic.config.instantiation import TARGET, make
from mosaic.core.checks import require, require_unique
from mosaic.core.engine_options import Device
from mosaic.core.workload import Expert
from mosaic.engines.checkpoints import CheckpointError

MODELS = "mosaic.engines.named_models.expert_of_checkpoint"
PLACEHOLDER = "batch"
KNOWN_GPUS = {"A100": "a100_80gb", "4090": "rtx4090", "PRO 6000": "rtxpro6000", "H100 80GB": "h100_80gb"}
"""What the names of cards hold, by our files of them."""
DEFAULTS = ("workload=file", f"workload.path={PLACEHOLDER}", "backend=vllm", "cluster=local", "costs=affine")


class Gpu(NamedTuple):
    """A card of this machine."""

    name: str
    memory_gib: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRequest:
    """What a user wants answered, and by whom."""

    path: Path
    models: str | None = None
    """Names, or a LiteLLM file; None: the overrides name a pool."""
    aggregator: str | None = None
    """A name among the models, or one more checkpoint; none: no aggregator; None: the pool's, or the largest model."""
    per_question: int | None = None
    """Models that answer each question; None: three, or all where there are fewer."""
    workers: int | None = None
    """None: every GPU, or two of the machine's cores; on a Ray cluster as many as there is room for."""
    on: str | None = None
    """``ray``, or ``ray://HEAD``: the machines of a Ray cluster; None: this one."""
    checkpoints: str = "checkpoints"
    overrides: tuple[str, ...] = ()


def work_folder(path: Path) -> Path:
    """Name the folder of a batch's journal, beside its file."""
    return path.with_suffix(".mosaic")


def runs_vllm_here(request: BatchRequest) -> bool:
    """Tell whether a batch loads its models on this machine: not on others, and no servers are called."""
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
    chosen = {override.lstrip("+~").partition("=")[0] for override in request.overrides}
    rule = "names of checkpoints, A,B,C, or left out beside pool=NAME"
    require(request.models is not None or "pool" in chosen, "--models", rule, None)
    named = {} if request.models is None else named_models(request.models)
    defaults = [line for line in DEFAULTS if request.on is None or not line.startswith("cluster=")]
    given = [*defaults, *(_hardware(chosen, request.workers) if request.on is None else _on_ray(request, chosen))]
    if not any(key == "policy" or key.startswith("pipeline") for key in chosen):
        given.append("pipeline.replan=true")
    if named or request.aggregator is not None:
        given.append("aggregator=none" if request.aggregator == "none" else "aggregator=dp")
    kept = [line for line in given if line.partition("=")[0] not in chosen]
    config = compose_config([*kept, *request.overrides])
    config["pipeline"]["count_tokens"] = True  # a merge that does not fit is cut further, and not left out
    workload = config["workload"]
    if workload.get("path") == PLACEHOLDER:
        workload |= {"path": str(request.path), "name": request.path.stem}
    name = config["backend"]["name"]
    require(name in ("vllm", "endpoint"), "backend.name", "vllm or endpoint in a batch", name)
    if name == "vllm" and "backend.checkpoints" not in chosen:
        config["backend"]["checkpoints"] = request.checkpoints
    if named:
        config["pool"] = pool_of(named, request)
    elif request.aggregator not in (None, "none"):
        config["pool"]["aggregator"] = request.aggregator
    if workload.get("experts") is None and workload.get("profiles") is None and "experts" in workload:
        workload["experts"] = list(named) or _proposers(config["pool"])
    if request.per_question is not None:
        workload["num_slots_per_question"] = request.per_question
    return config


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
    if models.endswith((".yaml", ".yml")):
        return _litellm_models(Path(models))
    names = [part.strip() for part in models.split(",") if part.strip()]
    require(len(names) > 0, "--models", "names of checkpoints, A,B,C", models)
    require_unique((Path(name).name for name in names), "--models: last part of a name")
    return {Path(name).name: name for name in names}


def _litellm_models(path: Path) -> dict[str, str]:
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))["model_list"]
        found = [(entry["model_name"], entry["litellm_params"]) for entry in entries]
        pairs = [(str(name), str(parameters["model"])) for name, parameters in found]
    except OSError as error:
        raise ValueError(f"--models must be a readable file, got {str(path)!r} ({error.strerror})") from error
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise ValueError(
            f"--models must be a LiteLLM file, a model_list of model_name and litellm_params.model, got {str(path)!r}"
        ) from error
    for name, parameters in found:
        served = parameters.get("api_base")
        rule = (
            "left out: models are loaded here; for servers that are running give backend=endpoint and backend.endpoints"
        )
        require(served is None, f"{path}, {name}: api_base", rule, served)
        require(str(name).isprintable(), f"{path}: model_name", "text of one line, without control characters", name)
    require_unique((name for name, _ in pairs), f"{path}: model_name")
    return {name: _without_provider(model) for name, model in pairs}


def _without_provider(model: str) -> str:
    provider, _, name = model.partition("/")
    return name if provider in ("hosted_vllm", "vllm", "huggingface", "openai") and name else model


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
        aggregator = max(made, key=lambda expert: expert.shape.num_parameters).name
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


def _proposers(pool: Mapping[str, Any]) -> list[str]:
    """Name the experts that answer: all but the aggregator."""
    names = [str(entry["name"]) for entry in pool["experts"].values()]
    return [name for name in names if name != pool.get("aggregator")] or names


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
    """List the GPUs that may be used, as the driver names them; none where it does not say."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = [line.rsplit(",", 1) for line in listed.splitlines() if line.strip()]
    return tuple(Gpu(name.strip(), float(memory) / 1024) for name, memory in rows)
