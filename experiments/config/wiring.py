"""Turns a resolved Hydra configuration into mosaic's plain values; nothing else knows both."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from experiments.config.config_checks import check_calls, require_path, require_section
from experiments.config.executor_wiring import (
    EngineSetup,
    Mode,
    ServerSetup,
    check_servers,
    engine_setup,
    on_servers,
    server_setup,
)
from experiments.config.instantiation import call, make
from experiments.config.stage_wiring import (
    SimulatedAnswers,
    StageSetup,
    check_batch,
    check_profile,
    check_simulated,
    second_stage,
    simulated_answers,
)
from mosaic.core.checks import require, require_count, require_number, require_unique
from mosaic.core.cluster import Cluster, uniform_cluster
from mosaic.core.lengths import LengthDistribution
from mosaic.core.realization import question_uniforms
from mosaic.core.workload import CallKey, Expert, ExpertName, Family, Workload
from mosaic.pipelines.prompts import check_texts
from mosaic.planning.profiles import Profile, load_profile
from mosaic.planning.schedulers.base import Scheduler
from mosaic.runtime.run import CostFactory
from mosaic.runtime.sweep import Sweep, run_sweep
from sim.cluster.backend import SimBackend
from sim.engine.engine_settings import EngineSettings
from sim.hardware.hardware import Hardware
from sim.world.length_sources import length_distributions
from sim.world.world import World

SECTIONS = (
    "pool", "workload", "profile", "backend", "hardware", "cluster", "costs", "scheduler", "plan", "gate", "aggregator",
)  # fmt: skip
BACKENDS = ("sim", "vllm", "endpoint", "none")

CONF = Path(__file__).resolve().parents[2] / "conf"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Everything a run is made of."""

    workload: Workload
    experts: tuple[Expert, ...]
    cluster: Cluster
    hardware: Hardware
    settings: EngineSettings | None
    """Of the simulator; None: the backend is another."""
    executor: EngineSetup | ServerSetup | None
    """What runs plans for real; None: nothing does."""
    calibration: Callable[[], Workload]
    """Gives what a live run is profiled on: the workload's calibration part, or its own questions where it has none."""
    lengths: Mapping[ExpertName, LengthDistribution]
    costs: CostFactory
    scheduler: Scheduler
    sweep: Sweep
    profile_path: str | None
    aggregator_profile_path: str | None
    profile_seed: int
    length_error: float
    """Most by which an expert's mean length in the profile is off, as a factor; 1: it is right."""
    seed: int
    answers: SimulatedAnswers
    stage: StageSetup | None
    """None: the expert stage alone (aggregator=none)."""

    @property
    def runs(self) -> bool:
        """Whether plans are executed, or only explained."""
        return self.settings is not None or self.executor is not None

    @property
    def length_error_text(self) -> str:
        """What a profile's source says of its error."""
        return f", mean lengths off by up to x{self.length_error:g}" if self.length_error != 1 else ""

    def world(self) -> World:
        """The world that the run meets."""
        return self._world("test", self.seed, self.workload.output_tokens or {}, self.lengths)

    def calibration_world(self) -> World:
        """A world of other luck and the same distributions, or of means that are off where an error is asked for."""
        lengths = mistaken_lengths(self.lengths, self.length_error, seed=self.profile_seed)
        return self._world("calibration", self.profile_seed, {}, lengths)

    def _world(
        self,
        stream: str,
        seed: int,
        recorded: Mapping[CallKey, int],
        lengths: Mapping[ExpertName, LengthDistribution],
    ) -> World:
        reasoning = (expert.name for expert in self.experts if expert.family is Family.REASONING)
        return World(
            lengths=lengths,
            root_seed=seed,
            stream=stream,
            recorded=recorded,
            answers=self.answers.model,
            questions={question.id: question for question in self.workload.questions},
            aggregator_lengths=self.stage.lengths if self.stage else {},
            thinking=dict.fromkeys(reasoning, self.answers.visible_tokens),
        )

    def backend(self, world: World, experts: Sequence[Expert] | None = None) -> SimBackend:
        """The simulator in a world; the profile of a plan that is only explained comes from its defaults."""
        return SimBackend(
            experts=self.experts if experts is None else experts,
            cluster=self.cluster,
            hardware={self.hardware.gpu.name: self.hardware},
            settings=self.settings or EngineSettings(),
            outcomes=world.outcome,
        )

    def profile(self) -> Profile:
        """Read the profile, or sweep the simulator's calibration world for the experts that have calls."""
        if self.profile_path is not None:
            return load_profile(self.profile_path)
        # NOTE: prompts are visible to a scheduler, so the calibration calls repeat the batch's own.
        prompts = [call.prompt_tokens for call in self.workload.calls]
        called = self.workload.num_calls_by_expert
        return run_sweep(
            self.sweep,
            [expert for expert in self.experts if expert.name in called],
            self.cluster,
            self.backend(self.calibration_world()),
            lambda i: prompts[i % len(prompts)],
            f"simulated sweep of {self.workload.name} on {self.hardware.gpu.name}, seed {self.profile_seed}"
            + self.length_error_text,
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
    check_length_error(profile)
    require_path(profile.get("aggregator_path"), "profile.aggregator_path")
    require_path(config["plan"].get("path"), "plan.path")
    experts = _pool(pool)
    hardware = make(config["hardware"], "hardware")
    cluster = call(uniform_cluster, "cluster", **config["cluster"], gpu=hardware.gpu)
    lengths = length_distributions(pool.get("output_tokens") or {})
    own_aggregator, answers = source.pop("aggregator", None), simulated_answers(source.pop("answers", None))
    scale = source.pop("length_scale", None)
    lengths |= length_distributions(source.pop("output_tokens", None) or {}, length_scale=scale)
    workload = make(source, "workload")
    check_calls(workload, experts, cluster)
    stage = second_stage(config, own_aggregator, pool.get("aggregator"), experts, cluster, hardware)
    name = backend.pop("name", None)
    require(name in BACKENDS, "backend.name", f"one of {list(BACKENDS)}", name)
    executor = _executor(name, backend, experts, cluster)
    costs: CostFactory = make(config["costs"], "costs")
    if executor is not None and executor.mode is Mode.LIVE:
        check_texts(workload)
        rule = "1 where models really answer: what was measured cannot be made wrong"
        require(profile["length_error"] == 1, "profile.length_error", rule, profile["length_error"])
    if isinstance(executor, ServerSetup):
        check_servers(executor, workload, stage.aggregator.expert.name if stage else None)
        costs = on_servers(costs, executor)
    if stage is not None:
        check_batch(stage, workload)
    if stage is not None and (name == "sim" or (executor is not None and executor.mode is Mode.REPLAY)):
        check_simulated(stage, answers)
    if stage is not None and profile.get("aggregator_path") is not None:
        check_profile(stage, profile["aggregator_path"], cluster)
    return Setup(
        workload=workload,
        experts=experts,
        cluster=cluster,
        hardware=hardware,
        settings=call(EngineSettings, "backend", **backend) if name == "sim" else None,
        lengths=lengths,
        executor=executor,
        calibration=lambda: _calibration(source, workload),
        costs=costs,
        scheduler=make(config["scheduler"], "scheduler"),
        sweep=call(Sweep, "profile.sweep", **profile["sweep"]),
        profile_path=profile.get("path"),
        aggregator_profile_path=profile.get("aggregator_path"),
        profile_seed=profile["seed"],
        length_error=profile["length_error"],
        seed=config["seed"],
        answers=answers,
        stage=stage,
    )


def _executor(
    name: str, backend: Mapping[str, Any], experts: tuple[Expert, ...], cluster: Cluster
) -> EngineSetup | ServerSetup | None:
    if name == "vllm":
        return engine_setup(backend)
    return server_setup(backend, experts, cluster) if name == "endpoint" else None


def _calibration(source: Mapping[str, Any], workload: Workload) -> Workload:
    """Make the workload again from its calibration part; one without parts lends its own questions."""
    if source.get("part") != "test":
        return workload
    calibration: Workload = make({**source, "part": "calibration"}, "workload")
    return calibration


def check_length_error(profile: Mapping[str, Any]) -> None:
    """Check the error of a simulated profile; one that was read from a file is as right or wrong as it is."""
    error = profile.get("length_error")
    require_number(error, "profile.length_error", at_least=1)
    rule = f"1 where profile.path={profile.get('path')!r} names a profile"
    require(profile.get("path") is None or error == 1, "profile.length_error", rule, error)


def mistaken_lengths(
    lengths: Mapping[ExpertName, LengthDistribution], error: float, *, seed: int
) -> Mapping[ExpertName, LengthDistribution]:
    """Multiply each expert's mean by a factor between 1/error and error, log-uniform.

    The factor follows from the seed, the expert and the error alone, and grows away from 1 with the error.

    Raises
    ------
    ValueError
        If a mean leaves its limits.
    """
    if error == 1:
        return lengths
    mistaken = {}
    for name, entry in lengths.items():
        (u,) = question_uniforms(seed, "length error", name, 1)
        try:
            mistaken[name] = entry.scaled(error ** (2 * u - 1))
        except ValueError as out_of_range:
            raise ValueError(f"profile.length_error={error!r}, expert {name}: {out_of_range}") from None
    return mistaken


def compose_config(overrides: list[str]) -> dict[str, Any]:
    """Compose the configuration of a point outside of a Hydra application."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return plain(compose("config", overrides))


FILE_KEYS = ("path", "aggregator_path", "profiles", "profile", "calls", "output_tokens", "calibration")
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
    made = {key: make(entry, f"pool.experts.{key}") for key, entry in pool["experts"].items()}
    for key, expert in made.items():
        if not isinstance(expert, Expert):
            raise TypeError(f"pool.experts.{key}._target_ must make a mosaic.core.workload.Expert, got {expert!r}")
    require_unique((expert.name for expert in made.values()), "pool.experts: name")
    return tuple(made.values())
