"""Fits parameters of the simulated engine and world to the published times of round robin.

Sessions of different workers do not meet under round robin, so each is simulated alone. A fit sees the published times
of the baseline only; everything about the ILP and the gate is predicted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import permutations
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, least_squares

from experiments.lab.one_session import serve_alone
from experiments.studies.drawn_answers import DrawnAnswers, draw_answers
from experiments.studies.published import ALWAYS_AGGREGATE_S, ROUND_ROBIN_WORKER_S, TOKENS_PER_CALL
from mosaic.config.job import simulated_job
from mosaic.core.workload import Call, Expert, ExpertName, Family
from mosaic.runtime.planner import placed
from sim.world.lengths import ClippedLognormal

FIT_SEEDS = tuple(range(1000, 1032))
"""Seeds that the fits see; the reports see others."""
NUM_LIGHT_SEEDS = 4
"""Simulated for instruct experts, whose sessions vary little from one to the next."""
SCALE_GRID = tuple(float(scale) for scale in np.geomspace(0.12, 3.0, 9))
"""Length scales at which sessions are simulated; between them makespans are interpolated."""
NUM_ROUNDS = 2
"""The light experts' means shift the reasoning experts' fit a little, and it theirs."""
HOST_UNIT_S = 1e-8
REASONING = ("LlamaR1", "QwenR1")
LIGHT_CAP = 4096
"""Symbolic-MoE's limit of the light experts' output."""
LEAST_MEAN, MOST_MEAN_FRAC = 5.0, 0.4
"""Bounds of the aggregator's mean: tokens, and a share of its output limit."""

Seconds: TypeAlias = NDArray[np.float64]
Placement: TypeAlias = tuple[tuple[ExpertName, ...], ...]
"""The experts of every worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterSet:
    """What the paper leaves open of the simulated engine and world: fitted, or assumed."""

    attention_streams: float
    cpu_per_kv_token_s: float
    output_cap: int
    """Most tokens that a reasoning expert writes."""
    reasoning_sigma: float
    light_sigma: float
    mean_by_expert: Mapping[ExpertName, float]

    def lengths(self, expert: Expert, scale: float = 1.0) -> ClippedLognormal:
        """Length distribution of an expert, its mean times a benchmark's scale."""
        reasons = expert.family is Family.REASONING
        return ClippedLognormal(
            mean=self.mean_by_expert[expert.name] * scale,
            sigma=self.reasoning_sigma if reasons else self.light_sigma,
            clip_tokens=self.output_cap if reasons else expert.max_output_tokens,
        )

    def with_mean(self, expert: ExpertName, mean: float) -> "ParameterSet":
        """Return the set with another mean length of an expert."""
        return replace(self, mean_by_expert={**self.mean_by_expert, expert: mean})

    def overrides(self, scale: float = 1.0, merged: tuple[ExpertName, float] | None = None) -> list[str]:
        """Write the set as a run's overrides.

        Parameters
        ----------
        scale
            Multiplies every mean.
        merged
            The aggregator and the mean of what it writes; None: as committed.
        """
        found = [f"hardware.{name}={getattr(self, name)!r}" for name in ("attention_streams", "cpu_per_kv_token_s")]
        found += [f"pool.experts.{name}.max_output_tokens={self.output_cap}" for name in REASONING]
        for name, mean in self.mean_by_expert.items():
            found += self._lognormal(f"world.output_tokens.{name}", name, mean)
        found.append(f"world.length_scale={{value:{scale!r},source:fitted}}")
        if merged is not None:
            found += self._lognormal(f"world.merged_tokens.{merged[0]}", *merged)
        return found

    def _lognormal(self, key: str, expert: ExpertName, mean: float) -> list[str]:
        reasons = expert in REASONING
        sigma, cap = (self.reasoning_sigma, self.output_cap) if reasons else (self.light_sigma, LIGHT_CAP)
        values = {"mean": mean, "sigma": sigma, "clip_tokens": cap}
        return [f"{key}.{name}.value={value!r}" for name, value in values.items()]


def committed_set() -> ParameterSet:
    """Read the set that the configuration holds."""
    site = simulated_job(["workload=mmlu_pro"])[1]
    lengths = {name: entry for name, entry in site.world.lengths.items() if isinstance(entry, ClippedLognormal)}
    return ParameterSet(
        attention_streams=site.hardware.attention_streams,
        cpu_per_kv_token_s=site.hardware.cpu_per_kv_token_s,
        output_cap=lengths["LlamaR1"].clip_tokens,
        reasoning_sigma=lengths["LlamaR1"].sigma,
        light_sigma=lengths["Gemma"].sigma,
        mean_by_expert={name: entry.mean for name, entry in lengths.items()},
    )


