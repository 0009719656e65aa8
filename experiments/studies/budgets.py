"""Tests whether budgets and hedge, chosen jointly with the gate, keep their promise in worlds with known losses."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.lab.study import Point, Row, Study, Sweep, Tables
from experiments.lab.tables import lay_out, markdown
from experiments.studies.gate_populations import (
    BENCHMARKS,
    NUM_ADVERSARIAL_OPTIONS,
    attracted_experts,
    draw_batch,
    grade,
    indifferent_aggregator,
    least_harmful_frac,
)
from experiments.studies.gate_trials import FIT_FRAC, RISK_FRAC, broken_limit, certify_places
from mosaic.config.job import simulated_job
from mosaic.pipelines.budget_choice import Batch, Kinds, certify_path, families_of, path_of, steps
from mosaic.pipelines.loss_table import BudgetSetting, LossTable, loss_table
from mosaic.pipelines.rules.ballot import plurality
from mosaic.pipelines.rules.calibrated import plurality_thresholds
from mosaic.pipelines.rules.rule import Promised
from sim.world.answer_model import AnswerModel

ACCEPTED_FRAC = 0.01
KINDS = Kinds(cuts=True, hedges=True)
BATCH = Batch(num_questions=2_000, num_running=1024)
"""Four engines run so many calls at once."""
NUM_DRAWN, NUM_CALIBRATIONS = 20_000, 2_000
"""Questions of each population, and calibrations of each line."""
NUM_PER_PATH = 50
"""Calibrations that share the questions that lay out the path; each keeps its promise whatever the path is."""
LIMIT = broken_limit(NUM_CALIBRATIONS)
"""Of broken promises."""
NUMS_QUESTIONS = (2_000, 10_000)
APART = 4.0
"""Times as far apart are abilities in one of the worlds."""
UNINFORMATIVE = "agreement uninformative"

Change = Callable[[AnswerModel], AnswerModel]


def unrelated_lengths(model: AnswerModel) -> AnswerModel:
    """Make lengths independent of difficulty."""
    return replace(model, length_loading=0.0, aggregator_length_loading=0.0)


def better_long_answers(model: AnswerModel) -> AnswerModel:
    """Let easy questions be answered at length and hard ones in short: what a budget cuts is what is right."""
    longer = -model.length_loading, -model.aggregator_length_loading
    return replace(model, length_loading=longer[0], aggregator_length_loading=longer[1])


def abilities_apart(model: AnswerModel) -> AnswerModel:
    """Let experts differ more."""
    apart = {name: APART * ability for name, ability in model.ability_by_expert.items()}
    return replace(model, ability_by_expert=apart)


CHANGES: dict[str, Change] = {
    "fitted": lambda model: model,
    "length unrelated to difficulty": unrelated_lengths,
    "long answers better": better_long_answers,
    "abilities four times apart": abilities_apart,
}


def make_points() -> list[Point]:
    """List worlds."""
    worlds = [*product(CHANGES, BENCHMARKS)]
    worlds.insert(len(BENCHMARKS), (UNINFORMATIVE, "MedMCQA"))
    return [Point(labels={"world": world, "benchmark": benchmark}) for world, benchmark in worlds]


def draw_table(world: str, workload: str, num_questions: int, seed: int = 0) -> LossTable:
    """Draw questions of a world, with the answers of the aggregator without each response."""
    if world == UNINFORMATIVE:
        drawn = draw_batch(workload, seed, num_questions, attracted_experts())
        right_frac = least_harmful_frac([drawn], ACCEPTED_FRAC)
        aggregator = indifferent_aggregator(right_frac, NUM_ADVERSARIAL_OPTIONS)
    else:
        fitted = simulated_job([f"workload={workload}"])[1].world.answers
        assert fitted is not None, "benchmarks have answers"
        drawn, aggregator = draw_batch(workload, seed, num_questions, CHANGES[world](fitted)), None
    return loss_table(list(grade(drawn, aggregator, leaves_one_out=True)), plurality)


@dataclass(frozen=True, slots=True)
class Resampled:
    """Questions of a table, or the same one more than once; what a setting makes of the table is computed once."""

    losses_of: Callable[[BudgetSetting], NDArray[np.int8]]
    written_of: Callable[[BudgetSetting], tuple[NDArray[np.int64], NDArray[np.int64]]]
    places: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.places)

    def losses(self, setting: BudgetSetting) -> NDArray[np.int8]:
        """See ``LossTable.losses``."""
        return self.losses_of(setting)[self.places]

    def written_tokens(self, setting: BudgetSetting) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """See ``LossTable.written_tokens``."""
        total, chain = self.written_of(setting)
        return total[self.places], chain[self.places]


def measure(point: Point, seed: int) -> list[Row]:
    """Draw a world, and calibrate in it many times, on some calibration questions and on many."""
    labels: Any = point.labels
    workload = BENCHMARKS[labels["benchmark"]]
    table = draw_table(labels["world"], workload, NUM_DRAWN, seed)
    return [calibrate(table, labels["world"], workload, number, NUM_CALIBRATIONS, seed) for number in NUMS_QUESTIONS]


def calibrate(
    table: LossTable, world: str, workload: str, num_questions: int, num_calibrations: int, seed: int = 0
) -> Row:
    """Calibrate gate, budgets and hedge many times; some share the part that lays out the path."""
    rng = np.random.default_rng((seed, num_questions, *world.encode()))
    thresholds = (None, *plurality_thresholds({int(table.num_slots.max())}))
    families = tuple(families_of(thresholds, KINDS, is_gate_chosen=True))
    losses_of, written_of = cache(table.losses), cache(table.written_tokens)

    def draw(num: int) -> Resampled:
        return Resampled(losses_of, written_of, rng.integers(len(table), size=num))

    fit, certify = certify_places(workload, num_questions)
    taken: list[BudgetSetting | None] = []
    promised = Promised(world, ACCEPTED_FRAC, RISK_FRAC, FIT_FRAC)
    for start in range(0, num_calibrations, NUM_PER_PATH):
        laid_out = draw(len(fit))
        path = path_of(laid_out, families, BATCH, ACCEPTED_FRAC, adds_hedges=True)
        for _ in range(min(NUM_PER_PATH, num_calibrations - start)):
            taken.append(certify_path(laid_out, draw(len(certify)), path, promised)[0])
    chosen = [setting or BudgetSetting(None) for setting in taken]
    whole = steps(table, BudgetSetting(None), BATCH)
    steps_frac = {setting: steps(table, setting, BATCH) / whole for setting in set(chosen)}
    return {
        "num_questions": num_questions,
        "num_certify": len(certify),
        "num_broken": sum(float(losses_of(setting).mean()) > ACCEPTED_FRAC for setting in chosen),
        "refused_frac": taken.count(None) / num_calibrations,
        "steps_frac": float(np.mean([steps_frac[setting] for setting in chosen])),
    }


def report(tables: Tables) -> str:
    """Write the page."""
    rows = tables["calibrations"].to_dicts()
    misses = sum(row["num_broken"] > LIMIT for row in rows)
    for row in rows:
        row["miss"] = " MISS" if row["num_broken"] > LIMIT else ""
    return PAGE.format(
        number=f"{len(rows)} of {len(make_points()) * len(NUMS_QUESTIONS)}",
        kept=f"MISS: {misses} lines are above" if misses else "all within",
        table=markdown(lay_out(rows, COLUMNS)),
    )


COLUMNS = {
    "world": "{world}",
    "benchmark": "{benchmark}",
    "questions": "{num_questions:,}",
    "of them certify": "{num_certify:,}",
    "broken": "{num_broken}{miss}",
    "nothing promised": "{refused_frac:.1%}",
    "steps": "{steps_frac:.2f}",
}

PAGE = f"""\
Gate, budgets and hedge are chosen together on calibration questions that are drawn from populations of {NUM_DRAWN:,}
simulated questions. The loss of a setting is its mean over the population, known exactly, the worse of the two ways
counted where a late call may end in time. A promise is broken where it is above the accepted {ACCEPTED_FRAC:.0%}: at
{1 - RISK_FRAC:.0%} confidence at most {LIMIT} times in {NUM_CALIBRATIONS:,} calibrations (the 99% limit of the
binomial). Steps are decode steps as the choice estimates them, relative to always aggregating whole responses;
agreement and lengths are FITTED, or changed as the world says.

**Promises: {{number}} lines of {NUM_CALIBRATIONS:,} calibrations, {{kept}} the limit of {LIMIT}.**

{{table}}
"""

STUDY = Study(
    name="budgets",
    about="Whether budgets and hedge keep their promise, jointly with the gate.",
    title="Budgets and hedge, chosen with the gate",
    tables={"calibrations": Sweep(points=make_points(), measure=measure)},
    report=report,
)
