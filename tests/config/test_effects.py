"""No key of the configuration is without effect: what this run would not use is refused, with the reason."""

import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mosaic.config.compose import compose_config
from mosaic.config.effects import without_effect
from mosaic.config.job import build_job
from mosaic.core.workload import Prefix
from mosaic.planning.profiles import Profile, write_profile
from mosaic.report.run_folder import flatten
from tests.commands.command_line import QUICK, SMALL, prepare, run_here, run_into, run_point
from tests.config.test_wiring import NODES, overrides_of, write_lines
from tests.workloads.test_request_log import make_line

FEW = (*SMALL, *QUICK)
GPQA = ("workload=gpqa", *QUICK)
LIVE = ("workload=file", "workload.path=TMP/q.jsonl", "pool=demo", "cluster=local", "backend=vllm")
LOG = (
    "workload=request_log", "workload.path=TMP/log.jsonl", "workload.expert=qwen3_30b_a3b", "pool=qwen3_30b_a3b",
    "hardware=rtxpro6000", "aggregator=none", "scheduler=round_robin",
)  # fmt: skip
NAMED = {"id": "a", "question": "Is 7 prime?", "experts": ["SmolLM2", "QwenHalf"]}


def refusal(*overrides: str) -> str:
    with pytest.raises(ValueError, match="must be left out, it has no effect here") as refused:
        prepare(*overrides)
    return str(refused.value)


def test_an_expert_without_calls_is_found_by_its_whole_name() -> None:
    config = compose_config([*FEW])
    job = build_job(config).job
    experts = config["pool"]["experts"] | {"My Model": config["pool"]["experts"]["GLM"]}
    inert = without_effect(config | {"pool": config["pool"] | {"experts": experts}}, job)
    assert inert["pool.experts.My Model"] == "no call needs My Model"
    assert "Model" not in inert


