"""What round robin tells about the simulator's parameters: the fits behind the published workloads.

Sessions of different workers do not meet under round robin, so each is simulated alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from typing import TypeAlias

import numpy as np
from scipy.optimize import brentq

from experiments.config.job import simulated
from mosaic.core.cluster import uniform_cluster
from mosaic.core.lengths import ClippedLognormal, LengthDistribution
from mosaic.core.plan import Session, unpriced_plan
from mosaic.core.workload import Expert, ExpertName, Family
from mosaic.runtime.static_plan import execute
from sim.world.world import World

FIT_SEEDS = tuple(range(1000, 1032))
"""Worlds that the fits see; the reports use others."""
NUM_LIGHT_SEEDS = 4
"""Worlds simulated for instruct experts, whose sessions vary little from one to the next."""
SCALE_GRID = tuple(float(scale) for scale in np.geomspace(0.25, 3.0, 8))
"""Length scales at which sessions are simulated; between them walls are interpolated."""


Placement: TypeAlias = tuple[tuple[ExpertName, ...], ...]
"""The experts of every worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterSet:
    """All that MMLU-Pro's round robin leaves open: fitted or assumed, and carried to the other benchmarks."""

    cpu_overhead_scale: float
    reasoning_sigma: float
    light_sigma: float
    mean_by_expert: Mapping[ExpertName, float]

    def lengths(self, experts: Sequence[Expert], scale: float = 1.0) -> dict[ExpertName, LengthDistribution]:
        """Length distributions of a pool, every mean times the scale."""
        return {
            expert.name: _lognormal(self.mean_by_expert[expert.name] * scale, self.sigma(expert), expert)
            for expert in experts
        }

    def sigma(self, expert: Expert) -> float:
        return self.reasoning_sigma if expert.family is Family.REASONING else self.light_sigma

    def with_mean(self, expert: ExpertName, mean: float) -> "ParameterSet":
        return replace(self, mean_by_expert={**self.mean_by_expert, expert: mean})


def _lognormal(mean: float, sigma: float, expert: Expert) -> ClippedLognormal:
    return ClippedLognormal(mean=mean, sigma=sigma, clip_tokens=expert.max_output_tokens)


