"""Whether promises of budgets are kept: worlds whose losses are known, and many calibrations in each."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from experiments.studies.drawn_answers import DrawnAnswers, draw_answers
from experiments.studies.gate_populations import (
    ADVERSARIAL_WORKLOAD,
    NUM_ADVERSARIAL_OPTIONS,
    attracted_experts,
    draw_batch,
    indifferent_aggregator,
    least_harmful_frac,
)
from experiments.studies.gate_trials import NUM_PER_GROUP, RISK_FRAC, broken_limit, certify_places
from mosaic.config.job import simulated
from mosaic.core.results import CallRecord
from mosaic.core.workload import Question
from mosaic.pipelines.gates.budget_choice import Batch, Kinds, path_of, settings_of, steps, walk
from mosaic.pipelines.gates.calibrated import plurality_thresholds
from mosaic.pipelines.gates.calibration_answers import CalibrationQuestion, grade_ballot, with_observed
from mosaic.pipelines.gates.gate import plurality
from mosaic.pipelines.gates.loss_table import LossTable, Setting, loss_table
from mosaic.pipelines.node import node_calls
from sim.site import draw_records
from sim.world.answer_model import AnswerModel

ACCEPTED_FRAC = 0.01
KINDS = Kinds(cuts=True, hedges=True)
APART = 4.0
"""Times as far apart are abilities in one of the worlds."""
RUNNING = 1024
"""Calls that four engines run at once."""
BENCHMARKS = ("mmlu_pro", "medmcqa", "gpqa")
Change = Callable[[AnswerModel], AnswerModel]


def unrelated_lengths(model: AnswerModel) -> AnswerModel:
    """Let lengths say nothing of difficulty."""
    return replace(model, length_loading=0.0, aggregator_length_loading=0.0)


def better_long_answers(model: AnswerModel) -> AnswerModel:
    """Let easy questions be answered at length and hard ones in short: what a budget cuts is what is right."""
    longer = -model.length_loading, -model.aggregator_length_loading
    return replace(model, length_loading=longer[0], aggregator_length_loading=longer[1])


def abilities_apart(model: AnswerModel) -> AnswerModel:
    """Let experts differ more."""
    return replace(
        model, ability_by_expert={name: APART * ability for name, ability in model.ability_by_expert.items()}
    )


CHANGES: dict[str, Change] = {
    "fitted": lambda model: model,
    "length unrelated to difficulty": unrelated_lengths,
    "long answers better": better_long_answers,
    "abilities four times apart": abilities_apart,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetTrials:
    """What came of many calibrations in a world."""

    world: str
    workload: str
    num_questions: int
    num_certify: int
    num_calibrations: int
    num_broken: int
    """Calibrations whose setting loses more over the population than is accepted."""
    refused_frac: float
    """Calibrations that promise nothing."""
    steps_frac: float
    """Mean decode steps, of those of always aggregating whole responses."""

    @property
    def max_broken(self) -> int:
        return broken_limit(self.num_calibrations)


@dataclass(frozen=True, slots=True)
class Known:
    """Questions of a population, whose losses and lengths in each setting are computed once."""

    table: LossTable
    losses_by_setting: dict[Setting, NDArray[np.int8]]
    written_by_setting: dict[Setting, tuple[NDArray[np.int64], NDArray[np.int64]]]
    places: NDArray[np.int64] | None = None
    """Of the questions; None: all."""

    def __len__(self) -> int:
        return len(self.table) if self.places is None else len(self.places)

    def take(self, places: NDArray[np.int64]) -> "Known":
        """Take some questions, or the same one more than once."""
        return replace(self, places=places)

    def losses(self, setting: Setting) -> NDArray[np.int8]:
        """See ``LossTable.losses``."""
        if setting not in self.losses_by_setting:
            self.losses_by_setting[setting] = self.table.losses(setting)
        return self.losses_by_setting[setting][self.places]

    def written_tokens(self, setting: Setting) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """See ``LossTable.written_tokens``."""
        if setting not in self.written_by_setting:
            self.written_by_setting[setting] = self.table.written_tokens(setting)
        total, chain = self.written_by_setting[setting]
        return total[self.places], chain[self.places]


def draw_table(workload: str, num_questions: int, change: Change, seed: int = 0) -> LossTable:
    """Draw a benchmark's questions in a world, with the answers of the aggregator without each response."""
    model = simulated(_calibration_part(workload, 1, seed))[1].world.answers
    assert model is not None, "benchmarks have answers"
    overrides = _calibration_part(workload, num_questions, seed)
    return loss_table(list(observed_questions(draw_answers(overrides, change(model)))), plurality)