@pytest.mark.parametrize(
    ("overrides", "asked", "reason"),
    [
        (FEW, "pool.aggregator=GLM", "workload.aggregator=LlamaR1 goes before it"),
        ((*FEW, "aggregator.expert=Qwen"), "pool.aggregator=GLM", "aggregator.expert=Qwen goes before it"),
        ((*FEW, "aggregator.expert=Qwen"), "workload.aggregator=GLM", "aggregator.expert=Qwen goes before it"),
        ((*FEW, "aggregator=none"), "workload.aggregator=GLM", "nothing is aggregated"),
        ((*FEW, "aggregator=none"), "gate=never", "nothing is aggregated"),
        ((*FEW, "aggregator=none"), "gate.tau=0.5", "nothing is aggregated"),
        ((*FEW, "aggregator=none"), "pipeline.barrier=false", "there is one layer of calls"),
        ((*FEW, "aggregator=none"), "profile.aggregator_path=TMP/profile.json", "nothing is aggregated"),
        ((*FEW, "aggregator=none"), "pipeline.quorum=true", "nothing is aggregated"),
        ((*FEW, "aggregator=none"), "pipeline.overlap=true", "there is one layer of calls"),
        ((*FEW, "aggregator=none"), "pipeline.leave_one_out=true", "nothing is aggregated"),
        (FEW, "pipeline.leave_one_out=true", "only gate=never writes calibration answers, and the gate is majority"),
        (FEW, "pipeline.promise.risk_frac=0.1", "pipeline.budgets and pipeline.hedge are null"),
        (LIVE, "world.length_scale.value=2", "models really answer"),
        (LIVE, "world=gpqa", "models really answer"),
        ((*LIVE, "aggregator=none"), "backend.num_calibration_questions=5", "nothing is aggregated"),
        ((*FEW, "gate=never"), "pipeline.quorum=true", "gate=never is never settled before all calls"),
        ((*FEW, "gate=never"), "pipeline.reactions=[moves,quorum]", "gate=never is never settled before all calls"),
        ((*FEW, "gate=unanimous"), "pipeline.quorum=true", "gate=unanimous is never settled before all calls"),
        ((*FEW, "gate.tau=1"), "pipeline.quorum=true", "gate=majority is never settled before all calls"),
        (FEW, "aggregator.costs=affine", "with tp_degree=4 alone there is no choice to price"),
        (FEW, "+aggregator.scheduler_by_degree.2=data_parallel", "it is not placed at this degree"),
        (FEW, "aggregator.comparison=operator.eq", "no question asks for free text"),
        (FEW, "workload.num_calibration_questions=9", "workload.part=test"),
        (FEW, "pool.experts.GLM.max_replicas=3", "no call needs GLM"),
        (FEW, "world.output_tokens.GLM.mean.value=300", "no call needs GLM"),
        (FEW, "world.answers.ability_by_expert.GLM.value=1", "no call needs GLM"),
        (FEW, "+world.merged_tokens.Qwen={sample: [5], source: assumed}", "nothing is merged by Qwen"),
        (FEW, "profile.max_batch_frac=0.5", "only what real engines measure is bounded"),
        (FEW, "hardware.host.memory_gib=8", "backend.keep is nothing"),
        ((*FEW, "backend.keep=weights"), "hardware.host.sleep_fixed_s=2", "lets no engine sleep"),
        ((*SMALL, "profile.path=TMP/profile.json"), "profile.sweep.num_repeats=3", "is what was measured"),
        ((*SMALL, "profile.path=TMP/profile.json"), "profile.source=calibration", "is what was measured"),
        ((*SMALL, "profile.path=TMP/profile.json", "aggregator=none"), "profile.seed=3", "nothing is measured"),
        (FEW, "pipeline.forecast=true", "pipeline.barrier=true plans a layer when the one before it has ended"),
        ((*FEW, "pipeline.overlap=true"), "pipeline.forecast=true", "places upper layers by what is free"),
        (FEW, "topology.min_output_tokens=9", "topology.layers is null"),
        ((*FEW, "aggregator=none"), "summary=full", "nothing is aggregated"),
        ((*FEW, "gate=never"), "summary=full", "gate=never aggregates every question"),
        (LIVE, "summary=full", "engines cannot compute another run"),
        (LOG, "workload.hash_block_tokens=8", "no two requests of the log have one of hash_ids"),
        (LOG, "pool.experts.qwen3_30b_a3b.dp_attention=true", "its sessions have one GPU"),
        ((*FEW, "topology=tree"), "aggregator=dp", "topology=tree names the experts and the aggregator"),
        ((*FEW, "topology=tree"), "pipeline.leave_one_out=true", "topology=tree names the experts and the aggregator"),
        ((*FEW, "topology=tree"), "gate=unanimous", "no node waits for what it decides"),
        ((*FEW, "topology=tree"), "pool.aggregator=GLM", "workload.aggregator=LlamaR1 goes before it"),
        ((*FEW, "topology=tree", "topology.layers=[3,[Qwen]]"), "workload.aggregator=GLM", "names the experts"),
    ],
)
def test_what_has_no_effect_is_refused(overrides: tuple[str, ...], asked: str, reason: str, files: Path) -> None:
    wanted = [override.replace("TMP", str(files)) for override in (*overrides, asked)]
    said = refusal(*wanted)
    key = "pipeline.quorum" if "[moves,quorum]" in asked else asked.lstrip("+").partition("=")[0]
    assert said.startswith(f"{key} must be left out")
    assert reason in said
    assert said.endswith(f"got {wanted[-1]!r}")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write an empty profile, a question and a log."""
    folder = tmp_path_factory.mktemp("files")
    write_profile(Profile(source="mine", entries=()), folder / "profile.json")
    write_lines(folder / "q.jsonl", NAMED)
    write_lines(folder / "log.jsonl", make_line("a", hash_ids=[0]), make_line("b", hash_ids=[1]))
    return folder


@pytest.mark.parametrize("key", ["num_slots_per_question", "seed"])
def test_a_router_that_is_not_asked_takes_no_settings(key: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "q.jsonl", NAMED)
    overrides = ["workload=file", "pool=demo", f"workload.path={path}"]
    assert f"workload.{key} must be left out" in refusal(*overrides, f"workload.{key}=1")
    skills = write_lines(tmp_path / "skills.json", {"SmolLM2": {"math": 1}})
    with pytest.raises(ValueError, match="workload.profiles must be null where every line names its experts, got"):
        prepare(*overrides, f"workload.profiles={skills}")
    routed = write_lines(tmp_path / "r.jsonl", {"id": "a", "question": "Is 7 prime?", "skills": ["math"]})
    fine = prepare(*overrides[:2], f"workload.path={routed}", f"workload.profiles={skills}", f"workload.{key}=2")
    assert fine.job.workload.num_calls_by_expert["SmolLM2"] == (2 if key == "num_slots_per_question" else 3)


@pytest.fixture(scope="module")
def saved_plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Plans of the first layer, and of both."""
    folder = tmp_path_factory.mktemp("plans")
    for name, backend in (("first", "none"), ("both", "sim")):
        run_into(folder / name, *FEW, "gate=never", f"backend={backend}")
    return {name: folder / name / "plan.json" for name in ("first", "both")}


