"""Tests whether the calibrated gate keeps its promise, and measures its gain.

Calibration sets are drawn with replacement from large populations of simulated questions, so that the loss of every
threshold is known exactly.
"""

from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from experiments.lab.study import Point, Row, Study, Sweep, Tables
from experiments.lab.tables import lay_out, markdown, wide
from experiments.studies.gate_populations import BENCHMARKS, Population, draw_adversarial, draw_population
from experiments.studies.gate_trials import (
    FIT_FRAC,
    NUM_PER_GROUP,
    RISK_FRAC,
    broken_limit,
    simulate_calibrations,
)
from mosaic.comparison.estimate import Estimate
from mosaic.figures.means import Panel, draw
from mosaic.pipelines.rules.ballot import plurality
from mosaic.pipelines.rules.calibrated import ConfidenceKind

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_SEEDS, NUM_QUESTIONS = 6, 10_000
"""Simulated worlds that make up a population, and questions of each."""
NUM_CALIBRATIONS = 2_000
LIMIT = broken_limit(NUM_CALIBRATIONS)
"""Of broken promises."""
LEAST_SKIP_FRAC, AT_ACCEPTED_FRAC = 0.3, 0.02
"""The required share of skips on MMLU-Pro with the most questions."""

KINDS: tuple[ConfidenceKind, ...] = ("plurality", "weighted")
ACCEPTED_FRACS = (0.005, 0.01, 0.02, 0.05)
NUMS_QUESTIONS = (350, 2_000, 10_000)
NUM_SLOTS = 3
ADVERSARIAL = {f"adversarial, {100 * accepted:g} pp": accepted for accepted in ACCEPTED_FRACS}
"""One population for each accepted loss."""
POPULATIONS = (*BENCHMARKS, *ADVERSARIAL)
WORLDS = (*BENCHMARKS, "adversarial")
AGREEMENT = {
    "population": "{population}",
    "agree": "{num_votes} of 3",
    "questions": "{share_frac:.2%}",
    "their answer right": "{plurality_right_frac:.2%}",
    "aggregator right": "{aggregator_right_frac:.2%}",
    "skipped from here on": "{skip_frac:.2%}",
    "loss": "{loss_frac:+.3%}",
}
"""Columns of a table."""


@cache
def draw_world(world: str) -> dict[str, Population]:
    """Draw a world's populations; each process does so once."""
    seeds = range(NUM_SEEDS)
    if world in BENCHMARKS:
        return {world: draw_population(BENCHMARKS[world], seeds, NUM_QUESTIONS)}
    return dict(zip(ADVERSARIAL, draw_adversarial(ACCEPTED_FRACS, seeds, NUM_QUESTIONS), strict=True))


def world_of(name: str) -> str:
    """Tell the world of a population."""
    return name.partition(",")[0]


def population_of(name: str) -> Population:
    """Return a population."""
    return draw_world(world_of(name))[name]


def levels_of(name: str) -> Sequence[float]:
    """List the accepted losses of a population: an adversarial one is for one of them."""
    return [ADVERSARIAL[name]] if name in ADVERSARIAL else ACCEPTED_FRACS


@cache
def calibrate(name: str, confidence: ConfidenceKind, num_questions: int, seed: int) -> dict[float, Row]:
    """Calibrate the gate many times, for all accepted losses on the same draws."""
    population = population_of(name)
    return simulate_calibrations(population, levels_of(name), num_questions, NUM_CALIBRATIONS, confidence, seed)


def calibration_points() -> list[Point]:
    """List calibrations."""
    return [
        Point(labels={"population": name, "confidence": kind, "num_questions": number, "accepted_loss_frac": accepted})
        for name, kind, number in product(POPULATIONS, KINDS, NUMS_QUESTIONS)
        for accepted in levels_of(name)
    ]


def measure_calibrations(point: Point, seed: int) -> Row:
    """Count broken promises, and what is skipped."""
    labels: Any = point.labels
    found = calibrate(labels["population"], labels["confidence"], labels["num_questions"], seed)
    return found[labels["accepted_loss_frac"]]


def measure_agreement(point: Point, seed: int) -> Row:
    """Describe the questions on which so many experts agree, and what skipping from there on does."""
    labels: Any = point.labels
    population, threshold = population_of(labels["population"]), labels["num_votes"] / NUM_SLOTS
    scored = population.score(plurality)
    right = np.array([[kind.majority_correct, kind.aggregator_correct] for kind in population.kinds], dtype=float)
    counts = np.where(scored.scores == threshold, scored.counts, 0)
    plurality_frac, aggregator_frac = (counts @ right / counts.sum()).tolist()
    return {
        "share_frac": float(counts.sum() / scored.counts.sum()),
        "plurality_right_frac": plurality_frac,
        "aggregator_right_frac": aggregator_frac,
        "skip_frac": scored.skip_frac(threshold),
        "loss_frac": scored.loss_frac(threshold),
    }


SWEEPS = {
    "calibrations": Sweep(points=calibration_points(), measure=measure_calibrations),
    "agreement": Sweep(
        points=[
            Point(labels={"population": name, "num_votes": votes})
            for name in POPULATIONS
            for votes in range(NUM_SLOTS, 0, -1)
        ],
        measure=measure_agreement,
    ),
}


