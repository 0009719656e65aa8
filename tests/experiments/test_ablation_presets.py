"""Every preset composes, all its points exist, and its figure asks for what runs have."""

import atexit
import re
from functools import cache, partial
from itertools import product
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from experiments.ablations import preset_names
from experiments.analysis.ablation import Ablation, Row
from experiments.analysis.ablation_spec import AblationSpec
from experiments.config.compose import CONF, compose_config
from experiments.config.job import job_from, simulated
from experiments.studies.ablation_spec import read_spec
from experiments.studies.ablation_sweep import point_names
from experiments.studies.ablation_text import describe_ablation
from mosaic.planning.schedulers.round_robin import RoundRobin
from mosaic.report.metrics import summarise
from mosaic.report.run_folder import flatten
from tests.experiments.command_line import QUICK, run_point
from tests.factories import make_problem

pytestmark = pytest.mark.slow

PRESETS = preset_names()
ISSUE = {
    "ablate_k", "ablate_replicas", "ablate_gpus", "ablate_load", "ablate_prediction", "ablate_gate", "ablate_tau",
    "ablate_fifo", "ablate_order", "ablate_engine_order", "ablate_kv", "ablate_aggregator",
    "ablate_quorum", "ablate_best", "ablate_sharing",
}  # fmt: skip


LEARNING = {"budgets": "gate", "best": "gate", "best_2pp": "gate", "baseline_budgets": "pipeline.promise"}
"""Policies that learn from calibration questions, and where they name them."""


@cache
def lessons_of(benchmark: str) -> Path:
    """Make a few calibration answers of a benchmark."""
    folder = Path(mkdtemp(prefix="lessons-"))
    atexit.register(rmtree, folder)
    few = "workload.num_calibration_questions=60"
    overrides = (f"workload={benchmark}", "workload.part=calibration", few, "gate=never", "pipeline.leave_one_out=true")
    outcome = run_point(*overrides, *QUICK, f"hydra.run.dir={folder}")
    assert outcome.status == 0, outcome.err
    return folder / "calibration_answers.parquet"


def lessons(benchmark: str, policy: str) -> list[str]:
    """Say what a learning policy learns from."""
    return [f"workload={benchmark}", f"{LEARNING[policy]}.calibration={lessons_of(benchmark)}"]


