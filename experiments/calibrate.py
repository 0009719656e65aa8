"""Fit what the baseline may calibrate, and keep every parameter set that is consistent with it.

    python experiments/calibrate.py                             parameter_sets.json, walls.json: into results/multirun
    python experiments/calibrate.py --out results/calibration   makes the committed files anew
    python experiments/calibrate.py --sets parameter_sets.json  walls.json alone, from the sets of an earlier fit

MMLU-Pro's four round-robin workers fit four numbers: phi (host time per iteration), sigma of the reasoning lengths, and
the means of Qwen and Exaone. GLM's mean and the light experts' sigma are assumed; other assumptions, and other splits
between phi and sigma, that keep all four workers within 5% are kept as further parameter sets. Each set then fits one
length scale to MedMCQA's and one to GPQA's round-robin wall, for every order of experts that the paper leaves open, and
the ILP is simulated under all of them: walls.json holds the range, which the reproduction sets beside the published
walls (experiments/paper.py). Nothing here reads a number that must be predicted. The committed values (conf/lengths,
conf/world, conf/hardware/a100_80gb.yaml) are the first set.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from scipy.optimize import minimize
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # experiments is not an installed package

from experiments.config.places import own_folder  # noqa: E402
from experiments.studies.open_range import FittedSet, open_range  # noqa: E402
from experiments.studies.published import ROUND_ROBIN_WALL_S, ROUND_ROBIN_WORKER_S  # noqa: E402
from experiments.studies.round_robin_fit import FIT_SEEDS, BaselineSessions, ParameterSet, solve_mean  # noqa: E402

SETS = "parameter_sets.json"
PUBLISHED_MEANS = {"LlamaR1": 3146.0, "QwenR1": 3734.0, "Gemma": 291.0}
ASSUMED = {"GLM": 400.0, "light_sigma": 0.8}
TOLERANCE_FRAC = 0.05
PHIS = (0.2, 1.0, 1.8, 2.6, 3.4, 4.2, 5.0, 5.8)
SIGMAS = (0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2, 1.25, 1.3, 1.35)
ALL_ASSUMPTIONS = (ASSUMED, {"GLM": 250.0, "light_sigma": 0.6}, {"GLM": 600.0, "light_sigma": 1.0})
BENCHMARK_SEEDS = {"medmcqa": FIT_SEEDS, "gpqa": tuple(range(1000, 1064))}
"""GPQA's wall is one session of 429 heavy-tailed calls: it takes twice the worlds for the same certainty."""


def fit_best(sessions: BaselineSessions) -> ParameterSet:
    """Fit phi and sigma to the two reasoning workers by least squares, then the two light means."""
    start = make_set(phi=1.9, sigma=1.1, assumed=ASSUMED)

    def loss(x: np.ndarray) -> float:
        candidate = replace(start, cpu_overhead_scale=round(float(x[0]), 3), reasoning_sigma=round(float(x[1]), 4))
        return float(np.sum(reasoning_errors(sessions, candidate) ** 2))

    found = minimize(loss, [1.9, 1.1], method="Nelder-Mead", options={"xatol": 0.01, "fatol": 1e-6, "maxiter": 40})
    phi, sigma = found.x
    return fit_light_means(sessions, make_set(phi=round(phi, 2), sigma=round(sigma, 3), assumed=ASSUMED))


def make_set(*, phi: float, sigma: float, assumed: dict[str, float]) -> ParameterSet:
    return ParameterSet(
        cpu_overhead_scale=phi,
        reasoning_sigma=sigma,
        light_sigma=assumed["light_sigma"],
        mean_by_expert={**PUBLISHED_MEANS, "GLM": assumed["GLM"], "Qwen": 364.0, "Exaone": 456.0},
    )


def reasoning_errors(sessions: BaselineSessions, parameters: ParameterSet) -> np.ndarray:
    """Relative errors of the workers of QwenR1 (with GLM) and LlamaR1."""
    qwen_r1_s = sessions.busy_s(parameters, "QwenR1").mean() + sessions.busy_s(parameters, "GLM").mean()
    llama_r1_s = sessions.busy_s(parameters, "LlamaR1").mean()
    return np.array([qwen_r1_s / ROUND_ROBIN_WORKER_S[1], llama_r1_s / ROUND_ROBIN_WORKER_S[3]]) - 1


def fit_light_means(sessions: BaselineSessions, parameters: ParameterSet) -> ParameterSet:
    """Fit Qwen's mean to its worker, then Exaone's to what Gemma leaves of theirs."""
    parameters = solve_mean(sessions, parameters, "Qwen", ROUND_ROBIN_WORKER_S[2])
    left_s = ROUND_ROBIN_WORKER_S[0] - sessions.busy_s(parameters, "Gemma").mean()
    return solve_mean(sessions, parameters, "Exaone", left_s)


