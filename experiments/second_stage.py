"""Put the simulated second stage beside the published one: what was fitted, then what is predicted, misses included.

    python experiments/second_stage.py

Reads results/calibration/answers.json (experiments/fit_answers.py) and walls.json (experiments/walls.py), writes
results/calibration/second_stage.txt and second_stage.json. Takes about 4 minutes on 2 cores.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # experiments is not an installed package

import numpy as np  # noqa: E402
from experiments.config.simulated_execution import even_plan  # noqa: E402
from experiments.config.wiring import compose_config, setup_from  # noqa: E402
from joblib import Parallel, delayed  # noqa: E402
from tqdm import tqdm  # noqa: E402

from experiments.analysis.pairing import t_interval  # noqa: E402
from experiments.studies.published import (  # noqa: E402
    ACCURACY_CHANGE_PP,
    ALWAYS_AGGREGATE_S,
    BUCKET_SPEARMAN,
    BUCKET_TOKENS,
    END_TO_END_SPEEDUP,
    FITTED_ANSWERS,
    GATED_AGGREGATE_S,
)
from experiments.studies.stage_samples import CALIBRATION, StageSample, sample_stage  # noqa: E402
from mosaic.core.realization import Outcome  # noqa: E402
from mosaic.core.workload import Call, CallKey  # noqa: E402
from mosaic.report.metrics import makespan_s  # noqa: E402
from sim.cluster.backend import SimBackend  # noqa: E402

WORKLOADS = ("mmlu_pro", "medmcqa", "gpqa")
Z95 = 1.959964


def mean_of(values: Sequence[float]) -> float:
    return float(np.mean(values))


def interval_text(values: Sequence[float], form: str) -> str:
    """Mean and 95% interval."""
    low, high = t_interval(values)
    assert low is not None
    assert high is not None
    return f"{mean_of(values):{form}} ({low:{form}} to {high:{form}})"


def describe_skips(workload: str, samples: Sequence[StageSample], num_questions: int) -> list[str]:
    """Skip shares: fitted buckets."""
    target = FITTED_ANSWERS[workload]
    lines = [f"Skipped questions (FITTED: the agreement of the experts is), {len(samples)} seeds"]
    for place, (tau, published) in enumerate((("1", target.unanimous_frac), ("2/3", 1 - target.distinct_frac))):
        mean = mean_of([sample.skip_frac[place] for sample in samples])
        error = (published * (1 - published) / num_questions) ** 0.5
        lines.append(
            f"  tau = {tau:<4} published {published:6.2%}  simulated {mean:6.2%}  "
            f"{100 * (mean - published):+5.2f} points  "
            f"(standard error of one run of {num_questions:,} questions {100 * error:.2f})"
        )
    return lines


def describe_buckets(samples: Sequence[StageSample]) -> list[str]:
    """Tokens by agreement, MMLU-Pro."""
    lines = ["Mean output tokens of a question's calls by agreement (FITTED: one loading to three numbers)"]
    for place, (name, published) in enumerate(zip(("3:0", "2:1", "1:1:1"), BUCKET_TOKENS, strict=True)):
        mean = mean_of([sample.bucket_tokens[place] for sample in samples])
        lines.append(f"  {name:<6} published {published:7,.0f}  simulated {mean:7,.0f}  {mean / published - 1:+6.1%}")
    spearman = mean_of([sample.spearman for sample in samples])
    lines.append(
        f"  rank correlation with agreement: published {BUCKET_SPEARMAN:.2f}, simulated {spearman:.2f} (predicted)"
    )
    return lines


def describe_accuracy(workload: str, samples: Sequence[StageSample], num_questions: int) -> list[str]:
    """Accuracy changes beside the interval that a paired difference has at the benchmark's size."""
    always = mean_of([sample.always_accuracy_frac for sample in samples])
    fitted = FITTED_ANSWERS[workload].always_accuracy_frac
    except_for = ", but for tau = 1, which follows from the fit" if workload == "mmlu_pro" else ""
    lines = [
        f"Accuracy when every question is aggregated (FITTED): published {fitted:.2%}, simulated {always:.2%}",
        f"Accuracy change (PREDICTED{except_for})",
    ]
    for place, tau in enumerate(("1", "2/3")):
        change = mean_of([sample.change_pp[place] for sample in samples])
        half = Z95 * mean_of([sample.change_std_pp[place] for sample in samples]) / num_questions**0.5
        published = ACCURACY_CHANGE_PP[workload][place]
        inside = "inside" if abs(published - change) <= half else "MISS: outside"
        telling = "" if half < 2 else "; so wide that it tells nothing"
        lines.append(
            f"  tau = {tau:<4} published {published:+.2f} pp  simulated {change:+.2f} pp; 95% interval of a paired "
            f"difference over {num_questions:,} questions {change - half:+.2f} to {change + half:+.2f}: "
            f"{inside}{telling}"
        )
    rows = read_fits()["accuracy_change_pp"][workload]
    listed = ", ".join(f"x{factor} {row[1]:+.2f}" for factor, row in rows.items())
    return [
        *lines,
        f"  expected at tau = 2/3 with the experts' assumed abilities multiplied, all refitted (pp): {listed}",
    ]


