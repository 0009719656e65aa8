"""Show that the calibrated gate keeps its promise, what it earns, and what the published thresholds would have needed.

    python experiments/gates.py                            into results/multirun/gates
    python experiments/gates.py --out results/calibration  makes the committed files anew

Calibration sets are drawn with replacement from large populations of simulated questions, so that the loss of every
threshold is known exactly. Writes gates.txt, gates.json, gates.png and gates.pdf; takes 3 minutes on
2 cores.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from textwrap import wrap
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # experiments is not an installed package

import numpy as np  # noqa: E402
from joblib import Parallel, delayed  # noqa: E402

from experiments.figures.gates import Line, Panel, draw_gates  # noqa: E402
from experiments.studies.gate_populations import ADVERSARIAL_WORKLOAD  # noqa: E402
from experiments.studies.gate_trials import FIT_FRAC, MAX_CERTIFY, NUM_PER_GROUP, RISK_FRAC, Trials, broken_limit  # noqa: E402
from experiments.studies.gate_worlds import (  # noqa: E402
    ACCEPTED_FRACS,
    NUMS_QUESTIONS,
    PUBLISHED_TAUS,
    WORKLOADS,
    PublishedThreshold,
    Sizes,
    World,
    buckets,
    describe_published,
    simulate_worlds,
)
from mosaic.config.places import own_folder  # noqa: E402
from mosaic.figures.style import pdf_bytes, png_bytes  # noqa: E402
from mosaic.pipelines.gates.gate import plurality  # noqa: E402

COMMAND = "python experiments/gates.py"
LINE_CHARS = 118
LEAST_SKIP_FRAC, AT_ACCEPTED_FRAC = 0.3, 0.02
"""What is asked of the gate on MMLU-Pro with the most questions."""


def head_lines(sizes: Sizes) -> list[str]:
    """Say what the report is made of."""
    num, limit = sizes.num_calibrations, broken_limit(sizes.num_calibrations)
    text = (
        f"The calibrated gate on simulated populations of {sizes.population}. A threshold's loss is its mean over the "
        "population, known exactly. Calibration sets are drawn from it with replacement; the gate's own split keeps "
        f"about {FIT_FRAC:.0%} of each for fitting, and only the others certify. A promise is broken where the loss of "
        f"the chosen threshold is above the accepted one: at {1 - RISK_FRAC:.0%} confidence at most {limit} times in "
        f"{num:,} calibrations (the 99% limit of the binomial). Skip shares are of the population: mean (10% to 90% of "
        "the calibrations). They are FITTED, as the agreement of the experts is. With weighted confidence "
        f"{NUM_PER_GROUP} calibrations share one fit part."
    )
    return [COMMAND, "", *wrap(text, LINE_CHARS)]


def adversarial_lines() -> list[str]:
    """Say how the adversarial world is made."""
    text = (
        f"Agreement says nothing here. Questions, pool and slots are those of {ADVERSARIAL_WORKLOAD}. All experts are "
        "alike, and the utility of the right option has the distribution of every wrong one's: they agree by "
        "attraction, and what they agree on is right as often as any other of the four options. The aggregator is "
        "right on the same share of all questions, whatever it reads. Four worlds, one for each accepted loss: in each "
        "tau = 1 loses one question more than is accepted. (Weighted confidence has finer thresholds: it may skip "
        "fewer questions than tau = 1, lose less than is accepted, and keep the promise.)"
    )
    return wrap(text, LINE_CHARS)


def bucket_lines(world: World) -> list[str]:
    """Describe agreement and losses."""
    lines = adversarial_lines() if world.name == "adversarial" else []
    for accepted, population in zip(ACCEPTED_FRACS, world.populations, strict=False):
        if world.name == "adversarial":
            lines.append(f"  where {100 * accepted:g} pp are accepted")
        lines.append("  plurality  questions  its answer right  aggregator right  skipped from here on  loss")
        for row in buckets(population):
            lines.append(
                f"  {_tau(row.threshold):>9}  {row.share_frac:9.2%}  {row.plurality_right_frac:16.2%}  "
                f"{row.aggregator_right_frac:16.2%}  {row.skip_frac:20.2%}  {100 * row.loss_frac:+.3f} pp"
            )
    return lines


def trial_lines(world: World) -> list[str]:
    """Broken promises, and what was earned."""
    lines = []
    for kind, trials in world.trials.items():
        lines += [
            f"  confidence = {kind}",
            f"  accepted  questions  certify  broken (limit)  {f'skipped, {_source(world)}':<26}  nothing skipped",
        ]
        for of in sorted(trials, key=lambda one: (one.accepted_loss_frac, one.num_questions)):
            low, high = np.quantile(of.skip_fracs, (0.1, 0.9))
            skipped = f"{of.skip_frac:6.1%} ({low:.1%} to {high:.1%})"
            lines.append(
                f"  {100 * of.accepted_loss_frac:5.1f} pp  {of.num_questions:9,}  {of.num_certify:7,}  "
                f"{of.num_broken:6,} ({of.max_broken:,})".ljust(48)
                + f"  {skipped:<26}  {of.refused_frac:15.1%}"
                + ("" if of.num_broken <= of.max_broken else "  MISS")
            )
    return lines


def published_lines(rows: Sequence[PublishedThreshold], sizes: Sizes) -> list[str]:
    """Promises of the published thresholds."""
    lines = [f"  published thresholds, smallest promise: median (10% to 90%) of {sizes.num_promises} calibrations"]
    for row in rows:
        lines.append(
            f"  tau = {_tau(row.tau)}: skips {row.skip_frac:.1%} (FITTED), loses {100 * row.loss_frac:+.2f} pp"
        )
        for number, (low, middle, high) in row.promises.items():
            pp = f"{100 * middle:.2f} pp ({100 * low:.2f} to {100 * high:.2f})"
            lines.append(f"    {number:7,} calibration questions promise {pp}")
        for accepted, needed in row.needed.items():
            lines.append(
                f"    {100 * accepted:g} pp is promised by half of the calibrations {_needed(row, accepted, needed)}"
            )
    return lines


def _needed(row: PublishedThreshold, accepted: float, needed: int | None) -> str:
    if needed is not None:
        return f"from about {needed:,} questions"
    if row.loss_frac >= accepted:
        return "never: the loss is not below it"
    return f"not with {round(MAX_CERTIFY / (1 - FIT_FRAC)):,} questions or fewer"


def _source(world: World) -> str:
    """Where the agreement of the experts, and so the share of skipped questions, comes from."""
    return "constructed" if world.name == "adversarial" else "FITTED"


def _tau(threshold: float) -> str:
    return str(Fraction(threshold).limit_denominator(100))


def verdict_lines(worlds: Sequence[World]) -> list[str]:
    """What is asked of the gate, and whether it holds."""
    every = [(of, world) for world in worlds for trials in world.trials.values() for of in trials]
    worst = max(of.num_broken for of, _ in every)
    misses = sum(of.num_broken > of.max_broken for of, _ in every)
    kept = f"MISS: {misses} are above" if misses else "all within"
    (earned,) = (
        of
        for of, world in every
        if of in world.trials["plurality"]
        and (world.name, of.num_questions, of.accepted_loss_frac)
        == (WORKLOADS[0], NUMS_QUESTIONS[-1], AT_ACCEPTED_FRAC)
    )
    enough = "" if earned.skip_frac >= LEAST_SKIP_FRAC else "MISS: "
    return [
        f"Promises: {len(every)} lines of {every[0][0].num_calibrations:,} calibrations, {kept} the limit of "
        f"{every[0][0].max_broken}; most broken in a line: {worst}",
        f"Earned: {enough}{earned.skip_frac:.1%} skipped (FITTED) on MMLU-Pro at {100 * AT_ACCEPTED_FRAC:g} pp with "
        f"{earned.num_questions:,} calibration questions; at least {LEAST_SKIP_FRAC:.0%} is asked for",
    ]


def panels(worlds: Sequence[World]) -> list[Panel]:
    """What the figure shows."""
    made = []
    for world in worlds:
        lines = [
            Line(
                num_questions=number,
                confidence=kind,
                accepted_pp=tuple(100 * of.accepted_loss_frac for of in trials if of.num_questions == number),
                skip_frac=tuple(of.skip_frac for of in trials if of.num_questions == number),
            )
            for kind, trials in world.trials.items()
            for number in NUMS_QUESTIONS
        ]
        scored = world.populations[0].score(plurality)
        levels = {f"$\\tau$={_tau(tau)}": scored.skip_frac(tau) for tau in PUBLISHED_TAUS}
        made.append(Panel(name=f"{world.name} ({_source(world).lower()})", lines=tuple(lines), levels=levels))
    return made


def _data(trials: Trials) -> dict[str, Any]:
    names = ("accepted_loss_frac", "num_questions", "num_certify", "num_calibrations", "num_broken", "max_broken")
    low, high = np.quantile(trials.skip_fracs, (0.1, 0.9)).tolist()
    return {
        **{name: getattr(trials, name) for name in names},
        "skip_frac": trials.skip_frac,
        "skip_frac_10_90": [low, high],
        "refused_frac": trials.refused_frac,
    }


def make_report(sizes: Sizes) -> dict[str, bytes]:
    """Simulate everything; the report's files by name."""
    worlds = simulate_worlds(sizes)
    benchmarks = {world.name: world.populations[0] for world in worlds if world.name in WORKLOADS}
    described = Parallel(n_jobs=-1)(delayed(describe_published)(one, sizes) for one in benchmarks.values())
    published: dict[str, list[PublishedThreshold]] = dict(zip(benchmarks, described, strict=True))
    lines = [*head_lines(sizes), "", *verdict_lines(worlds)]
    data: dict[str, Any] = {"command": COMMAND, "sizes": asdict(sizes), "risk_frac": RISK_FRAC, "worlds": {}}
    for world in worlds:
        rows = published.get(world.name, [])
        lines += ["", f"== {world.name}", *bucket_lines(world), *trial_lines(world)]
        lines += published_lines(rows, sizes) if rows else []
        data["worlds"][world.name] = {
            "skip_frac_source": "fitted",
            "buckets": [[asdict(row) for row in buckets(population)] for population in world.populations],
            "calibrations": {kind: [_data(of) for of in trials] for kind, trials in world.trials.items()},
            "published": [asdict(row) for row in rows],
        }
    figure = draw_gates(panels(worlds))
    return {
        "gates.txt": ("\n".join(lines) + "\n").encode("ascii"),
        "gates.json": (json.dumps(data, indent=1) + "\n").encode("ascii"),
        "gates.png": png_bytes(figure),
        "gates.pdf": pdf_bytes(figure),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="gates", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=len(Sizes().seeds), help="worlds that make up each population")
    parser.add_argument("--questions", type=int, default=Sizes().num_questions_per_seed, help="of each seed")
    parser.add_argument("--calibrations", type=int, default=Sizes().num_calibrations, help="of each line of the report")
    parser.add_argument("--out", type=Path, default=own_folder("gates"), help="folder (default: %(default)s)")
    options = parser.parse_args()
    sizes = Sizes(
        seeds=tuple(range(options.seeds)),
        num_questions_per_seed=options.questions,
        num_calibrations=options.calibrations,
    )
    files = make_report(sizes)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (options.out / name).write_bytes(content)
    print(files["gates.txt"].decode("ascii"))
    print(f"written: {options.out / 'gates.txt'}, gates.json, gates.png, gates.pdf")
    return 0


if __name__ == "__main__":
    sys.exit(main())
