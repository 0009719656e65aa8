"""Populations of simulated questions, large enough that calibration sets can be drawn from them with replacement.

What a threshold loses on a population is known exactly, so whether a gate keeps its promise can be counted.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import floor, log
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from experiments.studies.drawn_answers import DrawnAnswers, draw_answers
from mosaic.core.realization import uniform_pair
from mosaic.core.workload import Call
from mosaic.pipelines.gates.calibration_answers import CalibrationQuestion, grade_ballots
from mosaic.pipelines.gates.gate import Ballot, Winner, plurality
from sim.cluster.session import cut_off
from sim.world.answer_model import AnswerModel

Ints: TypeAlias = NDArray[np.int64]
Confidence: TypeAlias = Callable[[Ballot], Winner]
"""A gate's answer to a ballot, and its confidence in it."""

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
    ballots: tuple[Ballot, ...]
    """Those that differ in more than the names of the answers; a gate sees nothing else of a question."""
    ballot_of: NDArray[np.int32]
    """Of every kind, shape (num_kinds,)."""

    def score(self, confidence: Confidence) -> Scored:
        """Apply a gate's confidence to every kind of question."""
        winners = [confidence(ballot) for ballot in self.ballots]
        slots = [_slot_of(ballot, winner.answer) for ballot, winner in zip(self.ballots, winners, strict=True)]
        losses = [
            kind.loss_if_skipped(None if (slot := slots[ballot]) is None else kind.ballot.votes[slot].answer)
            for kind, ballot in zip(self.kinds, self.ballot_of.tolist(), strict=True)
        ]
        return Scored(
            scores=np.array([winner.confidence for winner in winners])[self.ballot_of],
            losses=np.array(losses, dtype=np.int8),
            counts=np.bincount(self.kind_of, minlength=len(self.kinds)),
        )


def _slot_of(ballot: Ballot, answer: str | None) -> int | None:
    """First slot that gave an answer."""
    return None if answer is None else [vote.answer for vote in ballot.votes].index(answer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One seed's questions after the expert stage."""

    drawn: DrawnAnswers
    ballots: tuple[Ballot, ...]
    calls: tuple[Call, ...]
    """The aggregator's, for every question that it can read."""

    def graded(self, aggregator: AnswerModel | None = None) -> list[CalibrationQuestion]:
        """Let the aggregator answer, by the world's model or another one, and grade all answers."""
        world, records = self.drawn.site.world, self.drawn.records
        if aggregator is not None:
            world = replace(world, answers=aggregator)
        expert = self.drawn.aggregator
        answers = {call.key.question: cut_off(call, expert, world.outcome(call, records)).answer for call in self.calls}
        return grade_ballots(self.ballots, answers, self.drawn.job.graph.compare)


def draw_batch(workload: str, seed: int, num_questions: int, model: AnswerModel | None = None) -> Batch:
    """Draw the answers of a benchmark's experts to calibration questions, by its own model or another one."""
    part = ["workload.part=calibration", f"workload.num_calibration_questions={num_questions}"]
    drawn = draw_answers([f"workload={workload}", f"seed={seed}", f"question_seed={seed}", "gate=never", *part], model)
    return Batch(drawn=drawn, ballots=drawn.ballots(), calls=drawn.aggregator_calls())


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
    ballots = {_pattern(kind.ballot): kind.ballot for kind in kinds}
    ballot_places = {pattern: place for place, pattern in enumerate(ballots)}
    return Population(
        name=name,
        workload=workload,
        kinds=tuple(kinds),
        kind_of=np.array(kind_of, dtype=np.int32),
        ballots=tuple(ballots.values()),
        ballot_of=np.array([ballot_places[_pattern(kind.ballot)] for kind in kinds], dtype=np.int32),
    )


def _pattern(ballot: Ballot) -> Any:
    """Everything of a ballot that a gate may look at, but for the answers' names."""
    names: dict[str, int] = {}
    pattern = tuple(None if vote.answer is None else names.setdefault(vote.answer, len(names)) for vote in ballot.votes)
    experts = tuple(vote.expert for vote in ballot.votes)
    return experts, pattern, ballot.comparable, ballot.question.skills, ballot.question.num_options


def draw_population(workload: str, seeds: Sequence[int], num_questions: int) -> Population:
    """Draw a benchmark's questions in several worlds, so many in each."""
    batches = (draw_batch(workload, seed, num_questions) for seed in seeds)
    return gather(workload, workload, (question for batch in batches for question in batch.graded()))


def attracted_experts() -> AnswerModel:
    """Experts that agree by attraction alone.

    NOTE: the right option's utility, -difficulty x ATTRACTION_STD, has the distribution of every wrong option's, and
    all experts share the utilities. So the options are exchangeable: whatever agreement is seen, the option that it is
    on is the right one with probability 1 / num_options. Lengths depend on nothing, and so does who is cut off.
    """
    return AnswerModel(
        mean_ability=0.0,
        discrimination=ATTRACTION_STD,
        distractor_std=ATTRACTION_STD,
        length_loading=0.0,
        aggregator_gain=0.0,
        deference=0.0,
        aggregator_length_loading=0.0,
    )


def indifferent_aggregator(right_frac: float, num_options: int) -> AnswerModel:
    """Make an aggregator that is right on this share of all questions, whatever it reads and however hard they are."""
    return AnswerModel(
        mean_ability=0.0,
        discrimination=0.0,
        distractor_std=0.0,
        length_loading=0.0,
        aggregator_gain=log(right_frac / (1 - right_frac) * (num_options - 1)),
        deference=0.0,
        aggregator_length_loading=0.0,
    )


def draw_adversarial(accepted_fracs: Sequence[float], seeds: Sequence[int], num_questions: int) -> list[Population]:
    """Draw, for each accepted loss, a world in which agreement says nothing and any skipping loses just more than that.

    The aggregator is better than the experts' plurality by the same margin at every degree of agreement. The margin is
    the smallest one at which skipping the unanimous questions loses more than is accepted; skipping more loses more.
    """
    batches = [draw_batch(ADVERSARIAL_WORKLOAD, seed, num_questions, attracted_experts()) for seed in seeds]
    populations = []
    for accepted in accepted_fracs:
        model = indifferent_aggregator(least_harmful_frac(batches, accepted), NUM_ADVERSARIAL_OPTIONS)
        questions = (question for batch in batches for question in batch.graded(model))
        populations.append(gather(f"adversarial {accepted:g}", ADVERSARIAL_WORKLOAD, questions))
    return populations


def least_harmful_frac(batches: Sequence[Batch], accepted_frac: float) -> float:
    """Find how often the aggregator must be right for tau = 1 to lose just more than the accepted loss.

    An indifferent aggregator is right where its call's luck is below its share of right answers, so the share lies
    between two of the lucks.
    """
    unanimous = [
        (batch, call, ballot)
        for batch in batches
        for call, ballot in zip(batch.calls, batch.ballots, strict=True)
        if plurality(ballot).confidence >= 1
    ]
    lucks = sorted(
        uniform_pair(batch.drawn.site.world.root_seed, batch.drawn.site.world.stream, call.key)[1]
        for batch, call, _ in unanimous
    )
    num_right = sum(plurality(ballot).answer == ballot.question.answer for _, _, ballot in unanimous)
    num_questions = sum(len(batch.ballots) for batch in batches)
    needed = num_right + floor(accepted_frac * num_questions + 1e-9) + 1
    return (lucks[needed - 1] + lucks[needed]) / 2
