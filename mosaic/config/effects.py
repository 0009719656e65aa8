"""Refuses user settings without an effect on the run: an ignored setting would mislead its user."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mosaic.config.compose import parsed
from mosaic.config.machines import has_kinds, is_ray
from mosaic.config.sections import switch
from mosaic.core.workload import AnswerKind
from mosaic.pipelines.node import When
from mosaic.planning import Flexible
from mosaic.runtime.job import Job, Reaction
from mosaic.runtime.pilot import why_not
from mosaic.runtime.planner import NodePlacements

Rules = Iterator[tuple[Any, str | tuple[str, ...], str]]
"""Whether one or several keys have no effect, and why."""


def check_effects(overrides: Sequence[str], config: Mapping[str, Any], job: Job) -> None:
    """Check that every setting of a user has an effect.

    Raises
    ------
    ValueError
        Naming the key, its value, and why it has no effect.
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
    groups = (_places, _upper_nodes, _aggregator, _rules_and_reactions, _measuring, _questions, _by_expert)
    rules = (rule for group in groups for rule in group(config, job))
    inert = ((keys if isinstance(keys, tuple) else (keys,), reason) for is_inert, keys, reason in rules if is_inert)
    return {key: reason for keys, reason in inert for key in keys}


def _given(overrides: Sequence[str], config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Iterate over the keys that a user sets; reactions in a list count as their switches."""
    for override in parsed(overrides):
        if not override.is_delete():
            line = override.input_line or ""
            yield override.key_or_group, line
            if override.key_or_group == "pipeline.reactions":
                listed = config["pipeline"]["reactions"]
                yield from ((f"pipeline.{switch(Reaction(name))}", line) for name in listed)


def _places(config: Mapping[str, Any], job: Job) -> Rules:
    """Workers, hosts and servers."""
    backend, cluster, keep = config["backend"], config["cluster"], config["backend"].get("keep", "nothing")
    yield has_kinds(cluster), "hardware", f"cluster={cluster['name']} names the kinds of its workers"
    no_engine = f"backend={backend['name']} starts no engine in the cluster"
    yield is_ray(cluster) and backend["name"] != "vllm", ("cluster.address", "cluster.cpus_per_worker"), no_engine
    yield keep == "nothing", "hardware.host", "backend.keep is nothing"
    asleep = ("hardware.host.sleep_fixed_s", "hardware.host.asleep_gpu_gib")
    yield keep == "weights", asleep, "backend.keep=weights lets no engine sleep"
    sends = f"backend={backend['name']} sends each call to a server of its expert as soon as it can be made"
    reactions = (f"pipeline.{name}" for name in ("barrier", "overlap", "forecast", "moves", "replan"))
    yield job.site.expert_by_server is not None, ("scheduler", "costs", "plan", "profile", *reactions), sends
    called = {*job.workload.num_calls_by_expert, *(expert.name for expert in job.graph.experts)}
    has_paths = all(Path(expert.checkpoint).is_dir() for expert in job.experts if expert.name in called)
    yield has_paths, "backend.checkpoints", "every expert names its checkpoint by a path of its own"


def _upper_nodes(config: Mapping[str, Any], job: Job) -> Rules:
    """Layers above the first."""
    topology = config["topology"]
    is_flat = topology.get("layers") is None
    layered = f"topology={topology.get('name')} names the experts and the aggregator"
    yield is_flat, "topology.min_output_tokens", "topology.layers is null"
    yield not is_flat and config["aggregator"].get("name") != "none", "aggregator", layered
    yield not is_flat, ("workload.num_slots_per_question", "pipeline.leave_one_out"), layered
    if not job.graph.upper_nodes:
        unused = ("pipeline.leave_one_out", "profile.aggregator_path", "backend.num_calibration_questions", "summary")
        yield True, unused, "nothing is aggregated"
        yield True, ("pipeline.barrier", "pipeline.overlap"), "there is one layer of calls"
        yield True, "exit", "no node reads what the experts answer"


def _aggregator(config: Mapping[str, Any], job: Job) -> Rules:
    """The aggregator, and its placement."""
    aggregator, wanted = config["aggregator"], config["workload"].get("aggregator")
    own, layers = aggregator.get("expert"), config["topology"].get("layers") or ()
    goes_before = f"workload.aggregator={wanted} goes before it"
    if any(isinstance(entry, int) for entry in layers[1:]):  # the aggregator may be an agent of such a layer
        yield wanted is not None, "pool.aggregator", goes_before
        return
    if not job.placements:
        reason = "pipeline.nodes names the experts" if job.graph.upper_nodes else "nothing is aggregated"
        yield True, ("workload.aggregator", "pool.aggregator"), reason
        return
    yield own is not None, ("workload.aggregator", "pool.aggregator"), f"aggregator.expert={own} goes before it"
    both = f"{goes_before}, and aggregator.expert before both"
    yield own is None and wanted is not None, "pool.aggregator", both
    for options in job.placements.values():
        degrees = [option.tp_degree for option in options.placements]
        reason = f"with tp_degree={', '.join(map(str, degrees))} alone there is no choice to price"
        yield len(degrees) == 1, "aggregator.costs", reason
        for degree in aggregator.get("scheduler_by_degree") or {}:
            key = f"aggregator.scheduler_by_degree.{degree}"
            yield int(degree) not in degrees, key, "it is not placed at this degree"
    has_texts = any(question.answer_kind is AnswerKind.TEXT for question in job.workload.questions)
    yield not has_texts, "aggregator.comparison", "no question asks for free text"


def _rules_and_reactions(config: Mapping[str, Any], job: Job) -> Rules:
    """Gates, exits, budgets, and other reactions during the run."""
    rule, graph, settings = job.graph.rule, job.graph, config["pipeline"]
    overlaps, cancels = Reaction.OVERLAP in job.reactions, Reaction.QUORUM in job.reactions
    by_itself = f"exit={rule.name} cancels calls itself"
    yield rule.is_exit and (cancels or settings.get("quorum") is False), "pipeline.quorum", by_itself
    compares_answers = graph.upper_nodes and config["exit"].get("similarity") == "answers"
    yield compares_answers, "exit.embedder", "answers are compared, not texts"
    is_read = any(node.when is When.UNSETTLED for node in graph.nodes)
    unread = "no node waits for what it decides" if graph.upper_nodes else "nothing is aggregated"
    yield not is_read, "gate", unread
    yield cancels and not is_read, "pipeline.quorum", unread
    late = f"gate={rule.name} is never settled before all calls of a question have ended"
    yield cancels and is_read and not rule.decides_early, "pipeline.quorum", late
    yield overlaps and graph.upper_nodes, "pipeline.barrier", "pipeline.overlap=true has none"
    if Reaction.FORECAST in job.reactions:
        reason = "pipeline.barrier=true plans a layer when the one before it has ended"
        reason = "pipeline.overlap=true places upper layers by what is free" if overlaps else reason
        yield overlaps or Reaction.NO_BARRIER not in job.reactions, "pipeline.forecast", reason
    promises = "gate=calibrated says what is promised, and on which questions"
    yield rule.promise() is not None, "pipeline.promise", promises
    has_none = not job.reactions & {Reaction.BUDGETS, Reaction.HEDGE}
    yield has_none, "pipeline.promise", "pipeline.budgets and pipeline.hedge are null"
    only_never = f"only gate=never writes calibration answers, and the gate is {rule.name}"
    is_one_left = settings.get("leave_one_out") and graph.upper_nodes
    yield is_one_left and not rule.is_exit and not rule.skips_nothing, "pipeline.leave_one_out", only_never
    yield graph.upper_nodes and graph.skips_nothing, "summary", f"gate={rule.name} aggregates every question"
    yield job.site.kind != "simulated", "summary", "engines cannot compute another run"


def _measuring(config: Mapping[str, Any], job: Job) -> Rules:
    """Profiles, measurements, and saved plans: the scheduler plans calls that these lack, and calls of lost workers."""
    is_simulated, path = job.site.kind == "simulated", config["plan"]["path"]
    left = [node.name for layer in job.graph.layers[len(job.plans) :] for node in layer]
    options = [job.placements.get(name, NodePlacements()) for name in left]
    own = [option.scheduler for placed in options for option in placed.placements or ()]
    is_planned = job.plans and is_simulated and all(placed.placements for placed in options) and None not in own
    yield is_planned, "scheduler", f"plan.path={path} is run as it was planned"
    is_priced = is_planned and all(placed.costs is not None for placed in options)
    yield is_priced, "costs", f"plan.path={path} was priced when it was planned"
    is_known = job.profile is not None
    given = f"profile.path={config['profile']['path']} is what was measured"
    yield is_known, ("profile.sweep", "profile.source"), given
    is_measured = not is_known or (job.upper_profile is None and job.graph.upper_nodes)
    yield not is_measured, ("profile.seed", "profile.max_batch_frac"), "nothing is measured"
    has_pilot = not is_known and why_not(job, job.graph.first_calls(job.workload)) is None
    unbounded = "only what real engines measure is bounded"
    yield is_simulated and not has_pilot, "profile.max_batch_frac", unbounded
    yield has_pilot and not job.graph.upper_nodes, "profile.seed", "the batch's own calls are measured"
    yield job.site.cache_key is None, "profile.store", "only simulations store their measurements"
    shown = "the batch's own questions show what the gate leaves"
    yield has_pilot and job.graph.upper_nodes, "backend.num_calibration_questions", shown


def _questions(config: Mapping[str, Any], job: Job) -> Rules:
    workload, is_simulated = config["workload"], job.site.kind == "simulated"
    routes = "profiles" not in workload or workload["profiles"] is not None or workload.get("experts") is not None
    named = "every line names its experts, and workload.profiles no router"
    yield not routes, ("workload.num_slots_per_question", "workload.seed"), named
    measures_on_batch = "workload.part=test, and a simulation measures on the batch's questions"
    is_test = workload.get("part") == "test" and is_simulated
    yield is_test, "workload.num_calibration_questions", measures_on_batch
    yield job.site.kind == "measured", "world", "models really answer"
    shares = any(call.prefix is not None for call in job.workload.calls)
    yield not shares, "workload.hash_block_tokens", "no two requests of the log have one of hash_ids"


def _by_expert(config: Mapping[str, Any], job: Job) -> Rules:
    """Settings of experts without calls, of tensor parallelism and of KV budgets."""
    pool, world = config["pool"]["experts"], config["world"]
    answers = world.get("answers") or {}
    first = {call.expert for call in job.graph.first_calls(job.workload)}
    merging = {expert.name for node in job.graph.upper_nodes for expert in node.experts}
    for prefix, names, used, reason in (
        ("pool.experts", pool, first | merging, "no call needs"),
        ("world.output_tokens", world.get("output_tokens"), first | merging, "no call needs"),
        ("world.answers.ability_by_expert", answers.get("ability_by_expert"), first | merging, "no call needs"),
        ("world.merged_tokens", world.get("merged_tokens"), merging, "nothing is merged by"),
    ):
        for name in names if isinstance(names, Mapping) else ():
            yield name not in used, f"{prefix}.{name}", f"{reason} {name}"
    for name, entry in pool.items():
        is_chosen = isinstance(job.scheduler, Flexible) or not entry.get("tp_degrees")
        reason = f"scheduler={job.scheduler.name} takes an expert's own degree"
        yield not is_chosen, f"pool.experts.{name}.tp_degrees", reason
    for expert in job.experts:
        is_alone = expert.possible_degrees == (1,) and expert.name not in merging
        yield is_alone, f"pool.experts.{expert.name}.dp_attention", "its sessions have one GPU"
    budgets = {expert.kv_budget_tokens for expert in job.experts if expert.name in first}
    losses = {int(budget) for budget in answers.get("kv_loss_frac") or {}}
    for budget in losses - budgets:
        key = "world.answers.kv_loss_frac" + (f".{budget}" if budgets & losses else "")
        yield True, key, f"no expert with calls has a KV budget of {budget} tokens"
