"""What round robin tells about the simulator's parameters: the fits behind the published workloads.

Sessions of different workers do not meet under round robin, so each is simulated alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np
from scipy.optimize import brentq, least_squares

from experiments.studies.parameters import ParameterSet, left_for
from experiments.studies.published import ROUND_ROBIN_WORKER_S, TOKENS_PER_CALL
from mosaic.config.job import simulated
from mosaic.core.cluster import uniform_cluster
from mosaic.core.lengths import ClippedLognormal
from mosaic.core.plan import Session, unpriced_plan
from mosaic.core.workload import ExpertName, Family
from mosaic.runtime.static_plan import execute

FIT_SEEDS = tuple(range(1000, 1032))
"""Luck that the fits see; the reports see other."""
NUM_LIGHT_SEEDS = 4
"""Simulated for instruct experts, whose sessions vary little from one to the next."""
SCALE_GRID = tuple(float(scale) for scale in np.geomspace(0.12, 3.0, 9))
"""Length scales at which sessions are simulated; between them walls are interpolated."""
NUM_ROUNDS = 2
"""The light experts' means shift the reasoning experts' fit a little, and it theirs."""


Placement: TypeAlias = tuple[tuple[ExpertName, ...], ...]
"""The experts of every worker."""


class BaselineSessions:
    """Busy seconds of a benchmark's sessions under any parameters, each simulated once."""

    def __init__(self, workload: str, seeds: Sequence[int] = FIT_SEEDS) -> None:
        self.job, self.site = simulated([f"workload={workload}"])
        self.seeds = tuple(seeds)
        self.experts = {expert.name: expert for expert in self.job.experts}
        self.slots = self.job.workload.num_calls_by_expert
        self.order = tuple(self.slots)
        self._alone_s = cache(self._session_s)

    def busy_s(self, parameters: ParameterSet, expert: ExpertName, scale: float = 1.0) -> np.ndarray:
        """Load and serving seconds of all calls of an expert in one session, by seed."""
        lengths = parameters.lengths(self.experts[expert], scale)
        return self._alone_s(expert, lengths, tuple(parameters.engine.items()), parameters.questions_differ)

    def _session_s(
        self,
        expert: ExpertName,
        lengths: ClippedLognormal,
        engine: tuple[tuple[str, float | int | None], ...],
        questions_differ: bool,
    ) -> np.ndarray:
        reasons = self.experts[expert].family is Family.REASONING
        calls = [call for call in self.job.workload.calls if call.expert == expert]
        changes: dict[str, Any] = dict(engine)
        hardware = replace(self.site.hardware, **changes)
        alone = uniform_cluster(name="one", num_workers=1, gpu=hardware.gpu)
        site = replace(self.site, hardware=hardware, cluster=alone)
        shard = tuple(call.key for call in calls)
        session = Session(id=0, expert=expert, node=calls[0].key.node, workers=(0,), shard=shard)
        plan = unpriced_plan([session], num_workers=1)
        ends_s = []
        for seed in self.seeds if reasons else self.seeds[:NUM_LIGHT_SEEDS]:
            question_seed = seed if questions_differ else self.site.world.question_seed
            world = replace(self.site.world, lengths={expert: lengths}, root_seed=seed, question_seed=question_seed)
            ends_s.append(execute(plan, calls, site.backend_in(world)).sessions[0].end_ts)
        return np.resize(ends_s, len(self.seeds))  # repeats the few of a light expert

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
        committed = self._placement(self.order)
        scales = {committed: self.fit_scale(parameters, wall_s)}
        others = [each for each in _placements(self.order, self.site.cluster.num_workers) if each != committed]
        if others:
            table = {
                name: np.array([self.busy_s(parameters, name, scale) for scale in SCALE_GRID]) for name in self.order
            }
        for placement in others:
            walls = self._mean_wall_s(parameters, placement, table)
            if walls[0] < wall_s < walls[-1]:
                log_scale = np.interp(np.log(wall_s), np.log(walls), np.log(SCALE_GRID))
                scales[placement] = float(np.exp(log_scale))
        return scales

    def fit_scale(self, parameters: ParameterSet, wall_s: float) -> float:
        """Solve for the scale of the committed order, where those of the others are interpolated.

        Raises
        ------
        ValueError
            If no scale in the grid's range gives the wall.
        """
        placement = self._placement(self.order)

        def error_s(scale: float) -> float:
            busy = {name: self.busy_s(parameters, name, scale) for name in self.order}
            return float(self._mean_wall_s(parameters, placement, busy)) - wall_s

        ends_s = [error_s(scale) + wall_s for scale in (SCALE_GRID[0], SCALE_GRID[-1])]
        if not ends_s[0] < wall_s < ends_s[1]:
            reach = f"{ends_s[0]:.0f} to {ends_s[1]:.0f} s (scales {SCALE_GRID[0]:g} to {SCALE_GRID[-1]:g})"
            raise ValueError(f"wall_s must be within {reach}, got {wall_s:g}")
        return float(brentq(error_s, SCALE_GRID[0], SCALE_GRID[-1], xtol=5e-4))

    def _placement(self, order: Sequence[ExpertName]) -> Placement:
        num_workers = self.site.cluster.num_workers
        return _canonical([order[worker::num_workers] for worker in range(min(num_workers, len(order)))])

    def _mean_wall_s(
        self, parameters: ParameterSet, placement: Placement, busy_s: Mapping[ExpertName, np.ndarray]
    ) -> np.ndarray:
        """Mean over seeds (the last axis) of the busiest worker's seconds, between whose sessions one is unloaded."""
        unload_s = parameters.engine.get("unload_s", self.site.hardware.unload_s) or 0.0
        workers_s = [sum(busy_s[name] for name in group) + unload_s * (len(group) - 1) for group in placement]
        mean_s: np.ndarray = np.max(np.stack(workers_s), axis=0).mean(axis=-1)
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


