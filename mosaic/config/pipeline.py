"""The pipeline of a run, from the groups ``pipeline``, ``gate`` and ``aggregator``."""

from collections.abc import Mapping, Sequence
from functools import partial
from inspect import signature
from typing import Any, NamedTuple

from mosaic.answers.extraction import Comparison
from mosaic.config.instantiation import call, import_callable, make
from mosaic.config.sections import (
    AggregatorSection,
    NoAggregatorSection,
    NodeSection,
    PipelineSection,
    TopologySection,
    section,
)
from mosaic.core.checks import require, require_unique
from mosaic.core.cluster import Cluster
from mosaic.core.engine_options import EngineOptions
from mosaic.core.kv_memory import fits_memory
from mosaic.core.workload import AGGREGATE, Expert, Workload
from mosaic.pipelines.call_graph import CallGraph, mixture_of_agents
from mosaic.pipelines.final_answers import comparisons
from mosaic.pipelines.node import Node
from mosaic.pipelines.rules.rule import Never, Rule
from mosaic.pipelines.topology import topology_nodes
from mosaic.planning.baselines import DataParallel
from mosaic.planning.costs import AffineCosts
from mosaic.planning.feasibility import check_fit
from mosaic.planning.profiles import Profile
from mosaic.runtime.job import Reaction
from mosaic.runtime.planner import NodePlacements, Placement, placed
from sim.hardware.hardware import Hardware
from sim.hardware.iteration_time import iteration_time

SCHEDULERS = {"data_parallel": DataParallel}
"""Of a node's placement, beside the run's own."""
COSTS = {"affine": AffineCosts}


class Pipeline(NamedTuple):
    """The call graph of a run, and how its upper nodes may be placed."""

    settings: PipelineSection
    graph: CallGraph
    placements: Mapping[str, NodePlacements]
    reactions: frozenset[Reaction]
    aggregator: str | None
    """Name of the choice; None: the pipeline names its nodes, or has none beside the experts."""


def pipeline_from(
    config: Mapping[str, Any],
    experts: Sequence[Expert],
    cluster: Cluster,
    hardware: Hardware,
    options: EngineOptions,
    workload: Workload,
) -> Pipeline:
    """Build the pipeline; aggregator.expert goes before the workload's choice, and that before the pool's.

    Raises
    ------
    ValueError, TypeError
        Naming the key, the rule and the value.
    """
    settings = section(config["pipeline"], PipelineSection, "pipeline")
    reactions = _reactions(settings)

    def made(
        graph: CallGraph, placements: Mapping[str, NodePlacements] | None = None, name: str | None = None
    ) -> Pipeline:
        return Pipeline(settings, graph, placements or {}, reactions, name)

    name = config["aggregator"].get("name")
    topology = section(config["topology"], TopologySection, "topology")
    if topology.layers is None:
        require(topology.fan_in is None, "topology.fan_in", "null where topology.layers is null", topology.fan_in)
    else:
        named = partial(_named_aggregator, None, config, experts)
        room = topology.min_output_tokens
        layers = topology_nodes(topology.layers, topology.fan_in, room, experts, workload, named)
        rule = f"null beside topology={config['topology'].get('name')}, which has nodes of its own"
        require(settings.nodes is None, "pipeline.nodes", rule, settings.nodes)
        return made(CallGraph(nodes=layers, compare=comparisons()))
    if settings.nodes is not None:
        rule = "none beside pipeline.nodes: name the aggregator as a node"
        require(name == "none", "aggregator", rule, name)
        nodes = named_nodes(settings.nodes, experts)
        return made(CallGraph(nodes=nodes, rule=_gate(config), compare=comparisons()))
    if name == "none":
        section(config["aggregator"], NoAggregatorSection, "aggregator")
        return made(mixture_of_agents(None, rule=Never(), compare=comparisons()))
    aggregator = section(config["aggregator"], AggregatorSection, "aggregator")
    rule = "none on a cluster of several kinds: it is measured on workers of one kind"
    require(len({worker.gpu for worker in cluster.workers}) == 1, "aggregator", rule, aggregator.name)
    expert = _choose(aggregator.expert, config, experts)
    graph = mixture_of_agents(
        expert,
        rule=_gate(config),
        compare=comparisons(_comparison(aggregator.comparison)),
        min_output_tokens=aggregator.min_output_tokens,
        leaves_one_out=settings.leave_one_out,
    )
    return made(graph, {AGGREGATE: _placements(aggregator, expert, cluster, hardware, options)}, aggregator.name)


def _gate(config: Mapping[str, Any]) -> Rule:
    rule: Rule = make(config["gate"], "gate")
    require(not rule.is_exit, "gate.scope", "gate: an early exit is a choice of the group exit", rule.scope)
    return rule


def _reactions(settings: PipelineSection) -> frozenset[Reaction]:
    wanted, beside = settings.wanted, {Reaction.REPLAN, Reaction.BUDGETS, Reaction.HEDGE}
    rule = "false without a barrier, and beside pipeline.quorum, pipeline.overlap or pipeline.moves"
    require(Reaction.REPLAN not in wanted or wanted <= beside, "pipeline.replan", rule, True)
    return wanted


