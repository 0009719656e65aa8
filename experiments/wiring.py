"""Turns a resolved Hydra configuration into mosaic's plain values; nothing else knows both."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from experiments.config_checks import check_calls, require_path, require_section
from mosaic.checks import require, require_count, require_name, require_unique
from mosaic.cluster import Cluster, uniform_cluster
from mosaic.length_sources import length_distributions
from mosaic.lengths import LengthDistribution
from mosaic.profiles import Profile, load_profile
from mosaic.schedulers.base import Scheduler
from mosaic.sweep import Sweep, run_sweep
from mosaic.workload import Expert, ExpertName, Workload
from sim.backend import SimBackend
from sim.engine_settings import EngineSettings
from sim.hardware import Hardware
from sim.world import World

SECTIONS = ("pool", "workload", "profile", "backend", "hardware", "cluster", "costs", "scheduler", "plan")
BACKENDS = ("sim", "none")

CONF = Path(__file__).resolve().parents[1] / "conf"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Everything a run is made of."""

    workload: Workload
    experts: tuple[Expert, ...]
    cluster: Cluster
    hardware: Hardware
    settings: EngineSettings | None
    """None: the backend runs nothing (backend=none)."""
    lengths: Mapping[ExpertName, LengthDistribution]
    costs: Callable[..., Any]
    scheduler: Scheduler
    sweep: Sweep
    profile_path: str | None
    profile_seed: int
    seed: int

    def world(self) -> World:
        """The world that the run meets."""
        recorded = self.workload.output_tokens or {}
        return World(lengths=self.lengths, root_seed=self.seed, recorded=recorded)

    def backend(self, world: World) -> SimBackend:
        """The simulator in a world; the profile of a plan that is only explained comes from its defaults."""
        return SimBackend(
            experts=self.experts,
            cluster=self.cluster,
            hardware={self.hardware.gpu.name: self.hardware},
            settings=self.settings or EngineSettings(),
            outcomes=world.outcome,
        )

    def profile(self) -> Profile:
        """Read the profile, or sweep the simulator's calibration world for the experts that have calls."""
        if self.profile_path is not None:
            return load_profile(self.profile_path)
        world = World(lengths=self.lengths, root_seed=self.profile_seed, stream="calibration")
        # NOTE: prompts are visible to a scheduler, so the calibration calls repeat the batch's own.
        prompts = [call.prompt_tokens for call in self.workload.calls]
        called = self.workload.num_calls_by_expert
        return run_sweep(
            self.sweep,
            [expert for expert in self.experts if expert.name in called],
            self.cluster,
            self.backend(world),
            lambda i: prompts[i % len(prompts)],
            f"simulated sweep of {self.workload.name} on {self.hardware.gpu.name}, seed {self.profile_seed}",
        )


def setup_from(config: Mapping[str, Any]) -> Setup:
    """Build the values of a run.

    Raises
    ------
    ValueError, TypeError, MosaicError
        Naming the field, the rule and the value.
    """
    require_count(config.get("seed"), "seed")
    require_section(config, SECTIONS)
    pool, source, profile, backend = (dict(config[name]) for name in ("pool", "workload", "profile", "backend"))
    require_section(profile, ("sweep",), "profile.")
    require_count(profile.get("seed"), "profile.seed")
    require_path(profile.get("path"), "profile.path")
    require_path(config["plan"].get("path"), "plan.path")
    experts = _pool(pool)
    hardware = _make(config["hardware"], "hardware")
    cluster = _call(uniform_cluster, "cluster", **config["cluster"], gpu=hardware.gpu)
    lengths = length_distributions(pool.get("output_tokens") or {})
    scale = source.pop("length_scale", None)
    lengths |= length_distributions(source.pop("output_tokens", None) or {}, length_scale=scale)
    workload = _make(source, "workload")
    check_calls(workload, experts, cluster)
    name = backend.pop("name", None)
    require(name in BACKENDS, "backend.name", f"one of {list(BACKENDS)}", name)
    return Setup(
        workload=workload,
        experts=experts,
        cluster=cluster,
        hardware=hardware,
        settings=_call(EngineSettings, "backend", **backend) if name == "sim" else None,
        lengths=lengths,
        costs=_make(config["costs"], "costs"),
        scheduler=_make(config["scheduler"], "scheduler"),
        sweep=_call(Sweep, "profile.sweep", **profile["sweep"]),
        profile_path=profile.get("path"),
        profile_seed=profile["seed"],
        seed=config["seed"],
    )


def compose_config(overrides: list[str]) -> dict[str, Any]:
    """Compose the configuration of a point outside of a Hydra application."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return plain(compose("config", overrides))


FILE_KEYS = ("path", "profiles", "profile", "calls", "output_tokens")
"""Keys that may name a file."""


def with_input_digests(config: Mapping[str, Any]) -> dict[str, Any]:
    """Add the SHA-256 of every file that a configuration names, so that a changed file is another configuration."""
    stamped: dict[str, Any] = {}
    for key, value in config.items():
        stamped[key] = with_input_digests(value) if isinstance(value, Mapping) else value
        if key in FILE_KEYS and isinstance(value, str) and Path(value).is_file():
            stamped[f"{key}_sha256"] = sha256(Path(value).read_bytes()).hexdigest()
    return stamped


def plain(config: Any) -> dict[str, Any]:
    """Resolve a Hydra configuration into plain dictionaries and lists."""
    resolved: dict[str, Any] = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    resolved.pop("hydra", None)
    return resolved


def _pool(pool: Mapping[str, Any]) -> tuple[Expert, ...]:
    require_section(pool, ("experts",), "pool.")
    require_section(pool["experts"], pool["experts"], "pool.experts.")
    made = {key: _make(entry, f"pool.experts.{key}") for key, entry in pool["experts"].items()}
    for key, expert in made.items():
        if not isinstance(expert, Expert):
            raise TypeError(f"pool.experts.{key}._target_ must make a mosaic.workload.Expert, got {expert!r}")
    require_unique((expert.name for expert in made.values()), "pool.experts: name")
    return tuple(made.values())


def _make(config: Mapping[str, Any], label: str) -> Any:
    """Instantiate a group, showing the cause of a failure and not Hydra's way to it."""
    require_name(config.get("_target_"), f"{label}._target_")
    try:
        return instantiate(config, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, ImportError | AttributeError):
            reason = " ".join(str(cause).split())
            raise ValueError(f"{label}._target_ must be importable, got {config['_target_']!r} ({reason})") from error
        raise _labelled(cause, label) from error


def _call(make: Callable[..., Any], label: str, /, **values: Any) -> Any:
    try:
        return make(**values)
    except TypeError as error:
        raise _labelled(error, label) from error


def _labelled(error: BaseException, label: str) -> BaseException:
    """Name the group in Python's own complaint about arguments, which names a function that a user never sees."""
    _, found, complaint = str(error).partition("() ")
    if isinstance(error, TypeError) and found:
        return TypeError(f"{label} {complaint}")
    return error