def fit_mmlu_pro(
    sessions: BaselineSessions, start: ParameterSet, *, host: str = "cpu_per_kv_token_s", glm_is_open: bool = True
) -> ParameterSet:
    """Fit MMLU-Pro's round-robin workers.

    The host's term and the spread of the reasoning experts' lengths follow from the two reasoning workers, Qwen's mean
    from its worker, Exaone's from what Gemma leaves of theirs, and GLM's from the published mean over all calls.

    Parameters
    ----------
    sessions
        Of MMLU-Pro.
    start
        What is fixed, and where the search begins.
    host
        The field of the hardware that is fitted.
    glm_is_open
        Whether GLM's mean is fitted, or stays as it is.
    """
    found = start
    for _ in range(NUM_ROUNDS):
        found = _solve_mean(sessions, found, "Qwen", ROUND_ROBIN_WORKER_S[2])
        left_s = ROUND_ROBIN_WORKER_S[0] - float(sessions.busy_s(found, "Gemma").mean())
        found = _solve_mean(sessions, found, "Exaone", left_s)
        if glm_is_open:
            found = found.with_mean(
                "GLM", round(left_for("GLM", TOKENS_PER_CALL, found.mean_by_expert, sessions.slots), 1)
            )
        found = _fit_reasoning(sessions, found, host)
    return found


def reasoning_errors(sessions: BaselineSessions, parameters: ParameterSet) -> np.ndarray:
    """Relative errors of the workers of QwenR1 (with GLM) and LlamaR1."""
    qwen_r1_s = sessions.busy_s(parameters, "QwenR1").mean() + sessions.busy_s(parameters, "GLM").mean()
    llama_r1_s = sessions.busy_s(parameters, "LlamaR1").mean()
    return np.array([qwen_r1_s / ROUND_ROBIN_WORKER_S[1], llama_r1_s / ROUND_ROBIN_WORKER_S[3]]) - 1


def _fit_reasoning(sessions: BaselineSessions, start: ParameterSet, host: str) -> ParameterSet:
    unit = 1e-8 if host == "cpu_per_kv_token_s" else 1.0
    digits = 11 if host == "cpu_per_kv_token_s" else 3
    first = start.engine.get(host, getattr(sessions.site.hardware, host)) or 0.0

    def candidate(x: np.ndarray) -> ParameterSet:
        engine = {**start.engine, host: round(float(x[0]) * unit, digits)}
        return replace(start, engine=engine, reasoning_sigma=round(float(x[1]), 4))

    fit = least_squares(
        lambda x: reasoning_errors(sessions, candidate(x)), [first / unit, start.reasoning_sigma],
        bounds=([0.0, 0.3], [10.0, 2.0]), diff_step=0.02, xtol=1e-3, ftol=1e-7,
    )  # fmt: skip
    return candidate(fit.x)


def _solve_mean(
    sessions: BaselineSessions, parameters: ParameterSet, expert: ExpertName, busy_s: float
) -> ParameterSet:
    """Fit one expert's mean length to the busy seconds of its session."""

    def error_s(mean: float) -> float:
        return float(sessions.busy_s(parameters.with_mean(expert, mean), expert).mean()) - busy_s

    return parameters.with_mean(expert, round(brentq(error_s, 20.0, 2000.0, xtol=0.5), 1))