def verdicts(calibrations: pl.DataFrame) -> str:
    """State the requirement on the gate, and whether it holds."""
    misses = len(calibrations.filter(pl.col("num_broken") > LIMIT))
    kept = f"MISS: {misses} are above" if misses else "all within"
    earned = calibrations.filter(
        population="MMLU-Pro", confidence="plurality", num_questions=NUMS_QUESTIONS[-1],
        accepted_loss_frac=AT_ACCEPTED_FRAC,
    )["skip_frac"].item()  # fmt: skip
    enough = "" if earned >= LEAST_SKIP_FRAC else "MISS: "
    return (
        f"- Promises: {len(calibrations)} lines of {NUM_CALIBRATIONS:,} calibrations, {kept} the limit of {LIMIT}; "
        f"most broken in a line: {max(calibrations['num_broken'])}.\n"
        f"- Earned: {enough}{earned:.1%} skipped on MMLU-Pro at {100 * AT_ACCEPTED_FRAC:g} pp with "
        f"{NUMS_QUESTIONS[-1]:,} calibration questions; at least {LEAST_SKIP_FRAC:.0%} is required."
    )


def calibration_table(rows: list[dict[str, Any]]) -> str:
    """Write the calibrations of a world, both kinds of confidence side by side."""
    cell = (
        "{num_broken} broken{miss}; {skip_frac:.1%} ({skip_frac_p10:.1%} to {skip_frac_p90:.1%}) skipped; "
        "{refused_frac:.1%} refused"
    )
    index = {"accepted_loss_frac": "accepted loss", "num_questions": "questions", "num_certify": "of them certify"}
    for row in rows:
        row["miss"] = "" if row["num_broken"] <= LIMIT else " MISS"
    laid = wide(sorted(rows, key=lambda row: row["accepted_loss_frac"]), [*index], "confidence", cell, order=KINDS)
    return markdown([line | {"accepted_loss_frac": f"{line['accepted_loss_frac']:.1%}"} for line in laid], index)


def report(tables: Tables) -> str:
    """Write the page."""
    calibrations, agreement = (tables[name].to_dicts() for name in SWEEPS)
    worlds = {world: [row for row in calibrations if world_of(row["population"]) == world] for world in WORLDS}
    return PAGE.format(
        verdicts=verdicts(tables["calibrations"]),
        agreement=markdown(lay_out(agreement, AGREEMENT)),
        worlds="\n\n".join(f"### {world}\n\n{calibration_table(rows)}" for world, rows in worlds.items()),
    )


def figure(tables: Tables) -> "Figure":
    """Draw what is skipped by accepted loss."""
    lines = [f"{kind}, {number:,} questions" for kind in KINDS for number in NUMS_QUESTIONS]
    rows = [
        {
            "accepted": f"{100 * row['accepted_loss_frac']:g}",
            "skipped": Estimate(100 * row["skip_frac"]),
            "line": f"{row['confidence']}, {row['num_questions']:,} questions",
            "world": world_of(row["population"]),
        }
        for row in tables["calibrations"].to_dicts()
    ]
    panels = {world: Panel(label="questions skipped (%)", title=world) for world in WORLDS}
    return draw(rows, "accepted", "skipped", "line", "world", x_label="accepted loss (pp)", panels=panels, lines=lines)


PAGE = f"""\
Simulated populations of {NUM_SEEDS * NUM_QUESTIONS:,} questions ({NUM_SEEDS} seeds x {NUM_QUESTIONS:,}). A threshold's
loss is its mean over the population, known exactly. Calibration sets are drawn from it with replacement; the gate's own
split keeps about {FIT_FRAC:.0%} of each for fitting, and only the others certify. A promise is broken where the loss of
the chosen threshold is above the accepted one: at {1 - RISK_FRAC:.0%} confidence at most {LIMIT} times in
{NUM_CALIBRATIONS:,} calibrations (the 99% limit of the binomial). With weighted confidence {NUM_PER_GROUP} calibrations
share one fit part. Shares of skipped questions are FITTED, as the agreement of the experts is; in the adversarial
worlds they are constructed.

{{verdicts}}

![What is skipped, by the loss that is accepted](gates.png)

## What agreement is worth

Questions on which so many experts of three agree, and what is lost where they and those with more agreement are
skipped, as a share of all questions.

{{agreement}}

In the adversarial worlds agreement says nothing. Questions, pool and slots are those of MedMCQA.
All experts are alike, and the utility of the right option has the distribution of every wrong one's: they agree by
attraction, and what they agree on is right as often as any other of the four options. The aggregator is right on the
same share of all questions, whatever it reads. Four worlds, one for each accepted loss: in each, skipping what is
unanimous loses one question more than is accepted. (Weighted confidence has finer thresholds: it may skip fewer
questions, lose less than is accepted, and keep the promise.)

## Calibrations

Broken promises, the share of the population that is skipped (mean, and 10% to 90% of the calibrations), and the share
of the calibrations after which nothing is skipped.

{{worlds}}

[published.md](published.md): what the published thresholds could have promised, and with how many questions.
"""

STUDY = Study(
    name="gates",
    about="Whether the calibrated gate keeps its promise, and what it earns.",
    title="The calibrated gate",
    tables=SWEEPS,
    report=report,
    figures={"gates": figure},
)
