"""The steps that measure a machine, those first that a file cannot do without.

Device, engines, a round of every shape and a batch of every shape to validate; then more rounds, more batches.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from experiments.hardware.engine_probe import DeviceFacts, EngineFacts, device_facts, engine_facts
from experiments.hardware.engine_work import Processor
from experiments.hardware.kept_steps import KeptSteps
from experiments.hardware.machine_config import fit_rounds, mirrored_settings
from experiments.hardware.machine_recipe import HOST_SHAPE, Recipe
from experiments.hardware.replayed_batch import BatchRun, draw_batch, run_batch
from experiments.hardware.sweep import MeasuredRound, measure_round
from mosaic.core.cluster import Cluster, Gpu, uniform_cluster
from mosaic.core.engine_options import Device, EngineOptions
from mosaic.core.errors import BackendError
from mosaic.core.realization import Outcomes
from mosaic.core.workload import Expert, ExpertName
from mosaic.engines.backend import EngineBackend
from mosaic.engines.local_launcher import LocalLauncher, cores_of_workers
from mosaic.engines.requests import RunContent
from mosaic.engines.vllm_engines import VllmEngines
from mosaic.runtime.backend import Backend

Facts = TypeVar("Facts")
Result = TypeVar("Result", MeasuredRound, BatchRun)


class Machine(Protocol):
    """What is measured."""

    num_workers: int

    def device(self) -> DeviceFacts:
        """Say what its workers drive."""

    def engine(self, expert: Expert, cluster: Cluster) -> EngineFacts:
        """Load an engine once and say what it is."""

    def backend(self, experts: Sequence[Expert], cluster: Cluster, outcomes: Outcomes, run: str) -> Backend:
        """Make a backend that replays outcomes, for a run of this name."""


class VllmMachine:
    """The machine in front of you, with vLLM on one GPU or on every core of its CPU.

    Parameters
    ----------
    options
        How engines run.
    launcher
        Made with the same options, kept for all runs.
    folder
        Of logs and journals.
    """

    def __init__(self, options: EngineOptions, launcher: LocalLauncher, folder: Path) -> None:
        self.num_workers = 1 if options.loading.device is Device.GPU else sum(map(len, cores_of_workers(1)))
        self._options = options
        self._launcher = launcher
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def device(self) -> DeviceFacts:
        return device_facts(self._options.loading.device, self._folder / "probe.log")

    def engine(self, expert: Expert, cluster: Cluster) -> EngineFacts:
        engines = VllmEngines(options=self._options, with_tokenizer=False)
        return engine_facts(engines.spec(expert, cluster.workers[:1]), self._folder / "probe.log")

    def backend(self, experts: Sequence[Expert], cluster: Cluster, outcomes: Outcomes, run: str) -> Backend:
        journal = self._folder / run
        shutil.rmtree(journal, ignore_errors=True)  # of a run that was interrupted: its times would count the pause
        return EngineBackend(
            name="vllm",
            experts=experts,
            cluster=cluster,
            journal=journal,
            content=RunContent(outcomes=outcomes),
            engines=VllmEngines(options=self._options, with_tokenizer=False),
            launcher=self._launcher,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredMachine:
    """All that steps found, or that was found before."""

    device: DeviceFacts
    cluster: Cluster
    engines: Mapping[ExpertName, EngineFacts]
    rounds: Mapping[ExpertName, tuple[MeasuredRound, ...]]
    replays: Mapping[ExpertName, tuple[BatchRun, ...]]


def measure_machine(recipe: Recipe, experts: Sequence[Expert], machine: Machine, steps: KeptSteps) -> MeasuredMachine:
    """Take the steps that there is time for.

    Raises
    ------
    BackendError
        If there was too little for a file, or the machine failed.
    """
    device = _required(steps.obtain("device", "device", DeviceFacts, machine.device), steps)
    gpu = Gpu(name=device_slug(device.name), memory_bytes=device.memory_bytes)
    cluster = uniform_cluster(name="measured", num_workers=machine.num_workers, gpu=gpu)
    engines = {}
    for expert in experts:
        facts = steps.obtain(f"engine-{expert.name}", "engine", EngineFacts, partial(machine.engine, expert, cluster))
        engines[expert.name] = _required(facts, steps)
    found = _Repeated(recipe, machine, cluster, engines, steps)
    for number in range(max(recipe.sweep.num_rounds, recipe.num_replays)):
        for expert in experts:
            if number < recipe.sweep.num_rounds:
                found.sweep(expert, number)
        for expert in experts:
            if number < recipe.num_replays and expert.name != HOST_SHAPE:
                found.replay(expert, number)
    for expert in experts:
        if not found.rounds[expert.name]:
            raise BackendError(_too_little(steps))
    return MeasuredMachine(
        device=device,
        cluster=cluster,
        engines=engines,
        rounds={name: tuple(rounds) for name, rounds in found.rounds.items()},
        replays={name: tuple(runs) for name, runs in found.replays.items()},
    )


class _Repeated:
    """What is measured several times."""

    def __init__(
        self,
        recipe: Recipe,
        machine: Machine,
        cluster: Cluster,
        engines: Mapping[ExpertName, EngineFacts],
        steps: KeptSteps,
    ) -> None:
        self.rounds: dict[ExpertName, list[MeasuredRound]] = {name: [] for name in engines}
        self.replays: dict[ExpertName, list[BatchRun]] = {name: [] for name in engines if name != HOST_SHAPE}
        self._recipe = recipe
        self._machine = machine
        self._cluster = cluster
        self._engines = engines
        self._steps = steps

    def sweep(self, expert: Expert, number: int) -> None:
        recipe, settings = self._recipe, settings_of(self._recipe, expert, self._engines[expert.name])

        def measure(name: str) -> MeasuredRound:
            make = self._make(expert)
            return measure_round(
                expert, self._cluster, make, settings, recipe.sweep, number, name, by_cpu=recipe.by_cpu
            )

        self.rounds[expert.name] += self._obtain(f"round-{expert.name}", number, MeasuredRound, measure)

    def replay(self, expert: Expert, number: int) -> None:
        batch = draw_batch(self._recipe.batch, self._recipe.context_tokens)

        def measure(name: str) -> BatchRun:
            return run_batch(expert, self._cluster, self._make(expert), batch, name)

        self.replays[expert.name] += self._obtain(f"replay-{expert.name}", number, BatchRun, measure)

    def _obtain(self, kind: str, number: int, result: type[Result], measure: Callable[[str], Result]) -> list[Result]:
        name = f"{kind}-{number}"
        kept = self._steps.obtain(name, kind, result, lambda: measure(name))
        return [] if kept is None else [kept]

    def _make(self, expert: Expert) -> Callable[[Outcomes, str], Backend]:
        return lambda outcomes, run: self._machine.backend([expert], self._cluster, outcomes, run)


def fit_measured(
    recipe: Recipe, experts: Sequence[Expert], measured: MeasuredMachine, *, name: str, source: str
) -> dict[str, Any]:
    """Fit the conf/hardware file; ``source`` says what engine it was."""
    num_rounds = sorted({len(rounds) for rounds in measured.rounds.values()})
    clock = "by processor time, loads by the clock" if recipe.by_cpu else "by the clock"
    many = " to ".join(map(str, dict.fromkeys((num_rounds[0], num_rounds[-1]))))
    workers = measured.cluster.num_workers
    conditions = f"{source} on {measured.device.name}; {workers} workers busy at once, {many} rounds, {clock}"
    capacities = [f"{name} {facts.kv_cache_tokens}" for name, facts in measured.engines.items()]
    return fit_rounds(
        [
            (expert, settings_of(recipe, expert, measured.engines[expert.name]), measured.rounds[expert.name])
            for expert in experts
        ],
        name=name,
        memory_gib=round(measured.device.memory_bytes / 2**30, 3),
        source=conditions,
        processor=Processor(num_sms=measured.device.num_sms, graph_max_seqs=recipe.graph_max_seqs),
        more_sources={
            "memory_gib": "measured: what the device says",
            "load": f"measured: {conditions}; random weights, so reading real ones from a disk comes on top",
            "kv_cache_tokens": f"{_kv_source(recipe)}: {', '.join(capacities)}",
        },
    )


def settings_of(recipe: Recipe, expert: Expert, facts: EngineFacts) -> EngineOptions:
    """Say how the simulator is to schedule: as the real engines do, with the KV cache that they were found to have."""
    known = replace(recipe.options, kv_cache_tokens=facts.kv_cache_tokens, kv_cache_memory_bytes=None)
    return mirrored_settings(known, [expert])


def device_slug(name: str) -> str:
    """Make a name for files of a device's.

    Examples
    --------
    >>> device_slug("NVIDIA H100 80GB HBM3")
    'nvidia_h100_80gb_hbm3'
    """
    words = "".join(letter.lower() if letter.isalnum() and letter.isascii() else " " for letter in name).split()
    return "_".join(words) or "device"


def _kv_source(recipe: Recipe) -> str:
    options = recipe.options
    if options.kv_cache_memory_bytes is not None:
        return "given"
    return f"measured at max_num_seqs={options.max_num_seqs}, max_num_batched_tokens={options.max_num_batched_tokens}"


def _required(known: Facts | None, steps: KeptSteps) -> Facts:
    if known is None:
        raise BackendError(_too_little(steps))
    return known


def _too_little(steps: KeptSteps) -> str:
    return (
        f"minutes must leave time for a round of every shape, missing {', '.join(steps.missing)}; what is done is "
        "kept, and the same command goes on"
    )
