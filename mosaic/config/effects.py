"""Refuses settings that a user asks for and that this run would not use: ignored, they would be believed."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mosaic.config.machines import has_kinds, is_ray
from mosaic.config.sections import switch
from mosaic.core.workload import AnswerKind
from mosaic.pipelines.node import When
from mosaic.planning import Flexible
from mosaic.runtime.job import Job, Reaction
from mosaic.runtime.pilot import why_not
from mosaic.runtime.planner import NodePlacements


def check_effects(overrides: Sequence[str], config: Mapping[str, Any], job: Job) -> None:
    """Check that everything that a user sets has an effect.

    Raises
    ------
    ValueError
        Naming the key, its value, and why it has none.
    """
    if not overrides:
        return
    inert = without_effect(config, job)
    for key, given in _given(overrides, config):
        for prefix, reason in inert.items():
            if key == prefix or key.startswith(f"{prefix}."):
                raise ValueError(f"{key} must be left out, it has no effect here ({reason}), got {given!r}")


def without_effect(config: Mapping[str, Any], job: Job) -> dict[str, str]:
    """List the keys and groups that this run does not use, each with the reason."""
    rules = (
        _unused_machines, _unused_topology, _unused_aggregators, _unused_gate, _unused_budgets, _unused_planning,
        _unused_profile, _unused_workload, _unused_world, _unused_engines, _unused_kv, _unused_on_servers,
    )  # fmt: skip
    return {key: reason for rule in rules for key, reason in rule(config, job)}


def _given(overrides: Sequence[str], config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Go over the keys that a user sets; reactions in a list are set as by their switches."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if not override.is_delete():
            line = override.input_line or ""
            yield override.key_or_group, line
            if override.key_or_group == "pipeline.reactions":
                listed = config["pipeline"]["reactions"]
                yield from ((f"pipeline.{switch(Reaction(name))}", line) for name in listed)


def _unused_machines(config: Mapping[str, Any], job: Job) -> Iterator[tuple[str, str]]:
    if has_kinds(config):
        yield "hardware", f"cluster={config['cluster']['name']} names the kinds of its workers"
    if is_ray(config) and config["backend"]["name"] != "vllm":
        reason = f"backend={config['backend']['name']} starts no engine in the cluster"
        yield from dict.fromkeys(("cluster.address", "cluster.cpus_per_worker"), reason).items()
    chooses = isinstance(job.scheduler, Flexible)
    keep = config["backend"].get("keep", "nothing")
    if keep == "nothing":
        yield "hardware.host", "backend.keep is nothing"
    elif keep == "weights":
        reason = "backend.keep=weights lets no engine sleep"
        yield from dict.fromkeys(("hardware.host.sleep_fixed_s", "hardware.host.asleep_gpu_gib"), reason).items()
    for name, entry in config["pool"]["experts"].items():
        if entry.get("tp_degrees") and not chooses:
            yield f"pool.experts.{name}.tp_degrees", f"scheduler={job.scheduler.name} takes an expert's own degree"


def _unused_kv(config: Mapping[str, Any], job: Job) -> Iterator[tuple[str, str]]:
    called = {call.expert for call in job.graph.first_calls(job.workload)}
    experts = [expert for expert in job.experts if expert.name in called]
    budgets = {expert.kv_budget_tokens for expert in experts}
    losses = {int(budget) for budget in (config["world"].get("answers") or {}).get("kv_loss_frac") or {}}
    for budget in losses - budgets:
        key = "world.answers.kv_loss_frac" + (f".{budget}" if budgets & losses else "")
        yield key, f"no expert with calls has a KV budget of {budget} tokens"


def _unused_topology(config: Mapping[str, Any], job: Job) -> Iterator[tuple[str, str]]:
    topology = config["topology"]
    if topology.get("layers") is None:
        yield "topology.min_output_tokens", "topology.layers is null"
        return
    reason = f"topology={topology.get('name')} names who answers and who merges"
    if config["aggregator"].get("name") != "none":
        yield "aggregator", reason
    yield from dict.fromkeys(("workload.num_slots_per_question", "pipeline.leave_one_out"), reason).items()


def _seats_aggregator(config: Mapping[str, Any]) -> bool:
    """Tell whether the workload's or the pool's aggregator may be an agent of the layers that a topology has."""
    return any(isinstance(entry, int) for entry in (config.get("layers") or ())[1:])


def _unused_aggregators(config: Mapping[str, Any], job: Job) -> Iterator[tuple[str, str]]:
    aggregator, wanted = config["aggregator"], config["workload"].get("aggregator")
    if _seats_aggregator(config["topology"]):
        if wanted is not None:
            yield "pool.aggregator", f"workload.aggregator={wanted} goes before it"
        return
    if not job.placements:
        reason = "pipeline.nodes names the experts" if job.graph.upper_nodes else "nothing is aggregated"
        yield from dict.fromkeys(("workload.aggregator", "pool.aggregator"), reason).items()
        return
    if aggregator.get("expert") is not None:
        reason = f"aggregator.expert={aggregator['expert']} goes before it"
        yield from dict.fromkeys(("workload.aggregator", "pool.aggregator"), reason).items()
    elif wanted is not None:
        yield "pool.aggregator", f"workload.aggregator={wanted} goes before it, and aggregator.expert before both"
    for options in job.placements.values():
        degrees = {option.tp_degree for option in options.placements}
        if len(degrees) == 1:
            yield "aggregator.costs", f"with tp_degree={degrees.pop()} alone there is no choice to price"
        for degree in aggregator.get("scheduler_by_degree") or {}:
            if int(degree) not in {option.tp_degree for option in options.placements}:
                yield f"aggregator.scheduler_by_degree.{degree}", "it is not placed at this degree"
    if all(question.answer_kind is not AnswerKind.TEXT for question in job.workload.questions):
        yield "aggregator.comparison", "no question asks for free text"


def _unused_gate(config: Mapping[str, Any], job: Job) -> Iterator[tuple[str, str]]:
    rule, cancels = job.graph.rule, Reaction.QUORUM in job.reactions
    if rule.is_exit and (cancels or config["pipeline"].get("quorum") is False):
        yield "pipeline.quorum", f"exit={rule.name} cancels calls itself"
    if not job.graph.upper_nodes:
        yield "exit", "no node reads what the experts answer"
    elif config["exit"].get("similarity") == "answers":
        yield "exit.embedder", "answers are compared, not texts"
    if not any(node.when is When.UNSETTLED for node in job.graph.nodes):
        reason = "no node waits for what it decides" if job.graph.upper_nodes else "nothing is aggregated"
        yield "gate", reason
        yield from [("pipeline.quorum", reason)] if cancels else ()
    elif cancels and not rule.decides_early:
        yield "pipeline.quorum", f"gate={rule.name} is never settled before all calls of a question have ended"
    if Reaction.OVERLAP in job.reactions and job.graph.upper_nodes:
        yield "pipeline.barrier", "pipeline.overlap=true has none"
    if Reaction.FORECAST in job.reactions:
        yield from _unused_forecast(config, job)
    if not job.graph.upper_nodes:
        yield "pipeline.barrier", "there is one layer of calls"
        yield "pipeline.overlap", "there is one layer of calls"
        yield "profile.aggregator_path", "nothing is aggregated"


def _unused_forecast(config: Mapping[str, Any], job: Job) -> Iterator[tuple[str, str]]:
    if Reaction.OVERLAP in job.reactions:
        yield "pipeline.forecast", "pipeline.overlap=true places upper layers by what is free"
    elif Reaction.NO_BARRIER not in job.reactions:
        yield "pipeline.forecast", "pipeline.barrier=true plans a layer when the one before it has ended"


def _unused_budgets(config: Mapping[str, Any], job: Job) -> Iterator[tuple[str, str]]:
    settings = config["pipeline"]
    if not job.reactions & {Reaction.BUDGETS, Reaction.HEDGE}:
        yield "pipeline.promise", "pipeline.budgets and pipeline.hedge are null"
    elif job.graph.rule.promise() is not None:
        yield "pipeline.promise", "gate=calibrated says what is promised, and on which questions"
    rule = job.graph.rule
    if settings.get("leave_one_out") and not rule.is_exit and not rule.asks_everybody:
        yield (
            "pipeline.leave_one_out",
            f"only gate=never writes calibration answers, and the gate is {rule.name}",
        )
    if not job.graph.upper_nodes:
        yield "pipeline.leave_one_out", "nothing is aggregated"


def _unused_planning(config: Mapping[str, Any], job: Job) -> Iterator[tuple[str, str]]:
    """A saved plan is run as it is; the scheduler plans the layers that it lacks, and what lost workers leave."""
    left = [node.name for layer in job.graph.layers[len(job.plans) :] for node in layer]
    options = [job.placements.get(name, NodePlacements()) for name in left]
    own = [option.scheduler for placed in options for option in placed.placements or ()]
    is_used = any(not placed.placements for placed in options) or None in own
    if job.plans and job.site.way == "simulated" and not is_used:
        yield "scheduler", f"plan.path={config['plan']['path']} is run as it was planned"
        if all(placed.costs is not None for placed in options):
            yield "costs", f"plan.path={config['plan']['path']} was priced when it was planned"


def _unused_profile(config: Mapping[str, Any], job: Job) -> Iterator[tuple[str, str]]:
    if job.profile is not None:
        yield from dict.fromkeys(
            ("profile.sweep", "profile.source"), f"profile.path={config['profile']['path']} is a sweep's result"
        ).items()
        if job.upper_profile is not None or not job.graph.upper_nodes:
            yield "profile.seed", "nothing is measured"
            yield "profile.max_batch_frac", "nothing is measured"
    if job.site.way == "simulated" and not _has_pilot(job):
        yield "profile.max_batch_frac", "only what real engines measure is bounded"
    if _has_pilot(job) and not job.graph.upper_nodes:
        yield "profile.seed", "the batch's own calls are measured"
    if job.site.fingerprint is None:
        yield "profile.store", "only simulations keep what they measure"


def _unused_on_servers(config: Mapping[str, Any], job: Job) -> Iterator[tuple[str, str]]:
    """Experts are where their servers are."""
    if job.site.expert_by_server is None:
        return
    reason = f"backend={config['backend']['name']} sends each call to a server of its expert as soon as it can be made"
    reactions = ("barrier", "overlap", "forecast", "moves", "replan")
    keys = ("scheduler", "costs", "plan", "profile", *(f"pipeline.{name}" for name in reactions))
    yield from dict.fromkeys(keys, reason).items()


def _has_pilot(job: Job) -> bool:
    return job.profile is None and why_not(job, job.graph.first_calls(job.workload)) is None


def _unused_workload(config: Mapping[str, Any], job: Job) -> Iterator[tuple[str, str]]:
    workload = config["workload"]
    if "profiles" in workload and workload["profiles"] is None and workload.get("experts") is None:
        for key in ("num_slots_per_question", "seed"):
            yield f"workload.{key}", "every line names its experts, and workload.profiles no router"
    if workload.get("part") == "test" and job.site.way == "simulated":
        yield (
            "workload.num_calibration_questions",
            "workload.part=test, and a simulation measures on the batch's questions",
        )


def _unused_world(config: Mapping[str, Any], job: Job) -> Iterator[tuple[str, str]]:
    """Settings of experts without calls."""
    merging = {expert.name for node in job.graph.upper_nodes for expert in node.experts}
    called = {call.expert for call in job.graph.first_calls(job.workload)} | merging
    world = config["world"]
    answers = world.get("answers") or {}
    for prefix, names, used in (
        ("pool.experts", config["pool"]["experts"], called),
        ("world.output_tokens", world.get("output_tokens"), called),
        ("world.answers.ability_by_expert", answers.get("ability_by_expert"), called),
        ("world.merged_tokens", world.get("merged_tokens"), merging),
    ):
        for name in names if isinstance(names, Mapping) else ():
            if name not in used:
                yield f"{prefix}.{name}", f"{'no call needs' if used is called else 'nothing is merged by'} {name}"


def _unused_engines(config: Mapping[str, Any], job: Job) -> Iterator[tuple[str, str]]:
    if job.site.way == "measured":
        yield "world", "models really answer"
    if not job.graph.upper_nodes:
        yield "backend.num_calibration_questions", "nothing is aggregated"
    elif _has_pilot(job):
        yield "backend.num_calibration_questions", "the batch's own questions show what the gate leaves"
    called = {*job.workload.num_calls_by_expert, *(expert.name for expert in job.graph.experts)}
    if all(Path(expert.checkpoint).is_dir() for expert in job.experts if expert.name in called):
        yield "backend.checkpoints", "every expert names its checkpoint by a path of its own"