class BaselineSessions:
    """Busy seconds of a benchmark's sessions under any parameters, each simulated once."""

    def __init__(self, workload: str, seeds: Sequence[int] = FIT_SEEDS) -> None:
        self.job, self.site = simulated([f"workload={workload}"])
        self.seeds = tuple(seeds)
        self.experts = {expert.name: expert for expert in self.job.experts}
        self.order = tuple(self.job.workload.num_calls_by_expert)
        self.session_s = cache(self._session_s)

    def _session_s(self, expert: ExpertName, mean: float, sigma: float, cpu_overhead_scale: float) -> np.ndarray:
        """Load and serving seconds of all calls of an expert in one session, per world."""
        reasoning = self.experts[expert].family is Family.REASONING
        seeds = self.seeds if reasoning else self.seeds[:NUM_LIGHT_SEEDS]
        calls = [call for call in self.job.workload.calls if call.expert == expert]
        hardware = replace(self.site.hardware, cpu_overhead_scale=cpu_overhead_scale)
        alone = uniform_cluster(name="one", num_workers=1, gpu=hardware.gpu)
        site = replace(self.site, hardware=hardware, cluster=alone)
        shard = tuple(call.key for call in calls)
        session = Session(id=0, expert=expert, node=calls[0].key.node, workers=(0,), shard=shard)
        plan = unpriced_plan([session], num_workers=1)
        lengths = {expert: _lognormal(mean, sigma, self.experts[expert])}
        worlds = [World(lengths=lengths, root_seed=seed) for seed in seeds]
        ends_s = np.array([execute(plan, calls, site.backend_in(world)).sessions[0].end_ts for world in worlds])
        return np.resize(ends_s, len(self.seeds))  # repeats the few worlds of a light expert

    def busy_s(self, parameters: ParameterSet, expert: ExpertName, scale: float = 1.0) -> np.ndarray:
        """Busy seconds of one expert's session, per world."""
        mean = parameters.mean_by_expert[expert] * scale
        return self.session_s(expert, mean, parameters.sigma(self.experts[expert]), parameters.cpu_overhead_scale)

    def workers_s(self, parameters: ParameterSet) -> np.ndarray:
        """Mean busy seconds of the workers: expert m on worker m mod N."""
        busy = np.zeros(self.site.cluster.num_workers)
        for index, expert in enumerate(self.order):
            busy[index % len(busy)] += self.busy_s(parameters, expert).mean()
        return busy

    def fit_scales(self, parameters: ParameterSet, wall_s: float) -> dict[Placement, float]:
        """Fit the length scale that gives a wall, for each way in which an order can share out the workers.

        Returns
        -------
        dict
            The scale by placement (the experts of every worker), where some scale of the grid's range gives the wall.
            The committed order's placement comes first.

        Raises
        ------
        ValueError
            If no scale in the grid's range gives the wall under the committed order.
        """
        table = {name: np.array([self.busy_s(parameters, name, scale) for scale in SCALE_GRID]) for name in self.order}
        committed = self._placement(self.order)
        scales = {committed: self._fit_scale(parameters, wall_s, committed)}
        for placement in _placements(self.order, self.site.cluster.num_workers):
            walls = _mean_wall_s(placement, table)
            if walls[0] < wall_s < walls[-1]:
                log_scale = np.interp(np.log(wall_s), np.log(walls), np.log(SCALE_GRID))
                scales.setdefault(placement, float(np.exp(log_scale)))
        return scales

    def _fit_scale(self, parameters: ParameterSet, wall_s: float, placement: Placement) -> float:
        """Solve for the scale of one placement, where the others are interpolated."""

        def miss_s(scale: float) -> float:
            busy = {name: self.busy_s(parameters, name, scale) for name in self.order}
            return float(_mean_wall_s(placement, busy)) - wall_s

        ends_s = [miss_s(scale) + wall_s for scale in (SCALE_GRID[0], SCALE_GRID[-1])]
        if not ends_s[0] < wall_s < ends_s[1]:
            reach = f"{ends_s[0]:.0f} to {ends_s[1]:.0f} s (scales {SCALE_GRID[0]:g} to {SCALE_GRID[-1]:g})"
            raise ValueError(f"wall_s must be within {reach}, got {wall_s:g}")
        return float(brentq(miss_s, SCALE_GRID[0], SCALE_GRID[-1], xtol=5e-4))

    def _placement(self, order: Sequence[ExpertName]) -> Placement:
        num_workers = self.site.cluster.num_workers
        return _canonical([order[worker::num_workers] for worker in range(min(num_workers, len(order)))])


def _mean_wall_s(placement: Placement, busy_s: Mapping[ExpertName, np.ndarray]) -> np.ndarray:
    """Mean over worlds (the last axis) of the busiest worker's seconds."""
    walls_s = np.max(np.stack([sum(busy_s[name] for name in group) for group in placement]), axis=0)
    mean_s: np.ndarray = walls_s.mean(axis=-1)
    return mean_s


def _canonical(groups: Sequence[Sequence[ExpertName]]) -> Placement:
    return tuple(sorted(tuple(sorted(group)) for group in groups))


def _placements(experts: Sequence[ExpertName], num_workers: int) -> list[Placement]:
    """All ways in which some order of the experts fills the workers, each once (for up to twice as many experts)."""
    num_pairs = max(0, len(experts) - num_workers)
    found: dict[Placement, None] = {}
    for doubled in combinations(combinations(experts, 2), num_pairs):
        names = [name for pair in doubled for name in pair]
        if len(set(names)) == len(names):
            alone = [(name,) for name in experts if name not in names]
            found[_canonical([*doubled, *alone])] = None
    return list(found)


def solve_mean(sessions: BaselineSessions, parameters: ParameterSet, expert: ExpertName, busy_s: float) -> ParameterSet:
    """Fit one expert's mean length to the busy seconds of its session."""

    def miss_s(mean: float) -> float:
        return float(sessions.busy_s(parameters.with_mean(expert, mean), expert).mean()) - busy_s

    return parameters.with_mean(expert, round(brentq(miss_s, 20.0, 2000.0, xtol=0.5), 1))