def consistent_sets(sessions: BaselineSessions) -> list[ParameterSet]:
    """List the best fit and every grid point whose workers are all within the tolerance.

    Raises
    ------
    ValueError
        If the grid ends inside the consistent region, which would cut the ensemble off.
    """
    found = Parallel(n_jobs=-1, return_as="generator")(delayed(consistent_at)(phi) for phi in PHIS)
    kept = [each for sets in tqdm(found, "phi", len(PHIS), disable=not sys.stderr.isatty()) for each in sets]
    for each in kept:
        inside = min(PHIS) < each.cpu_overhead_scale < max(PHIS) and min(SIGMAS) < each.reasoning_sigma < max(SIGMAS)
        if not inside:
            raise ValueError(f"PHIS and SIGMAS must enclose every consistent set, got one on their border: {each}")
    return [fit_best(sessions), *kept]


def consistent_at(phi: float) -> list[ParameterSet]:
    """List the grid points of one phi whose workers are all within the tolerance."""
    sessions = BaselineSessions("mmlu_pro")
    grid = [make_set(phi=phi, sigma=sigma, assumed=other) for sigma, other in product(SIGMAS, ALL_ASSUMPTIONS)]
    consistent = [each for each in grid if np.all(np.abs(reasoning_errors(sessions, each)) <= TOLERANCE_FRAC)]
    return [fit_light_means(sessions, each) for each in consistent]


def fit_benchmark(workload: str, parameters: ParameterSet) -> list[float]:
    """Fit a benchmark's length scale to its round-robin wall, for every order; the committed order's first."""
    sessions = BaselineSessions(workload, BENCHMARK_SEEDS[workload])
    return [round(scale, 4) for scale in sessions.fit_scales(parameters, ROUND_ROBIN_WALL_S[workload]).values()]


def describe(sessions: BaselineSessions, parameters: ParameterSet) -> str:
    workers = sessions.workers_s(parameters)
    errors = workers / np.array(ROUND_ROBIN_WORKER_S) - 1
    means = ", ".join(f"{name} {mean:g}" for name, mean in parameters.mean_by_expert.items())
    columns = "  ".join(f"{busy:7.1f} ({error:+.1%})" for busy, error in zip(workers, errors, strict=True))
    return (
        f"phi {parameters.cpu_overhead_scale:g}, sigma {parameters.reasoning_sigma:g} reasoning and "
        f"{parameters.light_sigma:g} light; means: {means}\n  workers, s (error): {columns}"
    )


def fit_all() -> list[dict[str, Any]]:
    """Fit every parameter set, and say what was found."""
    sessions = BaselineSessions("mmlu_pro")
    sets = consistent_sets(sessions)
    print(f"MMLU-Pro, published workers {ROUND_ROBIN_WORKER_S} s")
    print(f"{len(sets)} consistent parameter sets, best fit first:")
    for parameters in sets:
        print(describe(sessions, parameters))
    rows: list[dict[str, Any]] = [asdict(parameters) for parameters in sets]
    for workload in BENCHMARK_SEEDS:
        jobs = (delayed(fit_benchmark)(workload, parameters) for parameters in sets)
        fits = Parallel(n_jobs=-1, return_as="generator")(jobs)
        for row, scales in zip(rows, tqdm(fits, workload, len(rows), disable=not sys.stderr.isatty()), strict=True):
            row[f"{workload}_scales"] = scales
        every = [scale for row in rows for scale in row[f"{workload}_scales"]]
        first = rows[0][f"{workload}_scales"][0]
        print(
            f"{workload}: length scale {first:g} (best fit, committed order), {min(every):g} to {max(every):g} in all"
        )
    return rows


def fitted_sets(rows: Sequence[Mapping[str, Any]], workload: str) -> list[FittedSet]:
    """Read the sets with a benchmark's scales."""
    names = {field.name for field in fields(ParameterSet)}
    return [
        FittedSet(ParameterSet(**{name: row[name] for name in names}), tuple(row[f"{workload}_scales"])) for row in rows
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="calibrate", description="Fit the simulator to the round-robin baseline.")
    parser.add_argument("--sets", type=Path, help=f"{SETS} of an earlier fit: fit nothing, simulate what is left open")
    parser.add_argument("--out", type=Path, default=own_folder("calibrate"), help="folder (default: %(default)s)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.sets is None:
        rows = fit_all()
        (options.out / SETS).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        print(f"written: {options.out / SETS}", flush=True)
    else:
        rows = json.loads(options.sets.read_text(encoding="utf-8"))
    walls = {}
    for workload in BENCHMARK_SEEDS:
        walls[workload] = found = open_range(workload, fitted_sets(rows, workload))
        low, high = found["ilp_range_s"]
        print(
            f"{workload}: the ILP takes {found['ilp_makespan_s']:,.0f} s with the committed parameters, {low:,.0f} to "
            f"{high:,.0f} s over {len(rows)} sets, {len(found['ratios'])} with the ends of their scales"
        )
    (options.out / "walls.json").write_text(json.dumps(walls, indent=1) + "\n", encoding="utf-8")
    print(f"written: {options.out / 'walls.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
