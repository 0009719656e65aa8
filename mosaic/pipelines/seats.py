"""Who sits where in layers of agents: experts by name, or as many as asked for from those that can read so much."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from mosaic.core.checks import require
from mosaic.core.workload import Expert, ExpertName, Workload
from mosaic.pipelines.aggregation import fits_context
from mosaic.pipelines.node import Node
from mosaic.pipelines.topology import in_turn, layered_nodes

Aggregator: TypeAlias = Callable[[], Expert | None]
"""Finds the workload's aggregator, or else the pool's; None: nobody names one."""


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
        As conf/topology has them.
    experts
        The pool.
    workload
        Whose experts take the seats that a number leaves open.
    aggregator
        Finds who takes a last seat that nobody is named for.

    Raises
    ------
    ValueError, TypeError
        Naming the key, the rule and the value.
    """
    require(len(layers) > 1, "topology.layers", "at least two: aggregator=none runs one alone", layers)
    read = fan_in if isinstance(fan_in, Sequence) else [fan_in] * (len(layers) - 1)
    seats = [_seats(entry, depth, len(layers), experts) for depth, entry in enumerate(layers)]
    seated: list[tuple[Expert, ...]] = []
    for depth, entry in enumerate(seats):
        if isinstance(entry, tuple):
            seated.append(entry)
        elif depth == len(seats) - 1 and entry == 1:
            seated.append((_require_aggregator(aggregator),))
        else:
            num_read = (read[depth - 1] or len(seated[depth - 1])) if depth else 0
            seated.append(in_turn(_able(experts, workload, num_read, min_output_tokens, aggregator), entry))
    return layered_nodes(seated, read, min_output_tokens=min_output_tokens)


def _seats(
    entry: int | Sequence[ExpertName], depth: int, num_layers: int, experts: Sequence[Expert]
) -> int | tuple[Expert, ...]:
    """Read an entry of the layers: how many agents, or which."""
    if isinstance(entry, int):
        return entry
    label = f"topology.layers, layer {depth + 1} of {num_layers}"
    pool = {expert.name: expert for expert in experts}
    for name in entry:
        require(name in pool, label, f"of the pool {list(pool)}", name)
    require(len(entry) > 0, label, "at least one agent", entry)
    return tuple(pool[name] for name in entry)


def _able(
    experts: Sequence[Expert], workload: Workload, num_read: int, room: int, aggregator: Aggregator
) -> Sequence[Expert]:
    """List the experts that the workload asks and that can read so many responses; none: the aggregator."""
    asked = workload.num_calls_by_expert
    able = [
        expert
        for expert in experts
        if expert.name in asked
        and (
            num_read == 0
            or all(fits_context(question, expert, num_read, min_output_tokens=room) for question in workload.questions)
        )
    ]
    return able or (_require_aggregator(aggregator),)


def _require_aggregator(aggregator: Aggregator) -> Expert:
    chosen = aggregator()
    if chosen is None:
        raise ValueError(
            "topology.layers must name the experts of its last layer where neither workload.aggregator nor "
            "pool.aggregator names one, got a number"
        )
    return chosen
