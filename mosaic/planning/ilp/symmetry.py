"""Equal workers: which blocks of workers can be exchanged without changing any price."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from mosaic.planning.schedulers.instance import Counts, Instance

Option: TypeAlias = tuple[int, int]
"""An expert and one of its places, both by number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Symmetry:
    """An expert whose shards may be asked to shrink from block to block, and the blocks that are equal."""

    expert: int
    classes: tuple[tuple[int, ...], ...]
    """Places of the expert, grouped into blocks of workers that are interchangeable."""
    options: dict[int, tuple[Option, ...]]
    """Options of all experts inside each of those blocks, in the same order in every block of a class."""


def nests(instance: Instance) -> bool:
    """Tell whether every gang lies inside or outside every wider one: the sizes divide one another."""
    widths = sorted({len(places[0]) for places in instance.places})
    return all(wide % narrow == 0 for narrow, wide in pairwise(widths))


def find_symmetry(instance: Instance) -> Symmetry | None:
    """Find interchangeable blocks; None where sizes of gangs do not nest or no two blocks are equal.

    NOTE: aligned gangs whose sizes divide one another nest, so moving a whole block of the widest size moves every
    narrower gang with it. The expert that orders the blocks is the one that can have most replicas: it
    tells most blocks apart.
    """
    if not instance.num_experts or not nests(instance):
        return None
    widths = [len(places[0]) for places in instance.places]
    widest = max(widths)

    def rank(m: int) -> tuple[int, float]:
        return instance.max_replicas[m], instance.session_s(m, 0, instance.num_calls[m])

    expert = max((m for m in range(instance.num_experts) if widths[m] == widest), key=rank)
    options = _options_by_block(instance, widest)
    classes: dict[object, list[int]] = {}
    for place, workers in enumerate(instance.places[expert]):
        classes.setdefault(_signature(instance, options[workers[0] // widest], widest), []).append(place)
    if all(len(members) < 2 for members in classes.values()):
        return None
    return Symmetry(
        expert=expert,
        classes=tuple(tuple(members) for members in classes.values()),
        options={place: tuple(options[workers[0] // widest]) for place, workers in enumerate(instance.places[expert])},
    )


def order_blocks(counts: Counts, symmetry: Symmetry) -> Counts:
    """Move a placement's blocks so that the ordering expert's shards shrink within each class."""
    rows = [list(row) for row in counts]
    for members in symmetry.classes:
        sources = sorted(members, key=lambda place: -counts[symmetry.expert][place])
        for target, source in zip(members, sources, strict=True):
            _copy(rows, counts, symmetry.options[target], symmetry.options[source])
    return tuple(tuple(row) for row in rows)


def _copy(rows: list[list[int]], counts: Counts, targets: Sequence[Option], sources: Sequence[Option]) -> None:
    for (expert, to_place), (_, from_place) in zip(targets, sources, strict=True):
        rows[expert][to_place] = counts[expert][from_place]


def _options_by_block(instance: Instance, width: int) -> dict[int, list[Option]]:
    options: dict[int, list[Option]] = {}
    for expert, places in enumerate(instance.places):
        for place, workers in enumerate(places):
            options.setdefault(workers[0] // width, []).append((expert, place))
    return options


def _signature(instance: Instance, options: Sequence[Option], width: int) -> object:
    return tuple(
        (m, instance.places[m][p][0] % width, instance.setup_s[m][p], instance.per_call_s[m][p]) for m, p in options
    )