def read_fits() -> dict[str, Any]:
    """What experiments/fit_answers.py wrote."""
    fits: dict[str, Any] = json.loads((CALIBRATION / "answers.json").read_text(encoding="utf-8"))
    return fits


def describe_walls(workload: str, samples: Sequence[StageSample]) -> list[str]:
    """Walls of the aggregator, and what its tail is made of."""
    always, gated = ALWAYS_AGGREGATE_S[workload], GATED_AGGREGATE_S[workload]
    means = {
        "every question aggregated (FITTED: mean length)": (always, [sample.always_s["tp4"] for sample in samples]),
        "tau = 2/3, no further parameter (PREDICTED)": (gated, [sample.plain_gated_s for sample in samples]),
        f"tau = 2/3, one elasticity ({'FITTED' if workload == 'mmlu_pro' else 'PREDICTED: fitted on MMLU-Pro'})": (
            gated,
            [sample.gated_s["tp4"] for sample in samples],
        ),
    }
    lines = [f"Aggregator stage, tensor parallel 4, mean of {len(samples)} seeds (95% interval)"]
    for name, (published, values) in means.items():
        error = mean_of(values) / published - 1
        lines.append(
            f"  {name}: published {published:,.1f} s, simulated {interval_text(values, ',.1f')} s, {error:+.1%}"
        )
    if workload != "mmlu_pro":
        plain, elastic = (
            abs(mean_of(values) / gated - 1)
            for values in ([s.plain_gated_s for s in samples], [s.gated_s["tp4"] for s in samples])
        )
        verdict = "helps" if elastic < plain else "makes it worse"
        lines.append(
            f"  the elasticity carried over {verdict}: {elastic:.1%} from the published wall, without it {plain:.1%}"
        )
    tail = mean_of([sample.tail_frac for sample in samples])
    longest = mean_of([sample.longest_tokens for sample in samples])
    num_calls = mean_of([sample.num_gated_calls for sample in samples])
    alone_s, limit = longest_alone_s(workload)
    lines += [
        f"  tail at tau = 2/3: {num_calls:,.0f} calls; for {tail:.0%} of the stage only the last 5% of them run; the "
        f"longest writes {longest:,.0f} tokens",
        f"  one generation to the limit of {limit:,} tokens, alone: {alone_s:,.1f} s with its load, "
        f"{alone_s / mean_of([sample.gated_s['tp4'] for sample in samples]):.0%} of the stage at tau = 2/3",
    ]
    return lines


def longest_alone_s(workload: str) -> tuple[float, int]:
    """Time one generation up to the output limit, alone on four GPUs, its load included."""
    setup = setup_from(compose_config([f"workload={workload}"]))
    assert setup.stage is not None
    expert = setup.stage.aggregator.shaped(4)
    call = Call(CallKey("longest", AGGREGATE, 0), expert.name, 1500)
    limit = expert.output_limit(call.prompt_tokens)
    backend: SimBackend = setup.backend(setup.world(), (expert,))
    result = SimBackend(
        experts=(expert,),
        cluster=backend.cluster,
        hardware=backend.hardware,
        settings=backend.settings,
        outcomes=lambda _: Outcome(limit),
    ).execute(even_plan((call,), expert, setup.cluster.num_workers), (call,))
    alone_s = makespan_s(result.sessions)
    assert alone_s is not None
    return alone_s, limit


