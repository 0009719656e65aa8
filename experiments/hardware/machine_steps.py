"""The steps that measure a machine, those first that a file cannot do without.

Device, engines, a round of every shape and a batch of every shape to validate; then more rounds, more batches.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from experiments.hardware.engine_fit import MeasuredShape
from experiments.hardware.engine_probe import DeviceFacts, EngineFacts, device_facts, engine_facts
from experiments.hardware.engine_work import Processor
from experiments.hardware.kept_steps import KeptSteps
from experiments.hardware.machine_config import fit_rounds, mirrored_settings
from experiments.hardware.machine_recipe import HOST_SHAPE, Recipe
from experiments.hardware.replayed_batch import BatchRun, draw_batch, run_batch
from experiments.hardware.sweep import MakeBackend, MeasuredRound, measure_round
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
    rounds, replays = _take_runs(recipe, experts, machine, cluster, engines, steps)
    if not all(rounds.values()):
        raise BackendError(_too_little(steps))
    return MeasuredMachine(
        device=device,
        cluster=cluster,
        engines=engines,
        rounds={name: tuple(found) for name, found in rounds.items()},
        replays={name: tuple(found) for name, found in replays.items()},
    )


def _take_runs(
    recipe: Recipe,
    experts: Sequence[Expert],
    machine: Machine,
    cluster: Cluster,
    engines: Mapping[ExpertName, EngineFacts],
    steps: KeptSteps,
) -> tuple[dict[ExpertName, list[MeasuredRound]], dict[ExpertName, list[BatchRun]]]:
    """Run rounds of sessions and batches by turns, as long as there is time; a list for each expert."""
    rounds: dict[ExpertName, list[MeasuredRound]] = {expert.name: [] for expert in experts}
    replays: dict[ExpertName, list[BatchRun]] = {expert.name: [] for expert in experts}
    batch = draw_batch(recipe.batch, recipe.context_tokens)

    def backend_of(expert: Expert) -> MakeBackend:
        return lambda outcomes, run: machine.backend([expert], cluster, outcomes, run)

    def sweep(expert: Expert, number: int, run: str) -> MeasuredRound:
        settings, make = settings_of(recipe, expert, engines[expert.name]), backend_of(expert)
        return measure_round(expert, cluster, make, settings, recipe.sweep, number, run, by_cpu=recipe.by_cpu)

    def replay(expert: Expert, run: str) -> BatchRun:
        return run_batch(expert, cluster, backend_of(expert), batch, run)

    for number in range(max(recipe.sweep.num_rounds, recipe.num_replays)):
        for expert in experts if number < recipe.sweep.num_rounds else ():
            name = f"round-{expert.name}-{number}"
            found = steps.obtain(name, f"round-{expert.name}", MeasuredRound, partial(sweep, expert, number, name))
            rounds[expert.name] += [] if found is None else [found]
        for expert in experts if number < recipe.num_replays else ():
            if expert.name != HOST_SHAPE:
                name = f"replay-{expert.name}-{number}"
                run = steps.obtain(name, f"replay-{expert.name}", BatchRun, partial(replay, expert, name))
                replays[expert.name] += [] if run is None else [run]
    return rounds, replays


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
            MeasuredShape(
                expert, settings_of(recipe, expert, measured.engines[expert.name]), measured.rounds[expert.name]
            )
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
