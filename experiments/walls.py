"""Put the simulator's expert-stage walls beside the published ones: what was fitted, then what is predicted.

    python experiments/walls.py

Reads results/calibration/parameter_sets.json (written by experiments/calibrate.py) for the ranges over everything that
round robin leaves open, and writes results/calibration/walls.txt and walls.json.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from scipy.stats import t as student_t
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # experiments is not an installed package

from experiments.config.wiring import Setup, compose_config, setup_from  # noqa: E402
from experiments.studies.published import (  # noqa: E402
    PREDICTED_ILP,
    ROUND_ROBIN_IDLE_FRAC,
    ROUND_ROBIN_WALL_S,
    ROUND_ROBIN_WORKER_S,
)
from experiments.studies.round_robin_fit import ParameterSet  # noqa: E402
from mosaic.report.metrics import busy_s_by_worker, gpu_idle_frac, makespan_s  # noqa: E402
from mosaic.runtime.run import run  # noqa: E402

FOLDER = ROOT / "results" / "calibration"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wall:
    """What one simulated run says."""

    makespan_s: float
    worker_s: tuple[float, ...]
    idle_frac: float
    output_tokens_mean: float


def simulate(setup: Setup) -> Wall:
    """Profile, plan and run a setup."""
    world = setup.world()
    _, result = run(
        setup.workload,
        experts=setup.experts,
        cluster=setup.cluster,
        profile=setup.profile(),
        costs=setup.costs,
        scheduler=setup.scheduler,
        backend=setup.backend(world),
    )
    makespan, idle = makespan_s(result.sessions), gpu_idle_frac(result)
    assert makespan is not None
    assert idle is not None
    return Wall(
        makespan_s=makespan,
        worker_s=busy_s_by_worker(result.sessions, result.num_workers),
        idle_frac=idle,
        output_tokens_mean=float(np.mean([call.output_tokens for call in result.calls])),
    )


def simulate_point(
    workload: str, scheduler: str, seed: int, parameters: Mapping[str, Any] | None, scale: float
) -> Wall:
    """Simulate one seed of a benchmark, with other parameters than the committed ones where they are given."""
    setup = setup_from(compose_config([f"workload={workload}", f"scheduler={scheduler}", f"seed={seed}"]))
    if parameters is not None:
        chosen = ParameterSet(**parameters)
        hardware = replace(setup.hardware, cpu_overhead_scale=chosen.cpu_overhead_scale)
        setup = replace(setup, hardware=hardware, lengths=chosen.lengths(setup.experts, scale))
    return simulate(setup)


def simulate_all(points: Sequence[tuple[str, str, int, Mapping[str, Any] | None, float]], label: str) -> list[Wall]:
    """Simulate points on all cores, in order."""
    walls = Parallel(n_jobs=-1, return_as="generator")(delayed(simulate_point)(*point) for point in points)
    return list(tqdm(walls, total=len(points), desc=label, disable=not sys.stderr.isatty()))


def mean_interval(values: Sequence[float]) -> tuple[float, float, float, float]:
    """Mean, half widths of the 95% intervals of the mean and of one further value, and the standard deviation."""
    n, spread = len(values), float(np.std(values, ddof=1))
    quantile = float(student_t.ppf(0.975, n - 1))
    return float(np.mean(values)), quantile * spread / n**0.5, quantile * spread * (1 + 1 / n) ** 0.5, spread


def report_mmlu_pro(num_fit_seeds: int, num_seeds: int) -> tuple[list[str], dict[str, Any]]:
    """Round robin, which is the fit, and the ILP, which is predicted."""
    rr = simulate_all([("mmlu_pro", "round_robin", seed, None, 1.0) for seed in range(num_fit_seeds)], "round robin")
    ilp = simulate_all([("mmlu_pro", "ilp", seed, None, 1.0) for seed in range(num_seeds)], "ilp")
    workers = np.mean([wall.worker_s for wall in rr], axis=0)
    idle = float(np.mean([wall.idle_frac for wall in rr]))
    lines = [
        f"MMLU-Pro, round robin, mean of {num_fit_seeds} seeds (FITTED)",
        "                published    simulated    error",
    ]
    for index, (published, busy) in enumerate(zip(ROUND_ROBIN_WORKER_S, workers, strict=True)):
        lines.append(f"  worker {index}    {published:9,.0f} s  {busy:9,.1f} s  {busy / published - 1:+7.1%}")
    points = 100 * (idle - ROUND_ROBIN_IDLE_FRAC)
    lines.append(f"  idle        {ROUND_ROBIN_IDLE_FRAC:9.0%}    {idle:9.1%}    {points:+5.1f} points")
    mean, half, predictive, spread = mean_interval([wall.makespan_s for wall in ilp])
    published = PREDICTED_ILP["mmlu_pro"]
    rr_mean = float(np.mean([wall.makespan_s for wall in rr]))
    paired = [a.makespan_s / b.makespan_s for a, b in zip(rr, ilp, strict=False)]
    speedup, speedup_half, _, _ = mean_interval(paired)
    lines += [
        "",
        f"MMLU-Pro, ILP, {num_seeds} seeds (PREDICTED: nothing is fitted to it)",
        f"  published mean of {len(published.runs_s)} walls {published.mean_s:,.0f} s; simulated {mean:,.1f} s "
        f"+- {half:,.1f} (95%), error {mean / published.mean_s - 1:+.1%}",
        f"  one wall: 95% predictive interval {mean - predictive:,.0f} to {mean + predictive:,.0f} s "
        f"(sd {spread / mean:.1%}); published walls {_walls(published.runs_s)} s",
        f"  speedup over round robin {speedup:.2f} +- {speedup_half:.2f} (95%, {len(paired)} pairs); "
        f"published {published.speedup:.2f}",
    ]
    data = {
        "round_robin_worker_s": workers.tolist(),
        "round_robin_idle_frac": idle,
        "round_robin_makespan_s": rr_mean,
        "ilp_makespan_s": mean,
        "ilp_mean_half_width_s": half,
        "ilp_predictive_half_width_s": predictive,
        "ilp_runs": [asdict(wall) for wall in ilp],
    }
    return lines, data


def report_benchmark(
    workload: str, sets: Sequence[Mapping[str, Any]], num_seeds: int, num_set_seeds: int
) -> tuple[list[str], dict[str, Any]]:
    """The ILP over every parameter set (and order) that matches the benchmark's round-robin wall.

    The committed set is simulated on many seeds. The others are simulated on the first few of them and stand by their
    ratio to the committed set on the same seeds, so that the luck of a few heavy-tailed worlds does not count.
    """
    rr, ilp = (
        simulate_all([(workload, scheduler, seed, None, 1.0) for seed in range(num_seeds)], f"{workload} {scheduler}")
        for scheduler in ("round_robin", "ilp")
    )
    published, fitted_s = PREDICTED_ILP[workload], ROUND_ROBIN_WALL_S[workload]
    rr_mean, rr_half, _, _ = mean_interval([wall.makespan_s for wall in rr])
    mean, half, predictive, _ = mean_interval([wall.makespan_s for wall in ilp])
    speedup, speedup_half, _, _ = mean_interval([a.makespan_s / b.makespan_s for a, b in zip(rr, ilp, strict=True)])
    ratios, scales = ensemble_ratios(workload, sets, num_set_seeds)
    low, high = mean * min(ratios), mean * max(ratios)
    lines = [
        f"{workload}, round robin, mean of {num_seeds} seeds (FITTED: one length scale, to this wall)",
        f"  published {fitted_s:,.1f} s; simulated {rr_mean:,.1f} s +- {rr_half:,.1f} (95%), "
        f"error {rr_mean / fitted_s - 1:+.1%}; length scale {scales[0]:.3f}",
        f"{workload}, ILP, {num_seeds} seeds; {len(sets)} parameter sets, {len(ratios)} with the ends of their scales "
        f"(PREDICTED)",
        f"  best fit {mean:,.0f} s +- {half:,.0f} (95%), error {mean / published.mean_s - 1:+.1%} of the mean; "
        f"one wall {mean - predictive:,.0f} to {mean + predictive:,.0f} s",
        f"  range over the sets {low:,.0f} to {high:,.0f} s (scales {min(scales):.3f} to {max(scales):.3f}); "
        f"published walls {_walls(published.runs_s)} s",
        _verdict(low, high, published.runs_s),
        f"  speedup over round robin {speedup:.2f} +- {speedup_half:.2f} (95%, {len(rr)} pairs); "
        f"published {published.speedup:.2f}",
    ]
    data = {
        "round_robin_makespan_s": rr_mean,
        "ilp_makespan_s": mean,
        "ilp_mean_half_width_s": half,
        "ilp_predictive_half_width_s": predictive,
        "ilp_range_s": [low, high],
        "ratios": ratios,
        "scales": scales,
        "speedup": speedup,
    }
    return lines, data


def ensemble_ratios(
    workload: str, sets: Sequence[Mapping[str, Any]], num_seeds: int
) -> tuple[list[float], list[float]]:
    """Makespans of the ILP under every parameter set, over that of the first set on the same seeds, and the scales."""
    points = []
    for row in sets:
        scales = row[f"{workload}_scales"]
        parameters = {key: value for key, value in row.items() if not key.endswith("_scales")}
        # NOTE: the makespan grows with the scale, so the ends of a set's scales are the ends of its predictions.
        points += [(parameters, scale) for scale in dict.fromkeys((scales[0], min(scales), max(scales)))]
    runs = [(workload, "ilp", seed, parameters, scale) for parameters, scale in points for seed in range(num_seeds)]
    walls = simulate_all(runs, f"{workload} sets")
    means = np.array([wall.makespan_s for wall in walls]).reshape(len(points), num_seeds).mean(axis=1)
    return (means / means[0]).tolist(), [scale for _, scale in points]


def _walls(walls_s: Sequence[float]) -> str:
    return ", ".join(f"{wall_s:,.0f}" for wall_s in walls_s)


def _verdict(low: float, high: float, walls: Sequence[float]) -> str:
    """Say how far the range is from the published walls outside of it: by its nearest end, at the worst of them."""
    errors = [min(max(wall, low), high) / wall - 1 for wall in walls]
    num_outside = sum(error != 0 for error in errors)
    if num_outside == 0:
        return "  every published wall is inside the range"
    worst = max(errors, key=abs)
    return f"  MISS: {num_outside} of {len(walls)} published walls are outside the range, by up to {worst:+.1%}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="walls", description="Compare simulated with published expert-stage walls.")
    parser.add_argument("--fit-seeds", type=int, default=32, help="seeds of round robin")
    parser.add_argument("--seeds", type=int, default=50, help="seeds of the ILP on MMLU-Pro")
    parser.add_argument("--benchmark-seeds", type=int, default=96, help="seeds of MedMCQA and GPQA")
    parser.add_argument("--set-seeds", type=int, default=4, help="of them, seeds of each other parameter set")
    parser.add_argument("--sets", type=Path, default=FOLDER / "parameter_sets.json")
    parser.add_argument("--out", type=Path, default=FOLDER)
    options = parser.parse_args()
    sets = json.loads(options.sets.read_text(encoding="utf-8"))
    lines, data = report_mmlu_pro(options.fit_seeds, options.seeds)
    report: dict[str, Any] = {"mmlu_pro": data}
    for workload in ("medmcqa", "gpqa"):
        more, report[workload] = report_benchmark(workload, sets, options.benchmark_seeds, options.set_seeds)
        lines += ["", *more]
    text = "\n".join(lines) + "\n"
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "walls.txt").write_text(text, encoding="utf-8")
    (options.out / "walls.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(text)
    print(f"written: {options.out / 'walls.txt'}, walls.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
