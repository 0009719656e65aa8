"""The ILP's wall over all that round robin leaves open: parameter sets, and orders of the experts."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from joblib import Parallel, delayed
from tqdm import tqdm

import mosaic
from experiments.config.job import simulated
from experiments.studies.round_robin_fit import ParameterSet
from mosaic.report.metrics import makespan_s

NUM_SEEDS, NUM_SET_SEEDS = 96, 4
"""Worlds of the committed parameters, and of each other set."""


class FittedSet(NamedTuple):
    """Parameters, with the length scale of a benchmark for every order of experts that matches its wall."""

    parameters: ParameterSet
    scales: tuple[float, ...]


def wall_s(workload: str, seed: int, parameters: ParameterSet | None = None, scale: float = 1.0) -> float:
    """Simulate the expert stage under the ILP, with other parameters than the committed ones where they are given."""
    job, site = simulated([f"workload={workload}", f"seed={seed}", "aggregator=none"])
    if parameters is not None:
        lengths = parameters.lengths(job.experts, scale)
        site = replace(
            site,
            hardware=replace(site.hardware, cpu_overhead_scale=parameters.cpu_overhead_scale),
            world=replace(site.world, lengths=lengths),
            calibration_world=replace(site.calibration_world, lengths=lengths),
        )
    span_s = makespan_s(mosaic.run(replace(job, site=site)).result.sessions)
    assert span_s is not None
    return span_s


def open_range(
    workload: str, sets: Sequence[FittedSet], num_seeds: int = NUM_SEEDS, num_set_seeds: int = NUM_SET_SEEDS
) -> dict[str, Any]:
    """Simulate the ILP under every set.

    The committed set is simulated on many seeds. The others are simulated on the first few of them and stand by their
    ratio to the first set on the same seeds, so that the luck of a few heavy-tailed worlds does not count.
    """
    # NOTE: the makespan grows with the scale, so the ends of a set's scales are the ends of its predictions.
    points = [
        (each.parameters, scale)
        for each in sets
        for scale in dict.fromkeys((each.scales[0], min(each.scales), max(each.scales)))
    ]
    jobs = [delayed(wall_s)(workload, seed) for seed in range(num_seeds)]
    jobs += [delayed(wall_s)(workload, seed, *point) for point in points for seed in range(num_set_seeds)]
    done = Parallel(n_jobs=-1, return_as="generator")(jobs)
    walls = list(tqdm(done, f"{workload} sets", len(jobs), disable=not sys.stderr.isatty()))
    mean = float(np.mean(walls[:num_seeds]))
    means = np.array(walls[num_seeds:]).reshape(len(points), num_set_seeds).mean(axis=1)
    ratios = (means / means[0]).tolist()
    return {
        "ilp_makespan_s": mean,
        "ilp_range_s": [mean * min(ratios), mean * max(ratios)],
        "num_seeds": num_seeds,
        "ratios": ratios,
        "scales": [scale for _, scale in points],
    }
