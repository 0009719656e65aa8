"""Simulated calibrations of the calibrated gate: calibration sets drawn from a population whose losses are known."""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from experiments.lab.study import Row
from experiments.studies.gate_populations import Confidence, Population, Scored
from mosaic.pipelines.risk_control import betting_p_values
from mosaic.pipelines.rules.ballot import plurality
from mosaic.pipelines.rules.calibrated import POSTERIOR_THRESHOLDS, Calibrated, ConfidenceKind, plurality_thresholds
from mosaic.pipelines.rules.calibration_answers import CalibrationQuestion, split_places
from mosaic.pipelines.rules.weighted import learn_reliabilities, posterior

Places: TypeAlias = NDArray[np.int64]

_DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(Calibrated)}
RISK_FRAC: float = _DEFAULTS["risk_frac"]
FIT_FRAC: float = _DEFAULTS["fit_frac"]
NUM_OPEN_OPTIONS: int = _DEFAULTS["num_open_options"]

CONFIDENCE_OF_LIMIT = 0.99
NUM_PER_GROUP = 20
"""Calibrations drawn at a time; with weighted confidence they share one fit part, a new one for each group."""


def broken_limit(num_calibrations: int) -> int:
    """Find the 99% limit of the binomial: a test of the promise that fails once in a hundred times by chance alone."""
    return int(binom.ppf(CONFIDENCE_OF_LIMIT, num_calibrations, RISK_FRAC))


def certify_places(workload: str, num_questions: int) -> tuple[Places, Places]:
    """Split the places of so many calibration questions of a benchmark: those to fit, and those that certify."""
    ids = [f"{workload}_calibration-{number}" for number in range(num_questions)]
    fit, certify = split_places(ids, FIT_FRAC)
    return np.array(fit, dtype=np.int64), np.array(certify, dtype=np.int64)


def draw_groups(
    population: Population, num_questions: int, num_calibrations: int, rng: np.random.Generator
) -> Iterator[tuple[list[CalibrationQuestion], NDArray[np.int32]]]:
    """Draw calibration sets with replacement, in groups.

    Yields
    ------
    tuple
        The questions of the fit part of a group's first calibration, and the kinds of the questions that certify,
        shape (num_in_group, num_certify), in the order in which the gate reads them.
    """
    fit, certify = certify_places(population.workload, num_questions)
    for start in range(0, num_calibrations, NUM_PER_GROUP):
        size = (min(NUM_PER_GROUP, num_calibrations - start), num_questions)
        drawn = population.kind_of[rng.integers(len(population.kind_of), size=size)]
        yield [population.kinds[kind] for kind in drawn[0, fit]], drawn[:, certify]


def confidence_of(kind: ConfidenceKind, fit: Sequence[CalibrationQuestion]) -> Confidence:
    """Return what the calibrated gate calls confidence, after learning from the fit part where it has to."""
    if kind == "plurality":
        return plurality
    learned = learn_reliabilities(fit)
    return lambda ballot: posterior(ballot, learned, NUM_OPEN_OPTIONS)


def thresholds_of(kind: ConfidenceKind, population: Population) -> tuple[float, ...]:
    """List the thresholds that the calibrated gate tests, in their order."""
    if kind == "weighted":
        return POSTERIOR_THRESHOLDS
    return plurality_thresholds({len(question.ballot.votes) for question in population.kinds})


def chosen_thresholds(
    scored: Scored, certify: NDArray[np.int32], thresholds: Sequence[float], accepted_loss_frac: float
) -> list[float | None]:
    """Choose each calibration's threshold as ``risk_control.fixed_sequence`` does, all at once."""
    chosen: list[float | None] = [None] * len(certify)
    passing = np.arange(len(certify))
    before = None
    for threshold in thresholds:
        lost = scored.lost(threshold)
        # A threshold that skips no kind more has the p values of the one before.
        if before is None or not np.array_equal(lost, before):
            p_values = betting_p_values(lost[certify[passing]], accepted_loss_frac)
            passing = passing[p_values <= RISK_FRAC]
        before = lost
        for place in passing:
            chosen[place] = threshold
        if len(passing) == 0:
            break
    return chosen


def simulate_calibrations(
    population: Population,
    accepted_loss_fracs: Sequence[float],
    num_questions: int,
    num_calibrations: int,
    kind: ConfidenceKind = "plurality",
    seed: int = 0,
) -> dict[float, Row]:
    """Calibrate the gate many times, at each accepted loss on the same draws; return the results.

    A promise is broken if a threshold loses more over the population than accepted. Shares of skipped questions are of
    the population, by each calibration's threshold.
    """
    rng = np.random.default_rng((seed, num_questions, *population.name.encode()))
    thresholds = thresholds_of(kind, population)
    broken = dict.fromkeys(accepted_loss_fracs, 0)
    skips: dict[float, list[float]] = {accepted: [] for accepted in accepted_loss_fracs}
    num_certify = 0
    scored: Scored | None = None
    for fit, certify in draw_groups(population, num_questions, num_calibrations, rng):
        if scored is None or kind != "plurality":  # which learns nothing from the fit part
            scored = population.score(confidence_of(kind, fit))
        num_certify = certify.shape[1]
        for accepted in accepted_loss_fracs:
            chosen = chosen_thresholds(scored, certify, thresholds, accepted)
            broken[accepted] += sum(scored.loss_frac(threshold) > accepted for threshold in chosen)
            skips[accepted] += [scored.skip_frac(threshold) for threshold in chosen]
    rows: dict[float, Row] = {}
    for accepted, skipped in skips.items():
        low, high = np.quantile(skipped, (0.1, 0.9)).tolist()
        rows[accepted] = {
            "num_certify": num_certify,
            "num_broken": broken[accepted],
            "skip_frac": float(np.mean(skipped)),
            "skip_frac_p10": low,
            "skip_frac_p90": high,
            "refused_frac": float(np.mean(np.array(skipped) == 0)),
        }
    return rows