class BaselineSessions:
    """Busy seconds of a benchmark's sessions under any parameters, each simulated once."""

    def __init__(self, workload: str, seeds: Sequence[int] = FIT_SEEDS) -> None:
        self.job, self.site = simulated_job([f"workload={workload}"])
        self.seeds = tuple(seeds)
        self.experts = {expert.name: expert for expert in self.job.experts}
        self.slots = self.job.workload.num_calls_by_expert
        self.order = tuple(self.slots)
        self._alone_s = cache(self._session_s)

    def busy_s(self, parameters: ParameterSet, expert: ExpertName, scale: float = 1.0) -> Seconds:
        """Load and serving seconds of all calls of an expert in one session, by seed."""
        lengths = parameters.lengths(self.experts[expert], scale)
        return self._alone_s(expert, lengths, parameters.attention_streams, parameters.cpu_per_kv_token_s)

    def _session_s(
        self, name: ExpertName, lengths: ClippedLognormal, attention_streams: float, cpu_per_kv_token_s: float
    ) -> Seconds:
        expert = self.experts[name]
        calls = [call for call in self.job.workload.calls if call.expert == name]
        hardware = replace(
            self.site.hardware, attention_streams=attention_streams, cpu_per_kv_token_s=cpu_per_kv_token_s
        )
        site = replace(self.site, hardware=hardware)
        ends_s = []
        for seed in self.seeds if expert.family is Family.REASONING else self.seeds[:NUM_LIGHT_SEEDS]:
            world = replace(site.world, lengths={name: lengths}, root_seed=seed)
            ends_s.append(serve_alone(site, expert, calls, world).sessions[0].end_ts)
        return np.resize(ends_s, len(self.seeds))  # repeats the few of a light expert

    def workers_s(self, parameters: ParameterSet) -> Seconds:
        """Mean busy seconds of the workers: expert m on worker m mod N."""
        busy = np.zeros(self.site.cluster.num_workers)
        for index, expert in enumerate(self.order):
            busy[index % len(busy)] += self.busy_s(parameters, expert).mean()
        return busy

    def fit_scales(self, parameters: ParameterSet, makespan_s: float) -> list[float]:
        """Fit the length scale that gives a makespan, for each way in which an order can share out the workers.

        The committed order's scale comes first; orders that have none in the grid's range are left out.

        Raises
        ------
        ValueError
            If no scale in the grid's range gives the makespan under the committed order.
        """
        num_workers = self.site.cluster.num_workers
        placements = {placement_of(order, num_workers) for order in permutations(self.order)}
        others = sorted(placements - {placement_of(self.order, num_workers)})
        scales = [self.fit_scale(parameters, makespan_s)]
        if not others:
            return scales
        table = {name: np.array([self.busy_s(parameters, name, scale) for scale in SCALE_GRID]) for name in self.order}
        for placement in others:
            found_s = self.mean_makespan_s(placement, table)
            if found_s[0] < makespan_s < found_s[-1]:
                scales.append(float(np.exp(np.interp(np.log(makespan_s), np.log(found_s), np.log(SCALE_GRID)))))
        return scales

    def fit_scale(self, parameters: ParameterSet, makespan_s: float) -> float:
        """Solve for the scale of the committed order, where those of the others are interpolated.

        Raises
        ------
        ValueError
            If no scale in the grid's range gives the makespan.
        """
        placement = placement_of(self.order, self.site.cluster.num_workers)

        def error_s(scale: float) -> float:
            busy = {name: self.busy_s(parameters, name, scale) for name in self.order}
            return float(self.mean_makespan_s(placement, busy)) - makespan_s

        return float(brentq(error_s, SCALE_GRID[0], SCALE_GRID[-1], xtol=5e-4))

    def mean_makespan_s(self, placement: Placement, busy_s: Mapping[ExpertName, Seconds]) -> Seconds:
        """Mean over seeds (the last axis) of the busiest worker's seconds, between whose sessions one is unloaded."""
        unload_s = self.site.hardware.unload_s
        workers_s = [sum(busy_s[name] for name in group) + unload_s * (len(group) - 1) for group in placement]
        mean_s: Seconds = np.max(np.stack(workers_s), axis=0).mean(axis=-1)
        return mean_s


def placement_of(order: Sequence[ExpertName], num_workers: int) -> Placement:
    """Put expert m on worker m mod N; equal placements are written alike, as workers are alike."""
    groups = [order[worker::num_workers] for worker in range(min(num_workers, len(order)))]
    return tuple(sorted(tuple(sorted(group)) for group in groups))