@cache
def preset(name: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", [f"+experiment={name}"], return_hydra_config=True)


def spec_of(name: str) -> AblationSpec:
    return read_spec(OmegaConf.to_container(preset(name).hydra.callbacks.figure))


def values_of(name: str) -> dict[str, list[str]]:
    """List the values of each swept key, as overrides write them."""
    values: dict[str, list[str]] = {}
    for point in map(split_name, point_names(preset(name))):
        for override in point:
            key, _, value = override.partition("=")
            values.setdefault(key, []).append(value)
    return {key: list(dict.fromkeys(found)) for key, found in values.items()}


def split_name(point: str) -> list[str]:
    """Take a folder's name apart; commas inside brackets belong to a list."""
    return [f"{key}={value}" for key, value in re.findall(r"([+\w.]+)=(\[[^]]*\]|[^,]*)", point)]


def overrides_of(name: str) -> list[list[str]]:
    """Choose points of every line at one place of the axis, and of every place on one line."""
    values, x = values_of(name), spec_of(name).x.key
    across = next(key for key in values if key == x or key.removeprefix("+") == x.removesuffix(".name"))
    first = {key: found[0] for key, found in values.items()}
    kept = [key for key in values if key not in (across, "seed")]
    points = [first | dict(zip(kept, found, strict=True)) for found in product(*(values[key] for key in kept))]
    points += [first | {across: value} for value in values[across][1:]]
    return [[f"+experiment={name}", *(f"{key}={value}" for key, value in point.items())] for point in points]


def test_every_ablation_of_the_issue_has_a_preset() -> None:
    assert set(PRESETS) == ISSUE


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_parallel_sweep_into_a_folder_of_its_own(name: str) -> None:
    hydra = preset(name).hydra
    assert hydra.mode is RunMode.MULTIRUN
    assert "joblib" in hydra.launcher._target_
    assert hydra.sweep.dir == f"results/multirun/{name}"
    assert "seed" in hydra.sweeper.params


@pytest.mark.parametrize("name", PRESETS)
def test_every_point_has_a_folder_that_any_file_system_takes(name: str) -> None:
    names = point_names(preset(name))
    assert len(set(names)) == len(names) >= 8
    assert [found for found in names if not re.fullmatch(r"[\w+=.,\[\]-]{1,200}", found)] == []


@pytest.mark.parametrize("name", PRESETS)
def test_every_value_of_a_preset_makes_a_run_that_the_figure_can_place(name: str) -> None:
    spec, xs, lines = spec_of(name), [], set()
    for overrides in overrides_of(name):
        policy = next((value.partition("=")[2] for value in overrides if value.startswith("+policy=")), "")
        benchmark = next((value.partition("=")[2] for value in overrides if value.startswith("workload=")), "")
        config = compose_config([*overrides, *(lessons(benchmark, policy)[1:] if policy in LEARNING else ())])
        prepared = job_from(config)
        job, aggregator = prepared.job, prepared.aggregator
        gate = job.graph.gate.name if job.graph.upper_nodes else None
        names = {"gate.name": gate, "aggregator.name": aggregator, "scheduler": job.scheduler.name}
        assert isinstance(job.costs, partial)
        leaves = flatten(config) | names | {"costs": job.costs.func.func.__name__.removesuffix("Costs").lower()}
        assert spec.x.key in leaves
        xs.append(leaves[spec.x.key])
        found = [line.label for line in spec.lines if line.takes(leaves)]
        assert len(found) == 1, overrides
        lines |= set(found)
    assert lines == {line.label for line in spec.lines}
    listed = [entry.value for entry in spec.x.names]
    assert not listed or all(x in listed for x in xs)
    assert all(x in xs for x in listed)
    references = [panel.relative_to.x for panel in spec.panels if panel.relative_to and panel.relative_to.at_x]
    assert all(x in xs for x in references), "what others are related to is in the sweep"
    rows = tuple(
        Row(panel=panel, line=line.label, x=x, values={0: 1.0})
        for panel in spec.panels
        for line in spec.lines
        for x in xs
    )
    text = describe_ablation(Ablation(spec=spec, xs=tuple(xs), rows=rows, notes=()), num_points=1, missing=[])
    assert "no sentence" not in text, "the finding names points of the sweep"


@pytest.mark.parametrize("name", PRESETS)
def test_the_figure_reads_numbers_of_a_summary(name: str) -> None:
    plan = RoundRobin().plan(make_problem())
    summary: dict[str, Any] = dict(
        summarise(
            [plan], None, workload="w", backend="none", gate=None, costs="paper", seed=0, num_questions=1, experts=[]
        )
    )
    assert {panel.key for panel in spec_of(name).panels} <= flatten(summary).keys()


@pytest.mark.parametrize("path", sorted((CONF / "policy").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_policy_is_a_scheduler_with_its_options(path: Path) -> None:
    more = lessons("gpqa", path.stem) if path.stem in LEARNING else ["aggregator=none"]
    job, _ = simulated([f"+policy={path.stem}", *more])
    schedulers = {
        "ilp_affine": "ilp", "ilp_lifted": "ilp", "longest_first": "least_loaded",
        "baseline": "round_robin", "paper": "ilp", "quorum": "ilp",
        "budgets": "ilp", "baseline_budgets": "round_robin", "overlap": "ilp", "reactions": "ilp",
        "best": "ilp", "best_2pp": "ilp", "ems": "round_robin", "kv_plans": "flexible", "unanimous": "ilp",
    }  # fmt: skip
    assert job.scheduler.name == schedulers.get(path.stem, path.stem)
    quorum = ("quorum", "budgets", "overlap", "reactions", "best", "best_2pp", "ems")
    assert job.has_quorum == (path.stem in quorum)
    assert getattr(job.scheduler, "longest_first", False) == (path.stem == "longest_first")


def test_a_preset_says_how_it_is_run_and_the_readme_names_it() -> None:
    readme = (CONF.parent / "experiments" / "README.md").read_text()
    for name in PRESETS:
        text = (CONF / "experiment" / f"{name}.yaml").read_text()
        assert f"python experiments/run.py +experiment={name}\n" in text
        assert f"`{name}`" in readme
