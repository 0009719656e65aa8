"""A rule with a promised loss: the user states the accepted loss, and calibration questions choose the threshold."""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mosaic.core.checks import Limit, require
from mosaic.pipelines.risk_control import SettingTest, fixed_sequence, smallest_promise_frac
from mosaic.pipelines.rules.ballot import Ballot, Decision, Winner, plurality
from mosaic.pipelines.rules.calibration_answers import CalibrationQuestion, split_calibration
from mosaic.pipelines.rules.calibration_file import load_calibration_answers
from mosaic.pipelines.rules.rule import Promised, Rule, Scope, decided_by_plurality, decided_by_trying
from mosaic.pipelines.rules.weighted import NumOptions, Reliabilities, learn_reliabilities, posterior

ConfidenceKind: TypeAlias = Literal["plurality", "weighted"]

POSTERIOR_THRESHOLDS = (0.9999, 0.999, 0.998, 0.995, *(percent / 100 for percent in range(99, 19, -1)))
"""Fixed before any question is seen; in steps of 1 point below 0.99."""
BUDGETED_POSTERIORS = (0.999, 0.99, 0.98, 0.95, *(percent / 100 for percent in range(90, 39, -5)))
"""Thresholds tried with budgets; fixed before any question is seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated(Rule):
    """Accepts as many answers as a promise allows, or none.

    The promise holds under two conditions. The questions are drawn from the population of the calibration questions.
    Pool, router and aggregator are those of the calibration run. Then the rule's mean accuracy loss against aggregating
    every question is at most the accepted one. This holds with probability of at least 1 - risk over calibration runs.
    """

    calibration: str | Path
    """Calibration answers, a parquet table (`mosaic.pipelines.rules.calibration_file`)."""
    accepted_loss_frac: Annotated[float, Limit(at_least=0, below=1)] = 0.01
    """Largest accepted loss of accuracy, as a share of all questions: 0.01 is 1 pp."""
    risk_frac: Annotated[float, Limit(above=0, below=1)] = 0.05
    """Largest probability that the promise is broken."""
    confidence: ConfidenceKind = "plurality"
    """The plurality's share of the slots, or the posterior of votes weighted by reliability."""
    fit_frac: Annotated[float, Limit(at_least=0, below=1)] = 0.3
    """Share of the questions for profiles, lengths and reliabilities; they are not used to certify."""
    num_open_options: NumOptions = 10
    """Assumed: the number of possible answers of a question without options (weighted confidence)."""
    name: str = "calibrated"
    chosen: float | None = field(init=False, repr=False, compare=False)
    """The threshold; None: not even the most conservative one can be promised, so no answer is accepted."""
    tests: tuple[SettingTest[float], ...] = field(init=False, repr=False, compare=False)
    skip_fracs: tuple[float, ...] = field(init=False, repr=False, compare=False)
    """Of the questions that certify, by test."""
    num_certify: int = field(init=False, repr=False, compare=False)
    num_fit: int = field(init=False, repr=False, compare=False)
    promise_frac: float = field(init=False, repr=False, compare=False)
    """Smallest loss that the questions could promise at the chosen threshold, or else at the first one tested."""
    question_ids: frozenset[str] = field(init=False, repr=False, compare=False)
    """Ids of all calibration questions."""
    reliabilities: Reliabilities | None = field(init=False, repr=False, compare=False)
    """For weighted confidence, from the questions that do not certify."""

    def __post_init__(self) -> None:
        Rule.__post_init__(self)
        rule = "question, whose answers it is calibrated on, not one node's"
        require(self.scope is not Scope.NODE, "exit.scope", rule, self.scope)
        self._calibrate(load_calibration_answers(self.calibration, f"{self.key}.calibration"))

    def _calibrate(self, questions: Sequence[CalibrationQuestion]) -> None:
        fit, certify = split_calibration(questions, self.fit_frac)
        rule = f"small enough to leave one of {len(questions)} calibration questions to certify"
        require(len(certify) > 0, f"{self.key}.fit_frac", rule, self.fit_frac)
        learned = learn_reliabilities(fit) if self.confidence == "weighted" else None
        rule = f"large enough to learn reliabilities from one of {len(questions)} calibration questions"
        require(learned is None or len(fit) > 0, f"{self.key}.fit_frac", rule, self.fit_frac)
        object.__setattr__(self, "reliabilities", learned)
        thresholds = POSTERIOR_THRESHOLDS if learned else plurality_thresholds({len(of.ballot.votes) for of in certify})
        scores, losses_at = score(certify, self.winner)
        chosen, tests = fixed_sequence(thresholds, losses_at, self.accepted_loss_frac, self.risk_frac)
        named = tests[0].setting if chosen is None else chosen
        for name, value in (
            ("chosen", chosen),
            ("tests", tests),
            ("skip_fracs", tuple(float((scores >= test.setting).mean()) for test in tests)),
            ("num_certify", len(certify)),
            ("num_fit", len(fit)),
            ("promise_frac", smallest_promise_frac(losses_at(named), self.risk_frac)),
            ("question_ids", frozenset(question.id for question in questions)),
        ):
            object.__setattr__(self, name, value)

    @property
    def threshold(self) -> float | None:
        return self.chosen

    def winner(self, ballot: Ballot) -> Winner:
        if self.reliabilities is None:
            return plurality(ballot)
        return posterior(ballot, self.reliabilities, self.num_open_options)

    def decided_early(self, ballot: Ballot) -> Decision | None:
        if self.reliabilities is None:
            return decided_by_plurality(ballot, self.threshold)
        return decided_by_trying(ballot, self.decide)

    def promise(self) -> Promised:
        return Promised(
            calibration=str(self.calibration),
            accepted_loss_frac=self.accepted_loss_frac,
            risk_frac=self.risk_frac,
            fit_frac=self.fit_frac,
            question_ids=self.question_ids,
            is_given=self.chosen is not None,
        )

    def thresholds(self, num_votes: set[int]) -> tuple[float | None, ...]:
        return (None, *(BUDGETED_POSTERIORS if self.reliabilities else plurality_thresholds(num_votes)))

    def at(self, threshold: float | None) -> "Calibrated":
        rule = copy(self)
        object.__setattr__(rule, "chosen", threshold)
        return rule

    def notes(self) -> Sequence[str]:
        accepted = f"a loss of at most {100 * self.accepted_loss_frac:.4g} pp"
        level = f"at {100 * (1 - self.risk_frac):.4g}% confidence"
        if self.chosen is not None:
            number = next(number for number, test in enumerate(self.tests) if test.setting == self.chosen)
            apart = "are set aside" if self.reliabilities is None else "taught the reliabilities"
            return (
                f"calibrated on {self.num_certify} questions ({self.num_fit} more {apart} and certify nothing): "
                f"threshold {self.chosen:.4g} promises {accepted} {level} and skips {self.skip_fracs[number]:.1%} of "
                "them",
            )
        first = self.tests[0]
        could_pp = ceil(1000 * self.promise_frac - 1e-4) / 10  # rounded up, as a promise must be
        could = f"they could promise {could_pp:.1f} pp at threshold {first.setting:.4g}"
        if first.mean_loss_frac > self.accepted_loss_frac:
            reason = f"{self.num_certify} questions lose {100 * first.mean_loss_frac:.1f} pp, so they cannot promise"
        else:
            reason = f"{self.num_certify} questions are too few to promise"
        return (f"calibrated: {reason} {accepted} {level} ({could}): nothing is skipped",)

    def report(self) -> dict[str, Any]:
        return {
            "threshold": self.chosen,
            "confidence": self.confidence,
            "accepted_loss_frac": self.accepted_loss_frac,
            "risk_frac": self.risk_frac,
            "num_certify": self.num_certify,
            "num_fit": self.num_fit,
            "promise_frac": self.promise_frac,
            "tests": [
                {
                    "threshold": test.setting,
                    "skip_frac": skip_frac,
                    "mean_loss_frac": test.mean_loss_frac,
                    "p_value": test.p_value,
                }
                for test, skip_frac in zip(self.tests, self.skip_fracs, strict=True)
            ],
        }


def score(
    questions: Sequence[CalibrationQuestion], winner: Callable[[Ballot], Winner]
) -> tuple[NDArray[np.float64], Callable[[float], NDArray[np.int8]]]:
    """Score calibration questions by a rule's confidence; returns the scores, and the losses under a threshold.

    The loss of an accepted question is aggregator right minus the rule's answer right, -1, 0 or 1; of other questions
    it is 0.
    """
    winners = [winner(question.ballot) for question in questions]
    scores = np.array([winner.confidence for winner in winners])
    pairs = zip(questions, winners, strict=True)
    losses = np.array([question.loss_if_skipped(winner.answer) for question, winner in pairs], dtype=np.int8)
    return scores, lambda threshold: np.where(scores >= threshold, losses, np.int8(0))


def plurality_thresholds(num_votes: set[int]) -> tuple[float, ...]:
    """List the possible shares of a plurality among so many slots, from 1 down.

    Examples
    --------
    >>> [round(share, 3) for share in plurality_thresholds({3})]
    [1.0, 0.667, 0.333]
    """
    return tuple(sorted({votes / slots for slots in num_votes for votes in range(1, slots + 1)}, reverse=True))
