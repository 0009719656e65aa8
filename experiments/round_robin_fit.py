"""Busy seconds of the round-robin workers, session by session: what the expert stage is calibrated on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import brentq

from experiments.published import ROUND_ROBIN_WORKER_S
from experiments.wiring import Setup, compose_config, setup_from
from mosaic.cluster import uniform_cluster
from mosaic.lengths import ClippedLognormal, LengthDistribution
from mosaic.plan import Plan, PredictedTimes, Session, SolveReport, SolveStatus
from mosaic.workload import Expert, ExpertName, Family, Workload
from sim.backend import SimBackend
from sim.world import World

FIT_SEEDS = tuple(range(1000, 1008))
"""Worlds that the fits see; the reports use others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What MMLU-Pro's round robin leaves open: the numbers that are fitted and those that are assumed."""

    cpu_overhead_scale: float
    reasoning_sigma: float
    light_sigma: float
    mean_by_expert: Mapping[ExpertName, float]

    def lengths(self, experts: Sequence[Expert], scale: float = 1.0) -> dict[ExpertName, LengthDistribution]:
        """Length distributions of a pool, every mean times the scale."""
        sigma = {Family.REASONING: self.reasoning_sigma, Family.INSTRUCT: self.light_sigma}
        return {
            expert.name: ClippedLognormal(
                mean=self.mean_by_expert[expert.name] * scale,
                sigma=sigma[expert.family],
                clip_tokens=expert.max_output_tokens,
            )
            for expert in experts
            if expert.name in self.mean_by_expert
        }


def benchmark_setup(workload: str, *overrides: str) -> Setup:
    """Compose a benchmark with the committed defaults."""
    return setup_from(compose_config([f"workload={workload}", *overrides]))


def with_shape(setup: Setup, shape: Shape, scale: float = 1.0) -> Setup:
    """Put a shape and a length scale in place of the committed ones."""
    hardware = replace(setup.hardware, cpu_overhead_scale=shape.cpu_overhead_scale)
    return replace(setup, hardware=hardware, lengths=shape.lengths(setup.experts, scale))


def session_busy_s(setup: Setup, expert: ExpertName, seeds: Sequence[int]) -> float:
    """Mean load and serving seconds of one session with all of an expert's calls, over worlds."""
    calls = [call for call in setup.workload.calls if call.expert == expert]
    role = calls[0].key.role
    cluster = uniform_cluster(name="one", num_workers=1, gpu=setup.hardware.gpu)
    plan = Plan(
        scheduler="calibration",
        problem_fingerprint="calibration",
        num_workers=1,
        sessions=(
            Session(id=0, expert=expert, role=role, workers=(0,), shard=tuple(call.key for call in calls)),
        ),
        predicted=(PredictedTimes(0.0, 0.0, 0.0),),
        lengths={},
        lower_bound_s=0.0,
        solve=SolveReport(status=SolveStatus.HEURISTIC),
    )
    ends = []
    for seed in seeds:
        world = World(lengths=setup.lengths, root_seed=seed)
        assert setup.settings is not None
        backend = SimBackend(
            experts=setup.experts,
            cluster=cluster,
            hardware={setup.hardware.gpu.name: setup.hardware},
            settings=setup.settings,
            outcomes=world.outcome,
        )
        ends.append(backend.execute(plan, calls).sessions[0].end_ts)
    return float(np.mean(ends))


def first_seen(workload: Workload) -> tuple[ExpertName, ...]:
    """Experts in the order of the query stream."""
    return tuple(workload.num_calls_by_expert)


def worker_busy_s(setup: Setup, seeds: Sequence[int]) -> list[float]:
    """Busy seconds of the workers under round robin: expert m on worker m mod N."""
    busy = [0.0] * setup.cluster.num_workers
    for index, expert in enumerate(first_seen(setup.workload)):
        busy[index % len(busy)] += session_busy_s(setup, expert, seeds)
    return busy


def fit_shape(
    setup: Setup, shape: Shape, *, phi_range: tuple[float, float] = (0.2, 8.0), seeds: Sequence[int] = FIT_SEEDS
) -> Shape:
    """Fit phi to LlamaR1's worker, then Qwen's and Exaone's means to theirs, at the shape's sigmas and GLM mean.

    The fourth worker (QwenR1 and GLM) is what sigma answers for: see ``calibrate.py``.
    """

    def busy_s(candidate: Shape, expert: ExpertName) -> float:
        return session_busy_s(with_shape(setup, candidate), expert, seeds)

    def with_mean(candidate: Shape, expert: ExpertName, mean: float) -> Shape:
        return replace(candidate, mean_by_expert={**candidate.mean_by_expert, expert: mean})

    gemma_exaone_s, _, qwen_s, llama_r1_s = ROUND_ROBIN_WORKER_S
    phi = brentq(
        lambda x: busy_s(replace(shape, cpu_overhead_scale=x), "LlamaR1") - llama_r1_s, *phi_range, xtol=5e-3
    )
    shape = replace(shape, cpu_overhead_scale=round(phi, 3))
    qwen = brentq(lambda x: busy_s(with_mean(shape, "Qwen", x), "Qwen") - qwen_s, 30, 2500, xtol=0.5)
    shape = with_mean(shape, "Qwen", round(qwen, 1))
    left_s = gemma_exaone_s - busy_s(shape, "Gemma")
    exaone = brentq(lambda x: busy_s(with_mean(shape, "Exaone", x), "Exaone") - left_s, 30, 2500, xtol=0.5)
    return with_mean(shape, "Exaone", round(exaone, 1))
