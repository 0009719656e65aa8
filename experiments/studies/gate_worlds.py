"""What the gate report is made of: every world's populations, their calibrations, and the published thresholds."""

from dataclasses import dataclass

import numpy as np
from joblib import Parallel, delayed

from experiments.studies.gate_populations import Population, draw_adversarial, draw_population
from experiments.studies.gate_trials import (
    Trials,
    published_promises,
    questions_needed,
    simulate_calibrations,
    thresholds_of,
)
from mosaic.config.compose import compose_config
from mosaic.pipelines.gates.calibrated import ConfidenceKind
from mosaic.pipelines.gates.gate import plurality

WORKLOADS = ("mmlu_pro", "medmcqa", "gpqa")
KINDS: tuple[ConfidenceKind, ...] = ("plurality", "weighted")
ACCEPTED_FRACS = (0.005, 0.01, 0.02, 0.05)
NUMS_QUESTIONS = (350, 2_000, 10_000)
PUBLISHED_TAUS = (1.0, 2 / 3)
PROMISED_FRACS = (0.01, 0.02)
"""Losses for which the report says how many questions a published threshold would have needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How large the report is; small in tests."""

    seeds: tuple[int, ...] = tuple(range(6))
    num_questions_per_seed: int = 10_000
    num_calibrations: int = 2_000
    num_promises: int = 100
    """Calibrations for which the smallest promise, and the number of questions needed, are found."""

    @property
    def population(self) -> str:
        total = self.num_questions_per_seed * len(self.seeds)
        return f"{total:,} questions ({len(self.seeds)} seeds x {self.num_questions_per_seed:,})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Questions whose plurality has this share of the slots, and what skipping from there on does."""

    threshold: float
    share_frac: float
    plurality_right_frac: float
    aggregator_right_frac: float
    skip_frac: float
    loss_frac: float


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """One world's populations, a single one or one for each accepted loss, and what came of the calibrations."""

    name: str
    populations: tuple[Population, ...]
    trials: dict[ConfidenceKind, list[Trials]]


def buckets(population: Population) -> list[Bucket]:
    """Describe a population by the agreement of its experts."""
    scored = population.score(plurality)
    right = np.array([[kind.majority_correct, kind.aggregator_correct] for kind in population.kinds], dtype=float)
    rows = []
    for threshold in thresholds_of("plurality", population):
        counts = np.where(scored.scores == threshold, scored.counts, 0)
        shares = counts @ right / max(1, counts.sum())
        rows.append(
            Bucket(
                threshold=threshold,
                share_frac=float(counts.sum() / scored.counts.sum()),
                plurality_right_frac=float(shares[0]),
                aggregator_right_frac=float(shares[1]),
                skip_frac=scored.skip_frac(threshold),
                loss_frac=scored.loss_frac(threshold),
            )
        )
    return rows


def draw_worlds(sizes: Sizes) -> dict[str, tuple[Population, ...]]:
    """Draw all populations, those of a world in one process."""
    each = sizes.num_questions_per_seed
    jobs = [delayed(draw_adversarial)(ACCEPTED_FRACS, sizes.seeds, each)]
    jobs += [delayed(draw_population)(workload, sizes.seeds, each) for workload in WORKLOADS]
    adversarial, *benchmarks = Parallel(n_jobs=-1)(jobs)
    worlds = {workload: (made,) for workload, made in zip(WORKLOADS, benchmarks, strict=True)}
    return {**worlds, "adversarial": tuple(adversarial)}


def simulate_worlds(sizes: Sizes) -> list[World]:
    """Calibrate the gate in every world, with every confidence, on every number of questions."""
    drawn = draw_worlds(sizes)
    points: list[tuple[str, ConfidenceKind, Population, tuple[float, ...], int]] = []
    for name, made in drawn.items():
        levels = [ACCEPTED_FRACS] if len(made) == 1 else [(accepted,) for accepted in ACCEPTED_FRACS]
        for kind in KINDS:
            for number in NUMS_QUESTIONS:
                points += [(name, kind, one, level, number) for one, level in zip(made, levels, strict=True)]
    # The largest first, so that no core waits for the last of them; results keep their points.
    order = sorted(range(len(points)), key=lambda at: (points[at][1] == "plurality", -points[at][4]))
    done = Parallel(n_jobs=-1)(
        delayed(simulate_calibrations)(one, level, number, sizes.num_calibrations, kind)
        for _, kind, one, level, number in (points[at] for at in order)
    )
    results = dict(zip(order, done, strict=True))
    trials: dict[str, dict[ConfidenceKind, list[Trials]]] = {name: {kind: [] for kind in KINDS} for name in drawn}
    for at, (name, kind, *_) in enumerate(points):
        trials[name][kind] += results[at]
    return [World(name=name, populations=made, trials=trials[name]) for name, made in drawn.items()]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedThreshold:
    """What a threshold of the paper would have needed to be promised."""

    tau: float
    skip_frac: float
    loss_frac: float
    promises: dict[int, tuple[float, float, float]]
    """By number of calibration questions: the 10% quantile, the median and the 90% quantile of the smallest promise."""
    needed: dict[float, int | None]
    """Calibration questions, by accepted loss."""


def describe_published(population: Population, sizes: Sizes) -> list[PublishedThreshold]:
    """Ask for both published thresholds what the gate could have promised."""
    own = compose_config([f"workload={population.workload}"])["workload"]["num_calibration_questions"]
    scored = population.score(plurality)
    rows = []
    for tau in PUBLISHED_TAUS:
        promises = {}
        for number in (own, *NUMS_QUESTIONS[1:]):
            found = published_promises(population, tau, number, sizes.num_promises)
            low, middle, high = np.quantile(found, (0.1, 0.5, 0.9)).tolist()
            promises[number] = (low, middle, high)
        rows.append(
            PublishedThreshold(
                tau=tau,
                skip_frac=scored.skip_frac(tau),
                loss_frac=scored.loss_frac(tau),
                promises=promises,
                needed={to: questions_needed(population, tau, to, sizes.num_promises) for to in PROMISED_FRACS},
            )
        )
    return rows