def fit_workers(sessions: BaselineSessions, start: ParameterSet) -> ParameterSet:
    """Fit MMLU-Pro's round-robin workers.

    The CPU term and the spread of the reasoning experts' lengths follow from the two reasoning workers. Qwen's mean
    follows from its worker, and Exaone's from the rest of the worker that it shares with Gemma. GLM's mean follows from
    the published mean over all calls.
    """
    found = start
    for _ in range(NUM_ROUNDS):
        found = _fit_mean(sessions, found, "Qwen", ROUND_ROBIN_WORKER_S[2])
        left_s = ROUND_ROBIN_WORKER_S[0] - float(sessions.busy_s(found, "Gemma").mean())
        found = _fit_mean(sessions, found, "Exaone", left_s)
        glm = left_for("GLM", TOKENS_PER_CALL, found.mean_by_expert, sessions.slots)
        found = _fit_reasoning(sessions, found.with_mean("GLM", round(glm, 1)))
    return found


def left_for(
    expert: ExpertName, total_per_call: float, means: Mapping[ExpertName, float], slots: Mapping[ExpertName, int]
) -> float:
    """Mean of one expert at which the average over all calls is ``total_per_call``."""
    others = sum(means[name] * count for name, count in slots.items() if name != expert)
    return (total_per_call * sum(slots.values()) - others) / slots[expert]


def _fit_reasoning(sessions: BaselineSessions, start: ParameterSet) -> ParameterSet:
    """Fit the host's term and the spread to the workers of QwenR1 (with GLM) and LlamaR1."""

    def candidate(x: Seconds) -> ParameterSet:
        host_s = round(float(x[0]) * HOST_UNIT_S, 11)
        return replace(start, cpu_per_kv_token_s=host_s, reasoning_sigma=round(float(x[1]), 4))

    def errors(x: Seconds) -> Seconds:
        qwen_s, glm_s, llama_s = (sessions.busy_s(candidate(x), name).mean() for name in ("QwenR1", "GLM", "LlamaR1"))
        return np.array([(qwen_s + glm_s) / ROUND_ROBIN_WORKER_S[1], llama_s / ROUND_ROBIN_WORKER_S[3]]) - 1

    fit = least_squares(
        errors, [start.cpu_per_kv_token_s / HOST_UNIT_S, start.reasoning_sigma],
        bounds=([0.0, 0.3], [10.0, 2.0]), diff_step=0.02, xtol=1e-3, ftol=1e-7,
    )  # fmt: skip
    return candidate(fit.x)


def _fit_mean(sessions: BaselineSessions, parameters: ParameterSet, expert: ExpertName, busy_s: float) -> ParameterSet:
    """Fit one expert's mean length to the busy seconds of its session."""

    def error_s(mean: float) -> float:
        return float(sessions.busy_s(parameters.with_mean(expert, mean), expert).mean()) - busy_s

    return parameters.with_mean(expert, round(brentq(error_s, 20.0, 2000.0, xtol=0.5), 1))


def fit_merged(workload: str, parameters: ParameterSet, scale: float, seeds: Sequence[int]) -> float:
    """Fit what a benchmark's aggregator writes, on average, to its published time when it reads every question."""
    drawn = [draw_answers([f"workload={workload}", f"seed={seed}", "gate=never", *parameters.overrides(scale)])
             for seed in seeds]  # fmt: skip
    stages = [(each, each.aggregator_calls()) for each in drawn]

    def error_s(log_mean: float) -> float:
        return float(np.mean([merging_s(*stage, float(np.exp(log_mean))) for stage in stages])) - published_s

    published_s = ALWAYS_AGGREGATE_S[workload]
    most = MOST_MEAN_FRAC * drawn[0].aggregator.max_output_tokens
    return round(float(np.exp(brentq(error_s, np.log(LEAST_MEAN), np.log(most), xtol=2e-3))), 1)


def merging_s(drawn: DrawnAnswers, calls: Sequence[Call], mean: float) -> float:
    """Simulate the aggregator as one session over four GPUs, after the experts have been unloaded."""
    site, expert = drawn.site, placed(drawn.aggregator, 4)
    lengths = site.world.aggregator_lengths[expert.name]
    assert isinstance(lengths, ClippedLognormal)
    world = replace(site.world, aggregator_lengths={expert.name: replace(lengths, mean=mean)})
    return serve_alone(site, expert, calls, world, drawn.records).sessions[0].end_ts
