"""Populations of simulated questions, large enough that calibration sets can be drawn from them with replacement.

What a threshold loses on a population is known exactly, so whether a gate keeps its promise can be counted.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import floor, log
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from experiments.studies.drawn_answers import DrawnAnswers, draw_answers
from mosaic.core.realization import uniform_pair
from mosaic.pipelines.node import node_calls
from mosaic.pipelines.rules.ballot import Ballot, Winner, plurality
from mosaic.pipelines.rules.calibration_answers import CalibrationQuestion, grade_ballot, with_observed
from mosaic.pipelines.walk import walk
from sim.site import draw_records
from sim.world.answer_model import AnswerModel

Ints: TypeAlias = NDArray[np.int64]
Confidence: TypeAlias = Callable[[Ballot], Winner]
"""A gate's answer to a ballot, and its confidence in it."""

BENCHMARKS = {"MMLU-Pro": "mmlu_pro", "MedMCQA": "medmcqa", "GPQA": "gpqa"}
"""The workload of each."""
ADVERSARIAL_WORKLOAD = "medmcqa"
"""Lends the adversarial world its questions, pool and slots."""
NUM_ADVERSARIAL_OPTIONS = 4
ATTRACTION_STD = 2.4
"""Of the adversarial world's options, in logits: as many questions are unanimous as on MedMCQA (47.5%)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What a gate's confidence makes of a population, by kind of question."""

    scores: NDArray[np.float64]
    losses: NDArray[np.int8]
    """If skipped: the aggregator's correctness minus that of the gate's answer."""
    counts: Ints
    """Questions of each kind in the population."""

    def lost(self, threshold: float) -> NDArray[np.int8]:
        """Loss of each kind where questions are skipped from a threshold on."""
        lost: NDArray[np.int8] = np.where(self.scores >= threshold, self.losses, np.int8(0))
        return lost

    def skip_frac(self, threshold: float | None) -> float:
        """Share of the population that a threshold skips; None: nothing."""
        return 0.0 if threshold is None else float(self.counts[self.scores >= threshold].sum() / self.counts.sum())

    def loss_frac(self, threshold: float | None) -> float:
        """Mean loss of a threshold over the population, exactly; None: 0."""
        return 0.0 if threshold is None else float((self.counts * self.lost(threshold)).sum() / self.counts.sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Population:
    """Questions with what the experts and the aggregator answered; those that no gate can tell apart stand once."""

    name: str
    workload: str
    kinds: tuple[CalibrationQuestion, ...]
    kind_of: NDArray[np.int32]
    """Of every question, shape (num_questions,)."""

    def score(self, confidence: Confidence) -> Scored:
        """Apply a gate's confidence to every kind of question."""
        winners = [confidence(kind.ballot) for kind in self.kinds]
        losses = [kind.loss_if_skipped(winner.answer) for kind, winner in zip(self.kinds, winners, strict=True)]
        return Scored(
            scores=np.array([winner.confidence for winner in winners]),
            losses=np.array(losses, dtype=np.int8),
            counts=np.bincount(self.kind_of, minlength=len(self.kinds)),
        )


def draw_batch(workload: str, seed: int, num_questions: int, model: AnswerModel | None = None) -> DrawnAnswers:
    """Draw the answers of a benchmark's experts to calibration questions, by its own model or another one."""
    part = ["workload.part=calibration", f"workload.num_calibration_questions={num_questions}"]
    return draw_answers([f"workload={workload}", f"seed={seed}", f"question_seed={seed}", "gate=never", *part], model)


def grade(
    drawn: DrawnAnswers, aggregator: AnswerModel | None = None, *, leaves_one_out: bool = False
) -> Iterator[CalibrationQuestion]:
    """Let the aggregator answer, and grade all answers to each question that it can read.

    Parameters
    ----------
    drawn
        What the experts answer.
    aggregator
        Its own model; None: the world's.
    leaves_one_out
        It also answers without each response in turn, as budgets need it.
    """
    graph, world = drawn.job.graph, drawn.site.world
    if aggregator is not None:
        world = replace(world, answers=aggregator)
    node = replace(graph.upper_nodes[0], leaves_one_out=leaves_one_out)
    for question in drawn.questions:
        question, first, done = drawn.questions.of(question.id)
        votes = [done[call.key] for call in sorted(first, key=lambda call: call.key)]
        merged = draw_records(world, [*node_calls(node, question, votes)], [drawn.aggregator], drawn.records)
        if len(merged) == 1 + leaves_one_out * len(votes):
            same = graph.compare[question.answer_kind]
            assert same is not None, "benchmarks ask for options"
            graded = grade_ballot(walk(graph, question, first, done).vote()[0], merged[0].answer, same)
            yield with_observed(graded, votes, merged[0], merged[1:], same) if leaves_one_out else graded


def gather(name: str, workload: str, questions: Iterable[CalibrationQuestion]) -> Population:
    """Keep one question of each kind."""
    places: dict[Any, int] = {}
    kinds: list[CalibrationQuestion] = []
    kind_of: list[int] = []
    for question in questions:
        kind = (_pattern(question.ballot), question.vote_correct, question.aggregator_correct)
        place = places.setdefault(kind, len(kinds))
        if place == len(kinds):
            kinds.append(question)
        kind_of.append(place)
    return Population(name=name, workload=workload, kinds=tuple(kinds), kind_of=np.array(kind_of, dtype=np.int32))


def _pattern(ballot: Ballot) -> Any:
    """Everything of a ballot that a gate may use, except the answers' names."""
    names: dict[str, int] = {}
    pattern = tuple(None if vote.answer is None else names.setdefault(vote.answer, len(names)) for vote in ballot.votes)
    experts = tuple(vote.expert for vote in ballot.votes)
    return experts, pattern, ballot.comparable, ballot.question.skills, ballot.question.num_options


def draw_population(workload: str, seeds: Sequence[int], num_questions: int) -> Population:
    """Draw a benchmark's questions in several worlds, so many in each."""
    batches = (draw_batch(workload, seed, num_questions) for seed in seeds)
    return gather(workload, workload, (question for batch in batches for question in grade(batch)))


NOTHING_MATTERS = AnswerModel(
    mean_ability=0.0,
    discrimination=0.0,
    distractor_std=0.0,
    length_loading=0.0,
    aggregator_gain=0.0,
    deference=0.0,
    aggregator_length_loading=0.0,
)
"""Neither abilities, difficulty, options and lengths, nor what an aggregator reads."""


def attracted_experts() -> AnswerModel:
    """Experts that agree by attraction alone.

    NOTE: the right option's utility, -difficulty x ATTRACTION_STD, has the distribution of every wrong option's, and
    all experts share the utilities. So the options are exchangeable: whatever agreement is seen, the option that it is
    on is the right one with probability 1 / num_options. Lengths and cut-off calls are independent of everything.
    """
    return replace(NOTHING_MATTERS, discrimination=ATTRACTION_STD, distractor_std=ATTRACTION_STD)


def indifferent_aggregator(right_frac: float, num_options: int) -> AnswerModel:
    """Make an aggregator that is right on this share of all questions, whatever it reads and however hard they are."""
    return replace(NOTHING_MATTERS, aggregator_gain=log(right_frac / (1 - right_frac) * (num_options - 1)))


def draw_adversarial(accepted_fracs: Sequence[float], seeds: Sequence[int], num_questions: int) -> list[Population]:
    """Draw, for each accepted loss, a world with meaningless agreement, in which any skipping loses just more.

    The aggregator is better than the experts' plurality by the same margin at every degree of agreement. The margin is
    the smallest one at which skipping the unanimous questions loses more than is accepted; skipping more loses more.
    """
    batches = [draw_batch(ADVERSARIAL_WORKLOAD, seed, num_questions, attracted_experts()) for seed in seeds]
    populations = []
    for accepted in accepted_fracs:
        aggregator = indifferent_aggregator(least_harmful_frac(batches, accepted), NUM_ADVERSARIAL_OPTIONS)
        questions = (question for batch in batches for question in grade(batch, aggregator))
        populations.append(gather(f"adversarial {accepted:g}", ADVERSARIAL_WORKLOAD, questions))
    return populations


def least_harmful_frac(batches: Sequence[DrawnAnswers], accepted_frac: float) -> float:
    """Find how often an indifferent aggregator must be right for tau = 1 to lose just more than the accepted loss.

    It is right where its call's draw is below its share of right answers, so the share lies between two of the draws.
    """
    draws: list[float] = []
    num_right = num_questions = 0
    for batch in batches:
        world = batch.site.world
        for call, ballot in zip(batch.aggregator_calls(), batch.ballots(), strict=True):
            num_questions += 1
            winner = plurality(ballot)
            if winner.confidence >= 1:
                num_right += winner.answer == ballot.question.answer
                draws.append(uniform_pair(world.root_seed, world.stream, call.key)[1])
    draws.sort()
    needed = num_right + floor(accepted_frac * num_questions + 1e-9) + 1
    return (draws[needed - 1] + draws[needed]) / 2
