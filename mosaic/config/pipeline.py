"""Builds the pipeline of a run: its calls, its gate or exit, and the possible placements of its upper nodes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, replace
from functools import partial
from inspect import signature
from types import MappingProxyType
from typing import Any, NamedTuple

from mosaic.answers.extraction import Comparison
from mosaic.config.instantiation import TARGET, call, import_callable, make
from mosaic.config.machines import Machines
from mosaic.config.sections import (
    AggregatorSection,
    NodeSection,
    PipelineSection,
    Sections,
    TopologySection,
    by_number,
    require_keys,
    section,
)
from mosaic.config.sites import Backend
from mosaic.core.checks import require, require_count, require_unique
from mosaic.core.engine_options import EngineOptions
from mosaic.core.kv_memory import fits_memory
from mosaic.core.workload import AGGREGATE, PROPOSE, Expert, Workload
from mosaic.pipelines.budget_choice import Calibration, Kinds, budgeted
from mosaic.pipelines.call_graph import CallGraph, PrefillOrder, mixture_of_agents
from mosaic.pipelines.final_answers import comparisons
from mosaic.pipelines.node import Node
from mosaic.pipelines.rules.calibration_file import check_other_questions
from mosaic.pipelines.rules.faster_moa import Embed, Similarity
from mosaic.pipelines.rules.rule import Majority, Never, Order, Promised, Rule, Scope
from mosaic.pipelines.topology import topology_nodes
from mosaic.planning.baselines import DataParallel
from mosaic.planning.costs import AffineCosts
from mosaic.planning.feasibility import check_calls, check_fit
from mosaic.runtime.job import Reaction
from mosaic.runtime.planner import NodePlacements, Placement, placed
from sim.hardware.iteration_time import iteration_time


class Pipeline(NamedTuple):
    """The call graph of a run, and the possible placements of its upper nodes."""

    graph: CallGraph
    placements: Mapping[str, NodePlacements] = MappingProxyType({})
    calibration: Calibration | None = None
    """Of budgets and hedge, if configured: the choice, and its basis."""


def pipeline_from(
    given: Sections,
    experts: Sequence[Expert],
    machines: Machines,
    backend: Backend,
    workload: Workload,
) -> Pipeline:
    """Build the pipeline.

    Parameters
    ----------
    given
        The configuration.
    experts
        The pool.
    machines, backend, workload
        Of the run.

    Raises
    ------
    ValueError, TypeError
        Naming the key, the rule and the value.
    """
    settings, options = given.pipeline, backend.options
    _check_replan(settings)
    pipeline = _layers(given, experts, machines, backend, workload)
    check_calls(workload, experts, machines.cluster if backend.places else None, options)
    graph = pipeline.graph
    early = _exit(given, experts, backend.embed_by)
    if graph.upper_nodes and early is not None:
        graph = graph.with_exit(early)
    if settings.count_tokens and graph.upper_nodes:
        readers = {node.name for node in graph.layers[1]}
        nodes = tuple(replace(node, counts_tokens=node.name in readers) for node in graph.nodes)
        graph = replace(graph, nodes=nodes)
    check_other_questions(f"{graph.rule.key}.calibration", graph.rule.promise(), workload.questions)
    num_running = machines.cluster.num_workers * options.max_num_seqs
    graph, calibration = _budgeted(graph, settings, experts, workload, num_running)
    if Reaction.PREFILL in settings.wanted:
        _check_prefill_ahead(graph, settings, given.backend["name"], options)
        graph = replace(graph, prefill_order=PrefillOrder())
    if calibration is not None:
        check_other_questions("pipeline.promise.calibration", calibration.promised, workload.questions)
    return pipeline._replace(graph=graph, calibration=calibration)


def _check_replan(settings: PipelineSection) -> None:
    beside = {Reaction.REPLAN, Reaction.BUDGETS, Reaction.HEDGE}
    rule = "false without a barrier, and beside pipeline.quorum, pipeline.overlap or pipeline.moves"
    require(Reaction.REPLAN not in settings.wanted or settings.wanted <= beside, "pipeline.replan", rule, True)


# The calls: layers of agents, nodes of the user's own, or the experts and their aggregator.


def _layers(
    given: Sections, experts: Sequence[Expert], machines: Machines, backend: Backend, workload: Workload
) -> Pipeline:
    settings, topology, name = given.pipeline, given.topology, given.aggregator.get("name")
    if topology.layers is not None:
        _check_agents(topology)
        named = partial(_named_aggregator, None, given, experts)
        room = topology.min_output_tokens
        layers = topology_nodes(topology.layers, topology.fan_in, room, experts, workload, named)
        rule = f"null beside topology={topology.name}, which has nodes of its own"
        require(settings.nodes is None, "pipeline.nodes", rule, settings.nodes)
        return Pipeline(CallGraph(nodes=layers, compare=comparisons()))
    require(topology.fan_in is None, "topology.fan_in", "null where topology.layers is null", topology.fan_in)
    if settings.nodes is not None:
        require(name == "none", "aggregator", "none beside pipeline.nodes: name the aggregator as a node", name)
        nodes = _named_nodes(settings.nodes, experts)
        return Pipeline(CallGraph(nodes=nodes, rule=_gate(given), compare=comparisons()))
    if name == "none":
        require_keys(given.aggregator, "aggregator", ["name"])
        return Pipeline(mixture_of_agents(None, rule=Never(), compare=comparisons()))
    aggregator = section(given.aggregator, AggregatorSection, "aggregator")
    rule = "none on a cluster of several kinds: it is measured on workers of one kind"
    require(len({worker.gpu for worker in machines.cluster.workers}) == 1, "aggregator", rule, aggregator.name)
    expert = _named_aggregator(aggregator.expert, given, experts)
    if expert is None:
        raise ValueError(
            "aggregator.expert must be given, or workload.aggregator or pool.aggregator, got none of them: "
            "add one, or run the expert stage alone with aggregator=none"
        )
    graph = mixture_of_agents(
        expert,
        rule=_gate(given),
        compare=comparisons(_comparison(aggregator.comparison)),
        min_output_tokens=aggregator.min_output_tokens,
        leaves_one_out=settings.leave_one_out,
    )
    placements = _placements(aggregator, expert, machines, backend.options) if backend.places else NodePlacements()
    return Pipeline(graph, {AGGREGATE: placements})


def _check_agents(topology: TopologySection) -> None:
    for number, layer in enumerate(topology.layers or ()):
        if not isinstance(layer, list):
            require_count(layer, f"topology.layers[{number}]", at_least=1)
    if not isinstance(topology.fan_in, list | None):
        require_count(topology.fan_in, "topology.fan_in", at_least=1)
    for number, width in enumerate(topology.fan_in if isinstance(topology.fan_in, list) else ()):
        require(width is None or type(width) is int, f"topology.fan_in[{number}]", "a whole number or null", width)


def _named_nodes(entries: Mapping[str, Any], experts: Sequence[Expert]) -> tuple[Node, ...]:
    """Build the nodes of a user's own pipeline."""
    pool = {expert.name: expert for expert in experts}
    nodes = []
    for name, entry in entries.items():
        label = f"pipeline.nodes.{name}"
        given = {} if entry is None else entry
        node = section(given, NodeSection, label)
        for expert in node.experts or ():
            require(expert in pool, f"{label}.experts", f"of the pool {list(pool)}", expert)
        named = {"name": name, "experts": tuple(pool[expert] for expert in node.experts or ())}
        nodes.append(call(Node, label, **{**given, **named}))
    return tuple(nodes)