@pytest.mark.parametrize("asked", ["scheduler=fifo", "scheduler.time_limit_s=3", "costs=affine"])
def test_a_saved_plan_is_not_planned_again(asked: str, saved_plans: dict[str, Path]) -> None:
    both = (*FEW, "gate=never", f"plan.path={saved_plans['both']}")
    assert f"plan.path={saved_plans['both']}" in refusal(*both, asked)
    first = (*FEW, "gate=never", f"plan.path={saved_plans['first']}")
    assert prepare(*first, asked).job.plans, "the aggregator's calls are still to be planned"
    assert "must be left out" in refusal(*first[:-1], "aggregator=none", first[-1], asked).replace("gate ", "")


def test_a_plans_scheduler_is_not_used_where_the_aggregator_has_its_own(saved_plans: dict[str, Path]) -> None:
    overrides = (*FEW, "gate=never", "aggregator=dp", f"plan.path={saved_plans['first']}")
    assert "is run as it was planned" in refusal(*overrides, "scheduler=fifo")
    assert prepare(*overrides, "costs=affine").job.plans, "its calls are priced by the run's costs"


def test_a_pipeline_of_ones_own_takes_no_aggregator_of_others(tmp_path: Path) -> None:
    point = {"workload": "file", "pool": "demo", "scheduler": "round_robin"}
    overrides = [*overrides_of(point, tmp_path), NODES, "aggregator=none"]
    assert "pipeline.nodes names the experts" in refusal(*overrides, "pool.aggregator=SmolLM2")
    assert prepare(*overrides, "gate=never").job.graph.rule.name == "never", "a node waits for it"
    always = [override.replace("when: unsettled, ", "") for override in overrides]
    assert "no node waits for what it decides" in refusal(*always, "gate=never")


def test_what_a_preset_or_a_default_brings_along_is_not_refused() -> None:
    assert prepare(*FEW, "+policy=ilp_lifted", "aggregator=none").aggregator is None
    assert prepare(*GPQA, "aggregator=none").job.graph.rule.name == "never"


def test_the_command_checks_it_too(tmp_path: Path) -> None:
    outcome = run_here(*FEW, "pool.aggregator=GLM", f"hydra.run.dir={tmp_path / 'run'}")
    assert (outcome.status, outcome.out) == (2, "")
    assert "pool.aggregator must be left out, it has no effect here (workload.aggregator=LlamaR1" in outcome.err
    assert not (tmp_path / "run").exists()


LABELS = ("pool.name", "cluster.name", "topology.name")
"""Names for reports alone."""


