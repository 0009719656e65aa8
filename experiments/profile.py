"""Sweep sessions on calibration questions and fit what a session costs.

    python experiments/profile.py workload=mmlu_pro out=mmlu_pro.json aggregator_out=mmlu_pro_aggregator.json
    python experiments/run.py profile.path=mmlu_pro.json profile.aggregator_path=mmlu_pro_aggregator.json

Takes the overrides of run.py (the sweep is profile.sweep) and writes the fitted costs with their residuals, the points
behind them and the sample of output lengths, which workload.output_tokens can draw from. The aggregator's own profile,
if it is asked for, comes from what the gate leaves of calibration questions.
"""

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # experiments is not an installed package

from experiments.complaints import exit_with_message
from experiments.execution import Execution, open_execution
from experiments.wiring import Setup, compose_config, setup_from
from mosaic.checks import require
from mosaic.pipeline import make_problem
from mosaic.profiles import Profile, write_profile


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
    """Measure a profile; the arguments are Hydra overrides, out=FILE.json and perhaps aggregator_out=FILE.json."""
    overrides, files = split_arguments(arguments)
    if "out" not in files:
        raise ValueError(f"expected overrides and one out=FILE.json, got {arguments}")
    setup = setup_from(compose_config([*overrides, "profile.path=null", "profile.aggregator_path=null"]))
    journal = Path(f"{files['out']}.journal")
    with open_execution(setup, journal) as execution:
        made = measure(setup, execution, files)
    shutil.rmtree(journal, ignore_errors=True)  # of a real sweep: the next one is to measure anew
    for key, measured in made.items():
        write_profile(measured, Path(files[key]))
        print(describe(measured))
        use = "profile.path" if key == "out" else "profile.aggregator_path"
        print(f"written: {files[key]} (use it with {use}={files[key]})")


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
        if key not in ("out", "aggregator_out"):
            overrides.append(argument)
            continue
        if key in files or not value:
            raise ValueError(f"expected overrides and one {key}=FILE.json, got {arguments}")
        files[key] = value
    return overrides, files


if __name__ == "__main__":
    with exit_with_message():
        main(sys.argv[1:])
