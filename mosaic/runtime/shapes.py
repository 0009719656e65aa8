"""Measures experts at the other degrees that they may have, on each kind of GPU of a cluster."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

from mosaic.core.cluster import Cluster, Worker, may_be_gang
from mosaic.core.workload import Expert, ExpertName
from mosaic.pipelines.budgets import Budgets
from mosaic.planning.profiles import Profile, ProfileEntry
from mosaic.runtime.budgets import Cuts
from mosaic.runtime.controller import Controller
from mosaic.runtime.site import Site
from mosaic.runtime.sweep import Sweep, run_sweep

Fits: TypeAlias = Callable[[Expert, Sequence[Worker]], bool]
"""Tells whether workers can hold an expert."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Experts that are measured in one sweep: at one degree, on one gang of workers of one kind."""

    gang: tuple[Worker, ...]
    experts: tuple[Expert, ...]

    @property
    def name(self) -> str:
        """Of its sweep."""
        return f"profile_{self.gang[0].gpu.name}_tp{len(self.gang)}"


def is_plain(experts: Sequence[Expert], cluster: Cluster) -> bool:
    """Tell whether every expert has one shape: one degree, on workers of one kind."""
    may_choose = any(expert.tp_degrees for expert in experts)
    return len({worker.gpu for worker in cluster.workers}) == 1 and not may_choose


def shapes(experts: Sequence[Expert], cluster: Cluster, fits: Fits) -> Iterator[Shape]:
    """List what can be measured; experts that fit on no gang of a kind at a degree are left out of it."""
    workers = cluster.workers
    degrees = sorted({degree for expert in experts for degree in expert.possible_degrees})
    for degree in degrees:
        gangs = (workers[start : start + degree] for start in range(0, len(workers) - degree + 1, degree))
        first = {gang[0].gpu: gang for gang in reversed([gang for gang in gangs if may_be_gang(gang)])}
        for gang in first.values():
            shaped = (replace(expert, tp_degree=degree) for expert in experts if degree in expert.possible_degrees)
            held = tuple(expert for expert in shaped if fits(expert, gang))
            if held:
                yield Shape(tuple(gang), held)


def sweep_shapes(
    sweeps: Mapping[ExpertName, Sweep],
    experts: Sequence[Expert],
    cluster: Cluster,
    site: Site,
    source: str,
    fits: Fits,
    budgets: Budgets,
    controllers: Sequence[Controller] = (),
) -> Profile:
    """Measure every expert in every shape, with the same calls in each.

    Raises
    ------
    BackendError, DisturbedSweepError
        As a sweep does.
    """
    entries: list[ProfileEntry] = []
    for shape in shapes(experts, cluster, fits):
        backend, prompt_tokens = site.sweep(shape.name, shape.experts)
        place = tuple(worker.id for worker in shape.gang)
        mine = {expert.name: sweeps[expert.name] for expert in shape.experts}
        where = partial(_one_place, place)
        profile = run_sweep(
            mine, shape.experts, cluster, backend, prompt_tokens, source, where, (Cuts(budgets), *controllers)
        )
        entries += profile.entries
    return Profile(source=source, entries=tuple(entries))


def _one_place(place: tuple[int, ...], expert: Expert, session: int) -> tuple[int, ...]:
    return place