def leaves_of(config: dict[str, Any]) -> Iterator[str]:
    """List the keys to change: of experts and of tables that are alike, those of one."""
    alike = ("QwenR1", "Gemma", "Exaone", "GLM", "Qwen", "llama3_8b_tp2", "llama3_8b_tp4", "llama3_8b_tp8")
    for key in flatten(config):
        named = [name for name in alike if f".{name}." in f".{key}."]
        if not named and not key.endswith("_target_") and key not in LABELS:
            yield key


def changed(value: Any) -> Any:
    """Give another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1 if value >= 1 else value / 2 + 0.01
    if isinstance(value, str):
        return f"{value}x"
    return "x" if value is None else [*value, "x"] if isinstance(value, list) else {"x": 1}


def with_change(config: dict[str, Any], key: str) -> dict[str, Any]:
    other = deepcopy(config)
    *path, last = key.split(".")
    group = other
    for name in path:
        group = group[name] if name in group else group[int(name)]  # type: ignore[index]
    value = flatten(config)[key]
    # Of the few questions here, one more in thousands would be none.
    group[last if last in group else int(last)] = value + 3000 if "num_options." in key else changed(value)  # type: ignore[index]
    return other


def written_out(value: object) -> str:
    """Tell two values apart by all that they hold; partial calls and objects without fields by their parts."""
    if isinstance(value, partial):
        return f"{value.func!r}{value.args!r}{sorted(value.keywords.items())!r}"
    if is_dataclass(value):
        return repr({field.name: written_out(getattr(value, field.name)) for field in fields(value)})
    if isinstance(value, dict):
        return repr({written_out(key): written_out(entry) for key, entry in value.items()})
    if isinstance(value, tuple | list):
        return repr([written_out(entry) for entry in value])
    return repr(getattr(value, "__dict__", None) or value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides", [(*FEW, "aggregator=auto"), (*FEW, "aggregator=none", "backend=none"), (*FEW, "topology=tree")]
)
def test_every_leaf_changes_the_run_is_refused_or_is_listed(overrides: tuple[str, ...]) -> None:
    config = compose_config(list(overrides))
    spec = build_job(config)
    as_it_is, inert = written_out(spec), without_effect(config, spec.job)
    silent = []
    for key in leaves_of(config):
        try:
            other = written_out(build_job(with_change(config, key)))
        except Exception:  # a bad value is refused
            continue
        if other == as_it_is and not any(key == name or key.startswith(f"{name}.") for name in inert):
            silent.append(key)
    assert silent == []


def test_summary_and_screen_say_who_planned_and_priced_the_aggregator(tmp_path: Path) -> None:
    outcome = run_point(*GPQA, "aggregator=auto", "gate=never", f"hydra.run.dir={tmp_path / 'run'}")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["scheduler"], summary["costs"], summary["aggregator_costs"]) == ("ilp", "paper", "affine")
    by = "planned by data_parallel, " if summary["aggregator_scheduler"] == "data_parallel" else ""
    assert f"aggregator=auto: {by}priced by affine\n" in outcome.out
    alike = run_point(*GPQA, "gate=never", f"hydra.run.dir={tmp_path / 'alike'}")
    assert "aggregator=tp4: " not in alike.out


def test_settings_of_logs_and_ranks_are_taken_where_something_follows_from_them(tmp_path: Path) -> None:
    log = write_lines(tmp_path / "log.jsonl", make_line("a", hash_ids=[0, 1]), make_line("b", hash_ids=[0, 2]))
    overrides = [override for override in LOG if "path" not in override]
    ranks = [f"pool.experts.qwen3_30b_a3b.{setting}" for setting in ("dp_attention=true", "tp_degree=2")]
    spec = prepare(*overrides, f"workload.path={log}", "workload.hash_block_tokens=50", "cluster.num_workers=2", *ranks)
    assert (spec.job.workload.calls[0].prefix, spec.job.experts[0].num_ranks) == (Prefix((0,), 50), 2)
