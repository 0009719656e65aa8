"""Weights every vote by its expert's reliability on the question's skills; the posterior is the confidence."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from copy import copy
from dataclasses import dataclass, field
from math import exp, log
from pathlib import Path
from typing import Annotated, TypeAlias

from mosaic.core.addition import add_in_order
from mosaic.core.checks import Limit, require
from mosaic.core.workload import ExpertName
from mosaic.pipelines.rules.ballot import Ballot, Decision, Winner
from mosaic.pipelines.rules.calibration_answers import CalibrationQuestion
from mosaic.pipelines.rules.calibration_file import load_calibration_answers
from mosaic.pipelines.rules.rule import Rule, decided_by_trying

NumOptions: TypeAlias = Annotated[int, Limit(at_least=2)]

_SKILL_PRIOR_ANSWERS = 10.0
"""Assumed: the expert's overall accuracy counts as much as this many answers on each skill."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliabilities:
    """Accuracy of every expert when it gives an answer at all, overall and by skill; strictly between 0 and 1."""

    overall: Mapping[ExpertName, float]
    by_skill: Mapping[ExpertName, Mapping[str, float]]

    def accuracy_frac(self, expert: ExpertName, skills: Sequence[str]) -> float | None:
        """Average over the skills observed for the expert, or its overall accuracy; None: never observed."""
        known = [value for skill in skills if (value := self.by_skill.get(expert, {}).get(skill)) is not None]
        return add_in_order(known) / len(known) if known else self.overall.get(expert)


def learn_reliabilities(questions: Iterable[CalibrationQuestion]) -> Reliabilities:
    """Smooth the accuracies in calibration answers.

    NOTE: with c right of n answers, overall r = (c + 1) / (n + 2), the posterior mean under Beta(1, 1). On a skill r_s
    = (c_s + 10 r) / (n_s + 10), the posterior mean under Beta(10 r, 10 (1 - r)). So a skill observed once or twice
    stays near the overall accuracy. Unparsable answers are not counted, since they do not show which answer was meant.
    """
    overall: dict[ExpertName, list[bool]] = {}
    by_skill: dict[ExpertName, dict[str, list[bool]]] = defaultdict(dict)
    for question in questions:
        for vote, correct in zip(question.ballot.votes, question.vote_correct, strict=True):
            if vote.answer is None:
                continue
            overall.setdefault(vote.expert, []).append(correct)
            for skill in dict.fromkeys(question.ballot.question.skills):
                by_skill[vote.expert].setdefault(skill, []).append(correct)
    rates = {expert: (sum(grades) + 1) / (len(grades) + 2) for expert, grades in overall.items()}
    prior = _SKILL_PRIOR_ANSWERS
    return Reliabilities(
        overall=rates,
        by_skill={
            expert: {skill: (sum(of) + prior * rates[expert]) / (len(of) + prior) for skill, of in grades.items()}
            for expert, grades in by_skill.items()
        },
    )


def posterior(ballot: Ballot, reliabilities: Reliabilities, num_open_options: int = 10) -> Winner:
    """Find the most probable of the answers voted for, by naive Bayes over all options.

    NOTE: P(votes | truth = a) is the product of r_i over votes for a and (1 - r_i) / (num_options - 1) over the others.
    All options are equally probable before the vote. Options without a vote keep their mass. An unparsable vote, or one
    of an expert never observed, carries no information. Slots count as independent, though one expert may hold several.
    So the posterior is a score to be calibrated rather than a probability to be trusted. A question without options is
    assumed to have ``num_open_options`` of them, at least 2.
    """
    votes = [(vote.expert, vote.answer) for vote in ballot.votes if vote.answer is not None]
    answers = list(dict.fromkeys(answer for _, answer in votes))
    if not answers or not ballot.comparable:
        return Winner(None, 0.0)
    num_options = max(ballot.question.num_options or num_open_options, len(answers))
    # NOTE: log odds of each answer against an option without a vote; terms common to all options cancel.
    log_odds = dict.fromkeys(answers, 0.0)
    for expert, answer in votes:
        accuracy = reliabilities.accuracy_frac(expert, ballot.question.skills)
        if accuracy is not None:
            log_odds[answer] += log(accuracy * (num_options - 1) / (1 - accuracy))
    best = max(log_odds, key=log_odds.__getitem__)  # of equals, the first: that of the lowest slot
    others = add_in_order(exp(odds - log_odds[best]) for odds in log_odds.values())
    unvoted = num_options - len(answers)
    return Winner(best, 1 / (others + (unvoted * exp(-log_odds[best]) if unvoted else 0.0)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighted(Rule):
    """Accepts the most probable answer if its posterior is high enough; promises nothing.

    All calibration questions are used for reliabilities, except those that certify budgets. Use
    `mosaic.pipelines.rules.calibrated.Calibrated` for a promise.
    """

    calibration: str | Path
    """Calibration answers, a parquet table (`mosaic.pipelines.rules.calibration_file`)."""
    min_posterior: Annotated[float, Limit(above=0, at_most=1)] = 0.8
    """0 (excluded) to 1."""
    num_open_options: NumOptions = 10
    """Assumed: the number of possible answers of a question without options."""
    name: str = "weighted"
    reliabilities: Reliabilities = field(init=False, repr=False, compare=False)
    num_questions: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        Rule.__post_init__(self)
        self._learn(load_calibration_answers(self.calibration))

    def _learn(self, questions: Sequence[CalibrationQuestion]) -> None:
        object.__setattr__(self, "num_questions", len(questions))
        object.__setattr__(self, "reliabilities", learn_reliabilities(questions))

    @property
    def threshold(self) -> float:
        return self.min_posterior

    def winner(self, ballot: Ballot) -> Winner:
        return posterior(ballot, self.reliabilities, self.num_open_options)

    def decided_early(self, ballot: Ballot) -> Decision | None:
        return decided_by_trying(ballot, self.decide)

    def calibration_path(self) -> str:
        return str(self.calibration)

    def learned_without(self, question_ids: Set[str]) -> "Weighted":
        questions = load_calibration_answers(self.calibration)
        left = [question for question in questions if question.id not in question_ids]
        rule = "such that some of its questions do not certify the budgets beside it"
        require(len(left) > 0, f"{self.key}.calibration", rule, str(self.calibration))
        learned = copy(self)
        learned._learn(left)
        return learned

    def notes(self) -> Sequence[str]:
        known = ", ".join(f"{expert} {rate:.2f}" for expert, rate in self.reliabilities.overall.items())
        return (f"weighted by accuracies on {self.num_questions} calibration questions ({known}); promises nothing",)