def describe_end_to_end(workload: str, samples: Sequence[StageSample], walls: dict[str, Any]) -> list[str]:
    """ILP and majority over round robin and never, with what round robin leaves open."""
    published = END_TO_END_SPEEDUP[workload]
    lines = ["End to end, ilp and tau = 2/3 over round_robin and never (round robin and never are FITTED)"]
    elastic = "FITTED here" if workload == "mmlu_pro" else "carried from MMLU-Pro"
    for name, gated_s in (
        (f"with the elasticity ({elastic}); ILP's wall PREDICTED", [sample.gated_s["tp4"] for sample in samples]),
        ("without it; both walls PREDICTED", [sample.plain_gated_s for sample in samples]),
    ):
        speedups = [
            (sample.round_robin_s + sample.always_s["tp4"]) / (sample.ilp_s + wall_s)
            for sample, wall_s in zip(samples, gated_s, strict=True)
        ]
        error = mean_of(speedups) / published - 1
        lines.append(f"  {name}: published {published:.2f}, simulated {interval_text(speedups, '.2f')}, {error:+.1%}")
    if workload == "mmlu_pro":
        return lines
    round_robin, ilp = (mean_of([getattr(sample, name) for sample in samples]) for name in ("round_robin_s", "ilp_s"))
    always, gated = (mean_of([getattr(sample, name)["tp4"] for sample in samples]) for name in ("always_s", "gated_s"))
    ranged = [(round_robin + always) / (ilp * ratio + gated) for ratio in walls[workload]["ratios"]]
    low, high = min(ranged), max(ranged)
    verdict = "inside" if low <= published <= high else f"MISS: {min(max(published, low), high) / published - 1:+.1%}"
    lines.append(
        f"  range over {len(ranged)} parameter sets and orders that match round robin's wall: {low:.2f} to {high:.2f}; "
        f"published {verdict}"
    )
    return lines


def describe_auto(samples: Sequence[StageSample]) -> list[str]:
    """Whether aggregator=auto finds the better of tp4 and dp4."""
    lines = [f"aggregator=auto, mean of {len(samples)} seeds (s)"]
    for gate, name in (("never", "always_s"), ("majority", "gated_s")):
        walls = {key: mean_of([getattr(sample, name)[key] for sample in samples]) for key in ("tp4", "dp4", "auto")}
        over = walls["auto"] / min(walls["tp4"], walls["dp4"]) - 1
        listed = ", ".join(f"{key} {wall:,.1f}" for key, wall in walls.items())
        lines.append(f"  gate={gate}: {listed}; auto is {over:+.1%} from the better one")
    return lines


def describe(workload: str, samples: Sequence[StageSample], num_seeds: int, walls: dict[str, Any]) -> list[str]:
    """All lines of a benchmark; shares and accuracies over the first seeds, walls over all."""
    num_questions = len(setup_from(compose_config([f"workload={workload}"])).workload.questions)
    first = samples[:num_seeds]
    return [
        f"== {workload}",
        *describe_skips(workload, first, num_questions),
        *(describe_buckets(first) if workload == "mmlu_pro" else []),
        *describe_accuracy(workload, first, num_questions),
        *describe_walls(workload, samples),
        *describe_end_to_end(workload, samples, walls),
        *describe_auto(first),
        "",
    ]


def simulate(points: Sequence[tuple[str, int]]) -> dict[str, list[dict[str, Any]]]:
    """Simulate workloads and seeds on all cores."""
    running = Parallel(n_jobs=-1, return_as="generator")(delayed(sample_stage)(*point) for point in points)
    done = tqdm(running, total=len(points), desc="seeds", disable=not sys.stderr.isatty())
    data: dict[str, list[dict[str, Any]]] = {workload: [] for workload in WORKLOADS}
    for (workload, _), sample in zip(points, done, strict=True):
        data[workload].append(asdict(sample))
    return data


def main() -> int:
    parser = argparse.ArgumentParser(prog="second_stage", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8, help="seeds of MMLU-Pro, and of all shares and accuracies")
    parser.add_argument("--wall-seeds", type=int, default=32, help="seeds of MedMCQA's and GPQA's walls")
    parser.add_argument("--samples", type=Path, help="second_stage.json of an earlier run: report it, simulate nothing")
    parser.add_argument("--out", type=Path, default=CALIBRATION)
    options = parser.parse_args()
    walls = json.loads((CALIBRATION / "walls.json").read_text(encoding="utf-8"))
    if options.samples is None:
        counts = {workload: options.seeds if workload == "mmlu_pro" else options.wall_seeds for workload in WORKLOADS}
        data = simulate([(workload, seed) for workload in WORKLOADS for seed in range(counts[workload])])
    else:
        data = json.loads(options.samples.read_text(encoding="utf-8"))
    lines = []
    for workload in WORKLOADS:
        samples = [StageSample(**sample) for sample in data[workload]]
        lines += describe(workload, samples, options.seeds, walls)
    text = "\n".join(lines)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "second_stage.txt").write_text(text, encoding="utf-8")
    (options.out / "second_stage.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    print(text)
    print(f"written: {options.out / 'second_stage.txt'}, second_stage.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