def draw_uninformative(num_questions: int, seed: int = 0) -> LossTable:
    """Draw a world where agreement says nothing, and skipping what is unanimous loses just more than is accepted."""
    batch = draw_batch(ADVERSARIAL_WORKLOAD, seed, num_questions, attracted_experts())
    right_frac = least_harmful_frac([batch], ACCEPTED_FRAC)
    aggregator = indifferent_aggregator(right_frac, NUM_ADVERSARIAL_OPTIONS)
    return loss_table(list(observed_questions(batch.drawn, aggregator)), plurality)


def observed_questions(drawn: DrawnAnswers, aggregator: AnswerModel | None = None) -> Iterator[CalibrationQuestion]:
    """Let the aggregator answer with all responses and without each of them, by the world's model or another one."""
    site, graph, questions = drawn.site, drawn.job.graph, drawn.questions
    if aggregator is not None:
        site = replace(site, world=replace(site.world, answers=aggregator))
    node = replace(graph.upper_nodes[0], leaves_one_out=True)
    for question in questions:
        _, first, done = questions.of(question.id)
        votes = [done[call.key] for call in sorted(first, key=lambda call: call.key)]
        calls = list(node_calls(node, question, votes))
        merged = draw_records(site.world, calls, [drawn.aggregator], drawn.records)
        if len(merged) == 1 + len(votes):
            yield _graded(drawn, question, votes, merged)


def _graded(
    drawn: DrawnAnswers, question: Question, votes: Sequence[CallRecord], merged: Sequence[CallRecord]
) -> CalibrationQuestion:
    graph, of = drawn.job.graph, drawn.questions.of(question.id)
    same = graph.compare[question.answer_kind]
    assert same is not None, "benchmarks ask for options"
    graded = grade_ballot(graph.vote(*of)[0], merged[0].answer, same)
    return with_observed(graded, votes, merged[0], merged[1:], same)


def simulate_budgets(
    table: LossTable, world: str, workload: str, num_questions: int, num_calibrations: int, seed: int = 0
) -> BudgetTrials:
    """Calibrate gate, budgets and hedge many times; calibrations of a group share the part that lays out the path."""
    rng = np.random.default_rng((seed, num_questions, *world.encode()))
    thresholds = (None, *plurality_thresholds({int(table.num_slots.max())}))
    settings = settings_of(thresholds, KINDS, is_gate_chosen=True)
    batch = Batch(num_questions=2_000, num_running=RUNNING)
    known = Known(table, {}, {})
    truth: dict[Setting, float] = {}
    speed: dict[Setting, float] = {}
    whole = steps(table, Setting(None), batch)
    speeds: list[float] = []
    num_broken = num_refused = 0
    fit, certify = certify_places(workload, num_questions)
    for start in range(0, num_calibrations, NUM_PER_GROUP):
        path = path_of(known.take(rng.integers(len(table), size=len(fit))), settings, batch, ACCEPTED_FRAC)
        for _ in range(min(NUM_PER_GROUP, num_calibrations - start)):
            drawn = known.take(rng.integers(len(table), size=len(certify)))
            passed, _ = walk(drawn, path, ACCEPTED_FRAC, RISK_FRAC)
            taken = passed or Setting(None)
            if taken not in truth:
                truth[taken] = float(table.losses(taken).mean())
                speed[taken] = steps(table, taken, batch) / whole
            num_broken += truth[taken] > ACCEPTED_FRAC
            num_refused += passed is None
            speeds.append(speed[taken])
    return BudgetTrials(
        world=world,
        workload=workload,
        num_questions=num_questions,
        num_certify=len(certify),
        num_calibrations=num_calibrations,
        num_broken=num_broken,
        refused_frac=num_refused / num_calibrations,
        steps_frac=float(np.mean(speeds)),
    )


def _calibration_part(workload: str, num_questions: int, seed: int) -> list[str]:
    part = ["workload.part=calibration", f"workload.num_calibration_questions={num_questions}"]
    return [f"workload={workload}", f"seed={seed}", f"question_seed={seed}", "gate=never", *part]
