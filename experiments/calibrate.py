"""Fit the simulator to round robin, and simulate what the fits leave open.

    python experiments/calibrate.py                             fits and walls, into results/multirun/calibrate
    python experiments/calibrate.py --out results/calibration   makes the committed files anew
    python experiments/calibrate.py --sets FILE                 fits nothing: the walls of an earlier fit's sets

MMLU-Pro's round-robin workers give the host's time per KV token, the spread of the reasoning experts' lengths and the
means of Qwen and Exaone; GLM's follows from the published mean over all calls. MedMCQA and GPQA get one length scale
each, and every aggregator one mean. What nothing published tells is assumed, and varied: the reasoning experts' output
cap, the streams of the GPU's attention, the spread of the light experts' lengths and, on MedMCQA, the order of the
experts. Every variant is fitted anew to the same baseline: walls.json holds the range of the ILP's walls and of the
aggregator's over all of them, which the reproduction sets beside the published walls (experiments/paper.py). Nothing
here reads a number that must be predicted. The committed values (conf/) are the first set. Takes about 10 minutes on 2
cores.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # experiments is not an installed package

from experiments.studies.fitted_set import FittedSet, fit_set, mean_walls, predict  # noqa: E402
from experiments.studies.paper_runs import BENCHMARKS, TWO_STAGES  # noqa: E402
from experiments.studies.parameters import ParameterSet  # noqa: E402
from experiments.studies.published import PUBLISHED_MEANS  # noqa: E402
from mosaic.config.places import own_folder  # noqa: E402

SETS = "parameter_sets.json"
COMMITTED = ParameterSet(
    name="committed",
    engine={"attention_streams": 86.0, "cpu_per_kv_token_s": 9.8e-9},
    output_cap=32_768,
    reasoning_sigma=1.045,
    light_sigma=0.8,
    mean_by_expert={**PUBLISHED_MEANS, "Exaone": 727.0, "GLM": 468.0, "Qwen": 510.0},
)
"""Where the fit begins; cap, streams and the light experts' spread are assumed."""
CAPS = (16_384, 20_480, 24_576)
STREAMS = (63.0, 108.0)
"""The ends of what is derived for an A100 (experiments/hardware/skew_fit.py)."""
LIGHT_SIGMAS = (0.6, 1.0)
NUM_FIT_SEEDS, NUM_SET_FIT_SEEDS = 32, 6
NUM_SEEDS, NUM_SET_SEEDS = 24, 4
"""Simulated with the committed set, and with each other one."""


def variants(first: ParameterSet) -> list[ParameterSet]:
    """List what else may be assumed, to be fitted anew; the committed streams and cap are in the first set."""
    caps, every = (first.output_cap, *CAPS), (first.engine["attention_streams"], *STREAMS)
    grid = [(cap, streams) for cap in caps for streams in every]
    sets = [
        replace(first.with_engine(attention_streams=streams), name=f"cap {cap:,}, {streams:g} streams", output_cap=cap)
        for cap, streams in grid[1:]
    ]
    return [*sets, *(replace(first, name=f"light sigma {sigma:g}", light_sigma=sigma) for sigma in LIGHT_SIGMAS)]


def fit_all() -> list[FittedSet]:
    """Fit the committed set, then every variant from there on."""
    first = fit_set(COMMITTED, num_seeds=NUM_FIT_SEEDS)
    print(describe(first), flush=True)
    starts = variants(first.parameters)
    jobs = (delayed(fit_set)(start, num_seeds=NUM_SET_FIT_SEEDS) for start in starts)
    done = Parallel(n_jobs=-1, return_as="generator")(jobs)
    sets = list(tqdm(done, "sets", len(starts), disable=not sys.stderr.isatty()))
    for each in sets:
        print(describe(each), flush=True)
    return [first, *sets]


def describe(fitted: FittedSet) -> str:
    """Say what was found, in a line."""
    parameters, every = fitted.parameters, fitted.scales.items()
    means = ", ".join(f"{name} {mean:g}" for name, mean in parameters.mean_by_expert.items())
    scales = ", ".join(f"{name} {found[0]:g} ({min(found):g} to {max(found):g})" for name, found in every)
    merged = ", ".join(f"{name} {mean:g}" for name, mean in fitted.merged_means.items())
    host = 1e9 * (parameters.engine.get("cpu_per_kv_token_s") or 0.0)
    return (
        f"{parameters.name}: {host:.2f} ns a KV token, sigma {parameters.reasoning_sigma:g}; means {means}; "
        f"scales {scales}; aggregators {merged}"
    )


def simulate(
    sets: Sequence[FittedSet], workload: str, num_seeds: int = NUM_SEEDS, num_set_seeds: int = NUM_SET_SEEDS
) -> dict[str, Any]:
    """Simulate the ILP with the gate at 2/3 under every set.

    The committed set is simulated with much luck. The others meet the first of it and stand by their ratio to the first
    set under the same, so that a few heavy tails do not count.
    """
    points = [(each, scale) for each in sets for scale in each.ends(workload)]
    policy = TWO_STAGES["ilp"]
    jobs = [delayed(predict)(workload, policy, seed, sets[0]) for seed in range(num_seeds)]
    jobs += [delayed(predict)(workload, policy, seed, *point) for point in points for seed in range(num_set_seeds)]
    done = Parallel(n_jobs=-1, return_as="generator")(jobs)
    walls = list(tqdm(done, f"{workload} sets", len(jobs), disable=not sys.stderr.isatty()))
    first = mean_walls(walls[:num_seeds])
    rest = [mean_walls(walls[start : start + num_set_seeds]) for start in range(num_seeds, len(walls), num_set_seeds)]
    found: dict[str, Any] = {
        "num_seeds": num_seeds,
        "sets": [each.parameters.name for each, _ in points],
        "scales": [scale for _, scale in points],
    }
    for name in ("expert_s", "aggregator_s"):
        mean = getattr(first, name)
        ratios = [getattr(each, name) / getattr(rest[0], name) for each in rest]
        found[name] = {"mean": mean, "range": [mean * min(ratios), mean * max(ratios)], "ratios": ratios}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="calibrate", description="Fit the simulator to the round-robin baseline.")
    parser.add_argument("--sets", type=Path, help=f"{SETS} of an earlier fit: fit nothing, simulate what is left open")
    parser.add_argument("--out", type=Path, default=own_folder("calibrate"), help="folder (default: %(default)s)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.sets is None:
        sets = fit_all()
        (options.out / SETS).write_text(
            json.dumps([each.to_json() for each in sets], indent=1) + "\n", encoding="utf-8"
        )
        print(f"written: {options.out / SETS}", flush=True)
    else:
        sets = [FittedSet.from_json(row) for row in json.loads(options.sets.read_text(encoding="utf-8"))]
    walls = {}
    for workload in BENCHMARKS:
        walls[workload] = found = simulate(sets, workload)
        for name, what in (("expert_s", "the ILP"), ("aggregator_s", "the aggregator at tau = 2/3")):
            (low, high), mean = found[name]["range"], found[name]["mean"]
            print(f"{workload}: {what} takes {mean:,.0f} s, {low:,.0f} to {high:,.0f} s over {len(sets)} sets")
    (options.out / "walls.json").write_text(json.dumps(walls, indent=1) + "\n", encoding="utf-8")
    print(f"written: {options.out / 'walls.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
