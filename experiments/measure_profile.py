"""Sweep sessions on calibration questions and fit what a session costs.

    python experiments/measure_profile.py workload=mmlu_pro out=mmlu_pro.json aggregator_out=mmlu_pro_aggregator.json
    python experiments/run.py profile.path=mmlu_pro.json profile.aggregator_path=mmlu_pro_aggregator.json

Takes the overrides of run.py (the sweep is profile.sweep) and writes the fitted costs with their residuals, the points
behind them and the sample of output lengths, which workload.output_tokens can draw from. The aggregator's own profile,
if it is asked for, comes from what the gate leaves of calibration questions.
"""

import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # experiments is not an installed package

from mosaic.config.compose import as_recorded, compose_config
from mosaic.config.errors import exit_with_message
from mosaic.config.job import build_job
from mosaic.core.checks import require
from mosaic.planning.profiles import Profile, ProfileEntry, write_profile
from mosaic.report.display import show_run
from mosaic.report.run_folder import begin_run
from mosaic.report.run_status import RunStatus
from mosaic.runtime.job import Job
from mosaic.runtime.run import measure

USES = {"out": "profile.path", "aggregator_out": "profile.aggregator_path"}
"""What a run calls the file that each argument names."""


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
    config = compose_config([*overrides, *(f"{use}=null" for use in USES.values())])
    journal = Path(f"{files['out']}.journal")
    job = build_job(config, journal).job
    is_real = job.site.way != "simulated"
    with job.site.open():
        if is_real:
            begin_run(journal, as_recorded(config))
        profiles = measure_profiles(job, files, is_real=is_real)
    for key, profile in profiles.items():
        write_profile(profile, Path(files[key]))
        print(describe(profile))
        print(f"written: {files[key]} (use it with {USES[key]}={files[key]})")
    shutil.rmtree(journal, ignore_errors=True)  # of a real sweep: the next one is to measure anew


def measure_profiles(job: Job, files: Mapping[str, str], *, is_real: bool) -> dict[str, Profile]:
    """Measure the profiles that are asked for: the first layer's, and one of all nodes above it."""
    upper = [node.name for node in job.graph.upper_nodes]
    if "aggregator_out" in files:
        require(bool(upper), "aggregator_out", "left out with aggregator=none", files["aggregator_out"])
    else:
        first = replace(job.graph, nodes=job.graph.layers[0])
        job, upper = replace(job, graph=first, reactions=frozenset()), []
    profiles = measure(
        job,
        show=lambda title, expected: show_run(RunStatus(title, expected, is_simulated=not is_real)),
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


def split_arguments(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """Tell the files to write from the overrides.

    Raises
    ------
    ValueError
        If ``out`` is not named, or a file is named twice or by nothing.
    """
    named = [argument.partition("=") for argument in arguments if argument.partition("=")[0] in USES]
    files = {key: value for key, _, value in named}
    if "out" not in files or len(files) < len(named) or not all(files.values()):
        raise ValueError(
            f"expected overrides and one out=FILE.json, aggregator_out=FILE.json beside it, got {arguments}"
        )
    return [argument for argument in arguments if argument.partition("=")[0] not in USES], files


if __name__ == "__main__":
    with exit_with_message("the same command goes on from there"):
        main(sys.argv[1:])