def _named_aggregator(name: str | None, given: Sections, experts: Sequence[Expert]) -> Expert | None:
    """Find the aggregator in the pool: the choice of its group, else the workload's, else the pool's."""
    choices = {
        "aggregator.expert": name,
        "workload.aggregator": given.workload.get("aggregator"),
        "pool.aggregator": given.pool.aggregator,
    }
    names = [expert.name for expert in experts]
    for field, wanted in choices.items():
        if wanted is not None:
            require(wanted in names, field, f"one of the pool {names}", wanted)
            return experts[names.index(wanted)]
    return None


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


# What decides that the answers so far are enough: gate or early exit, and budgets.


def _gate(given: Sections) -> Rule:
    rule: Rule = make(given.gate, "gate")
    require(not rule.is_exit, "gate.scope", "gate: an early exit is a choice of the group exit", rule.scope)
    return rule


def _exit(given: Sections, experts: Sequence[Expert], embed_by: Callable[[Expert], Embed] | None) -> Rule | None:
    if TARGET not in given.exit:
        name = require_keys(given.exit, "exit", ["name"]).get("name")
        require(name in ("auto", "never"), "exit.name", "one of ['auto', 'never']", name)
        is_agreement = name == "auto" and given.topology.layers is not None
        return Majority(name="agreement", scope=Scope.NODE, order=Order.SLOT) if is_agreement else None
    settings, pool = dict(given.exit), {expert.name: expert for expert in experts}
    embedder = settings.pop("embedder", None)
    if settings.get("similarity") == Similarity.EMBEDDINGS:
        require(embedder in pool, "exit.embedder", f"with similarity=embeddings one of the pool {list(pool)}", embedder)
        if embed_by is None:
            raise ValueError(
                "exit.similarity must be answers where calls have no texts, got embeddings: only backend=vllm in live "
                "mode embeds what was written"
            )
        settings["embed"] = embed_by(pool[embedder])
    made: Rule = make(settings, "exit")
    require(made.is_exit, "exit.scope", "node or question", made.scope)
    return made


