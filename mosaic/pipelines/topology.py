"""Builds layers of agents as nodes of a call graph: a tree, or layers in which each agent reads all of the layer below.

References
----------
Faster-MoA, arXiv 2512.18126: 9-3-1 with three precursors each, against 9-9-1 where all read all.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from mosaic.core.checks import require, require_count
from mosaic.core.workload import Expert, ExpertName, NodeName, Workload
from mosaic.pipelines.aggregation import MIN_OUTPUT_TOKENS, fits_context
from mosaic.pipelines.node import Node

Aggregator: TypeAlias = Callable[[], Expert | None]
"""Finds the workload's aggregator, or else the pool's; None: neither has one."""


def topology_nodes(
    layers: Sequence[int | Sequence[ExpertName]],
    fan_in: int | Sequence[int | None] | None,
    min_output_tokens: int,
    experts: Sequence[Expert],
    workload: Workload,
    aggregator: Aggregator,
) -> tuple[Node, ...]:
    """Build the nodes of layers of agents.

    Parameters
    ----------
    layers, fan_in, min_output_tokens
        As in conf/topology.
    experts
        The pool.
    workload
        Its experts fill the slots of a layer that is given as a number.
    aggregator
        Finds the expert for a last layer that names none.

    Raises
    ------
    ValueError, TypeError
        Naming the key, the rule and the value.
    """
    require(len(layers) > 1, "topology.layers", "at least two: aggregator=none runs one alone", layers)
    read = fan_in if isinstance(fan_in, Sequence) else [fan_in] * (len(layers) - 1)
    pool = {expert.name: expert for expert in experts}
    for depth, entry in enumerate(layers, start=1):
        label, named = f"topology.layers, layer {depth} of {len(layers)}", [] if isinstance(entry, int) else entry
        for name in named:
            require(name in pool, label, f"of the pool {list(pool)}", name)
        require(isinstance(entry, int) or len(named) > 0, label, "at least one agent", entry)
    seated: list[tuple[Expert, ...]] = []
    for depth, entry in enumerate(layers):
        if not isinstance(entry, int):
            seated.append(tuple(pool[name] for name in entry))
            continue
        able: Sequence[Expert] = ()
        if depth < len(layers) - 1 or entry > 1:
            num_read = (read[depth - 1] or len(seated[depth - 1])) if depth else 0
            able = _able(experts, workload, num_read, min_output_tokens)
        seated.append(in_turn(able or (_require_aggregator(aggregator),), entry))
    return layered_nodes(seated, read, min_output_tokens=min_output_tokens)


def layered_nodes(
    layers: Sequence[Sequence[Expert]],
    fan_in: Sequence[int | None],
    *,
    min_output_tokens: int = MIN_OUTPUT_TOKENS,
) -> tuple[Node, ...]:
    """Build the nodes of layers of agents.

    Agents with the same inputs and the same readers form one node; its role is its layer. So an agent of an upper layer
    can start when the agents that it reads have ended, without waiting for others of the layer below.

    Parameters
    ----------
    layers
        The agents of each layer, from those that read the question alone to those whose answer is final.
    fan_in
        By upper layer: how many neighbours of the layer below each agent reads, each its own; None: all.
    min_output_tokens
        Room that prompts of upper layers leave for the output.

    Raises
    ------
    ValueError, TypeError
        If a fan-in does not divide the layer below among its readers.

    Examples
    --------
    >>> from mosaic.core.workload import ModelShape
    >>> shape = ModelShape(num_parameters=10, num_layers=1, hidden_size=1, ffn_size=1, num_query_heads=1,
    ...                    num_kv_heads=1, head_dim=1, vocab_size=1)
    >>> agent = Expert(name="A", checkpoint="a", shape=shape, family="instruct")
    >>> for node in layered_nodes([[agent] * 4, [agent] * 2, [agent]], [2, None]):
    ...     print(node.name, len(node.experts), *node.after)
    layer_1_1 2
    layer_1_2 2
    layer_2_1 1 layer_1_1
    layer_2_2 1 layer_1_2
    layer_3 1 layer_2_1 layer_2_2
    """
    rule = "a number by upper layer, one fewer than there are layers"
    require(len(fan_in) == len(layers) - 1, "topology.fan_in", rule, list(fan_in))
    for depth, width in enumerate(fan_in, start=1):
        if width is not None:
            _require_division(depth, width, len(layers[depth - 1]), len(layers[depth]))
    if fan_in and len(layers[-1]) > 1:  # the last layer must be one node, whose agents vote
        require(fan_in[-1] is None, "topology.fan_in", "null for a last layer of several agents", fan_in[-1])
    nodes: list[Node] = []
    below: list[NodeName] = []
    for depth, experts in enumerate(layers):
        reads, is_read = (None, *fan_in)[depth], (*fan_in, None)[depth]
        size = 1 if reads is not None else is_read or len(experts)
        names = _names(depth, len(experts) // size)
        for place, name in enumerate(names):
            read = below if reads is None else below[place * reads : (place + 1) * reads]
            nodes.append(
                Node(
                    name=name,
                    experts=tuple(experts[place * size : (place + 1) * size]),
                    after=tuple(dict.fromkeys(read)),
                    role=f"layer_{depth + 1}",
                    min_output_tokens=min_output_tokens,
                )
            )
        below = [name for name in names for _ in range(size)]
    return tuple(nodes)


def in_turn(experts: Sequence[Expert], num_agents: int) -> tuple[Expert, ...]:
    """Assign experts in turn, starting over after the last.

    Examples
    --------
    >>> in_turn("ABC", 5)
    ('A', 'B', 'C', 'A', 'B')
    """
    return tuple(experts[place % len(experts)] for place in range(num_agents))


def _names(depth: int, num_nodes: int) -> list[NodeName]:
    name = f"layer_{depth + 1}"
    return [name] if num_nodes == 1 else [f"{name}_{place + 1}" for place in range(num_nodes)]


def _require_division(depth: int, width: int, num_below: int, num_agents: int) -> None:
    require_count(width, "topology.fan_in", at_least=1)
    rule = f"such that the {num_agents} agents of layer {depth + 1} read the {num_below} below them, each its own"
    require(width * num_agents == num_below, "topology.fan_in", rule, width)


def _able(experts: Sequence[Expert], workload: Workload, num_read: int, room: int) -> Sequence[Expert]:
    """List the workload's experts that can read the given number of responses."""
    called, questions = workload.num_calls_by_expert, workload.questions if num_read else ()

    def can_read(expert: Expert) -> bool:
        return all(fits_context(question, expert, num_read, min_output_tokens=room) for question in questions)

    return [expert for expert in experts if expert.name in called and can_read(expert)]


def _require_aggregator(aggregator: Aggregator) -> Expert:
    chosen = aggregator()
    if chosen is None:
        raise ValueError(
            "topology.layers must name the experts of its last layer where neither workload.aggregator nor "
            "pool.aggregator names one, got a number"
        )
    return chosen