def check_prefill_ahead(pipeline: Pipeline, backend: str, options: EngineOptions) -> None:
    """Refuse to prefill ahead where it could not have an effect.

    Raises
    ------
    ValueError
        Naming what is in its way.
    """
    key = "pipeline.prefill_ahead"
    require(bool(pipeline.graph.upper_nodes), key, "false where no call reads others", True)
    is_early = bool(pipeline.reactions & {Reaction.OVERLAP, Reaction.NO_BARRIER})
    require(is_early, key, "false unless pipeline.overlap=true or pipeline.barrier=false", True)
    require(backend != "endpoint", key, "false with backend=endpoint: nobody says which server holds a prompt", True)
    caches = options.caches_prefixes if backend == "sim" else options.enable_prefix_caching is not False
    rule = "false where engines cache no prefixes: they do with backend.order=mixed, and on real vLLM"
    require(caches, key, rule, True)


def named_nodes(entries: Mapping[str, Any], experts: Sequence[Expert]) -> tuple[Node, ...]:
    """Build the nodes of a pipeline of the user's own.

    Raises
    ------
    ValueError, TypeError
        Naming the key, the rule and the value.
    """
    pool = {expert.name: expert for expert in experts}
    nodes = []
    for name, entry in entries.items():
        label = f"pipeline.nodes.{name}"
        given = dict(entry or {}) if isinstance(entry, Mapping | None) else entry
        node = section(given, NodeSection, label)
        for expert in node.experts or ():
            require(expert in pool, f"{label}.experts", f"of the pool {list(pool)}", expert)
        named = {"name": name, "experts": tuple(pool[expert] for expert in node.experts or ())}
        nodes.append(call(Node, label, **{**given, **named}))
    return tuple(nodes)


def check_upper_profile(pipeline: Pipeline, profile: Profile, cluster: Cluster) -> None:
    """Check that a given profile covers every upper node's experts at each of their degrees."""
    for node in pipeline.graph.upper_nodes:
        options = pipeline.placements.get(node.name, NodePlacements()).placements
        for expert in node.experts:
            for degree in [option.tp_degree for option in options] or [expert.tp_degree]:
                profile.entry(expert.name, cluster.workers[0].gpu.name, degree)


def _named_aggregator(name: str | None, config: Mapping[str, Any], experts: Sequence[Expert]) -> Expert | None:
    """Find the aggregator in the pool; None: none is named."""
    choices = {
        "aggregator.expert": name,
        "workload.aggregator": config["workload"].get("aggregator"),
        "pool.aggregator": config["pool"].get("aggregator"),
    }
    names = [expert.name for expert in experts]
    for field, wanted in choices.items():
        if wanted is not None:
            require(wanted in names, field, f"one of the pool {names}", wanted)
            return experts[names.index(wanted)]
    return None


def _choose(name: str | None, config: Mapping[str, Any], experts: Sequence[Expert]) -> Expert:
    chosen = _named_aggregator(name, config, experts)
    if chosen is None:
        raise ValueError(
            "aggregator.expert must be given, or workload.aggregator or pool.aggregator, got none of them: "
            "add one, or run the expert stage alone with aggregator=none"
        )
    return chosen


def _placements(
    aggregator: AggregatorSection, expert: Expert, cluster: Cluster, hardware: Hardware, options: EngineOptions
) -> NodePlacements:
    require_unique(aggregator.tp_degrees, "aggregator.tp_degrees")
    schedulers = {int(degree): name for degree, name in (aggregator.scheduler_by_degree or {}).items()}
    costs = aggregator.costs
    degrees = _placeable(expert, tuple(aggregator.tp_degrees), cluster, hardware, options)
    return NodePlacements(
        placements=tuple(
            Placement(tp_degree=degree, scheduler=SCHEDULERS[schedulers[degree]]() if degree in schedulers else None)
            for degree in degrees
        ),
        costs=partial(COSTS[costs], options=options) if costs is not None and len(degrees) > 1 else None,
    )


def _placeable(
    expert: Expert, tp_degrees: tuple[int, ...], cluster: Cluster, hardware: Hardware, options: EngineOptions
) -> tuple[int, ...]:
    """List the degrees at which the cluster has the workers, the iteration times and the memory for it."""
    degrees = tuple(degree for degree in tp_degrees if degree <= cluster.num_workers)
    if not degrees:
        raise ValueError(
            f"aggregator.tp_degrees must be at most cluster.num_workers={cluster.num_workers}, "
            f"got {list(tp_degrees)}: choose aggregator=dp, or none for the expert stage alone"
        )
    degrees, untimed = _timed(expert, hardware, degrees)
    if not degrees:
        raise ValueError(
            f"aggregator.tp_degrees must be degrees that {hardware.gpu.name} was measured at, "
            f"got {list(tp_degrees)} ({untimed}): choose aggregator=dp"
        )
    shaped = {degree: placed(expert, degree) for degree in degrees}
    fitting = tuple(degree for degree in degrees if fits_memory(shaped[degree], cluster.workers[:degree], options))
    if not fitting:
        check_fit(shaped[max(degrees)], cluster, options)
    return fitting


def _timed(expert: Expert, hardware: Hardware, degrees: Sequence[int]) -> tuple[tuple[int, ...], str]:
    """Tell the degrees at which the hardware's operators were measured, and why the last of the others is none."""
    timed, reason = [], ""
    for degree in degrees:
        try:
            iteration_time(hardware, expert.shape, degree)
            timed.append(degree)
        except ValueError as error:
            reason = str(error)
    return tuple(timed), reason


def _comparison(path: str | None) -> Comparison | None:
    if path is None:
        return None
    found: Comparison = import_callable(path, "aggregator.comparison")
    try:
        signature(found).bind("one answer", "another")
    except TypeError as error:
        raise TypeError(f"aggregator.comparison must take two answers, got {path!r} ({error})") from error
    except ValueError:
        pass  # written in C, and silent about its arguments
    return found