def _budgeted(
    graph: CallGraph, settings: PipelineSection, experts: Sequence[Expert], workload: Workload, num_running: int
) -> tuple[CallGraph, Calibration | None]:
    """Choose the configured budgets and the hedge."""
    kinds = Kinds(cuts=Reaction.BUDGETS in settings.wanted, hedges=Reaction.HEDGE in settings.wanted)
    if not any(kinds):
        return graph, None
    name = "pipeline.budgets" if kinds.cuts else "pipeline.hedge"
    rule = "null where nothing is aggregated, or pipeline.nodes names the nodes"
    require([node.name for node in graph.nodes] == [PROPOSE, AGGREGATE], name, rule, "calibrated")
    early = graph.rule
    promised, stated = early.promise(), settings.promise
    rule = "null with an exit that reads only some answers"
    require(not early.is_exit or early.threshold is not None or promised is not None, name, rule, early.name)
    if promised is None:
        if stated is None or stated.calibration is None:
            raise ValueError(
                "pipeline.promise.calibration must name calibration answers where budgets are wanted, got None: they "
                "are chosen on other questions than the batch's. Of a published workload this command makes some, with "
                "workload.part=calibration gate=never pipeline.leave_one_out=true"
            )
        promised = Promised(*astuple(stated))
    return budgeted(graph, promised, kinds, experts, workload, num_running)


def _check_prefill_ahead(graph: CallGraph, settings: PipelineSection, backend: str, options: EngineOptions) -> None:
    """Refuse to prefill ahead if it could not have an effect."""
    key = "pipeline.prefill_ahead"
    require(bool(graph.upper_nodes), key, "false where no call reads others", True)
    is_early = bool(settings.wanted & {Reaction.OVERLAP, Reaction.NO_BARRIER})
    require(is_early, key, "false unless pipeline.overlap=true or pipeline.barrier=false", True)
    require(backend != "endpoint", key, "false with backend=endpoint: no server reports the prompts in its cache", True)
    caches = options.caches_prefixes if backend == "sim" else options.enable_prefix_caching is not False
    rule = "false where engines cache no prefixes: they do with backend.order=mixed, and on real vLLM"
    require(caches, key, rule, True)


# Where the aggregator may run.


def _placements(
    aggregator: AggregatorSection, expert: Expert, machines: Machines, options: EngineOptions
) -> NodePlacements:
    require(bool(aggregator.tp_degrees), "aggregator.tp_degrees", "at least one value", [])
    require_unique(aggregator.tp_degrees, "aggregator.tp_degrees")
    rule, given = "by whole numbers that are at least 1", aggregator.scheduler_by_degree or {}
    schedulers = by_number(given, "aggregator.scheduler_by_degree", rule, at_least=1)
    degrees = _placeable(expert, aggregator.tp_degrees, machines, options)
    return NodePlacements(
        placements=tuple(
            Placement(tp_degree=degree, scheduler=DataParallel() if degree in schedulers else None)
            for degree in degrees
        ),
        costs=partial(AffineCosts, options=options) if aggregator.costs is not None and len(degrees) > 1 else None,
    )


def _placeable(
    expert: Expert, tp_degrees: tuple[int, ...], machines: Machines, options: EngineOptions
) -> tuple[int, ...]:
    """List the degrees for which the cluster has the workers, the iteration times and the memory."""
    cluster, hardware = machines.cluster, machines.kinds[0]
    degrees = tuple(degree for degree in tp_degrees if degree <= cluster.num_workers)
    if not degrees:
        raise ValueError(
            f"aggregator.tp_degrees must be at most cluster.num_workers={cluster.num_workers}, "
            f"got {list(tp_degrees)}: choose aggregator=dp, or none for the expert stage alone"
        )
    timed, untimed = [], ""
    for degree in degrees:
        try:
            iteration_time(hardware, expert.known_shape, degree)
            timed.append(degree)
        except ValueError as error:
            untimed = str(error)
    if not timed:
        raise ValueError(
            f"aggregator.tp_degrees must be degrees that {hardware.gpu.name} was measured at, "
            f"got {list(tp_degrees)} ({untimed}): choose aggregator=dp"
        )
    shaped = {degree: placed(expert, degree) for degree in timed}
    fitting = tuple(degree for degree in timed if fits_memory(shaped[degree], cluster.workers[:degree], options))
    if not fitting:
        check_fit(shaped[max(timed)], cluster, options)
    return fitting
