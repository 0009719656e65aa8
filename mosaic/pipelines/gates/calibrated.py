"""A gate whose loss is promised: the user states what they accept, calibration questions pick the threshold."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from mosaic.core.checks import require, require_count, require_number
from mosaic.pipelines.gates.calibration_answers import CalibrationQuestion, split_calibration
from mosaic.pipelines.gates.calibration_file import load_calibration_answers
from mosaic.pipelines.gates.gate import (
    Ballot,
    Decision,
    PartialBallot,
    Winner,
    decide_at,
    plurality,
    settled_at,
    settled_whatever_comes,
)
from mosaic.pipelines.gates.risk_control import ThresholdChoice, choose_threshold, smallest_promise_frac
from mosaic.pipelines.gates.weighted import Reliabilities, learn_reliabilities, posterior

ConfidenceKind: TypeAlias = Literal["plurality", "weighted"]

POSTERIOR_THRESHOLDS = (0.9999, 0.999, 0.998, 0.995, *(percent / 100 for percent in range(99, 19, -1)))
"""Fixed before any question is seen; in steps of 1 point below 0.99."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """Skips as much as a promise allows, or nothing.

    The promise: if the questions are drawn from the population of the calibration questions, and pool, router and
    aggregator are those of the calibration run, then with probability of at least 1 - risk over calibration runs
    the gate's mean accuracy loss against always aggregating is at most the accepted one.
    """

    calibration: str | Path
    """Calibration answers, a parquet table (`mosaic.pipelines.gates.calibration_answers`)."""
    accepted_loss_frac: float = 0.01
    """Accuracy given up at most, as a share of all questions: 0.01 is 1 pp."""
    risk_frac: float = 0.05
    """Probability that the promise is broken, at most."""
    confidence: ConfidenceKind = "plurality"
    """The plurality's share of the slots, or the posterior of votes weighted by reliability."""
    fit_frac: float = 0.3
    """Share of the questions that may make profiles, lengths and reliabilities; they certify nothing."""
    num_open_options: int = 10
    """Assumed: how many answers a question without options has (weighted confidence)."""
    name: str = "calibrated"
    choice: ThresholdChoice = field(init=False, repr=False, compare=False)
    num_certify: int = field(init=False, repr=False, compare=False)
    num_fit: int = field(init=False, repr=False, compare=False)
    promise_frac: float = field(init=False, repr=False, compare=False)
    """Smallest loss that the questions could promise at the chosen threshold, or else at the first one tested."""
    question_ids: frozenset[str] = field(init=False, repr=False, compare=False)
    """Of all calibration questions; a batch that shares one is no new draw, and nothing is promised for it."""
    reliabilities: Reliabilities | None = field(init=False, repr=False, compare=False)
    """Of weighted confidence, from the questions that certify nothing."""

    def __post_init__(self) -> None:
        require_number(self.accepted_loss_frac, "gate.accepted_loss_frac", at_least=0)
        require(self.accepted_loss_frac < 1, "gate.accepted_loss_frac", "below 1", self.accepted_loss_frac)
        require_number(self.risk_frac, "gate.risk_frac", above=0)
        require(self.risk_frac < 1, "gate.risk_frac", "below 1", self.risk_frac)
        kinds = get_args(ConfidenceKind)
        require(self.confidence in kinds, "gate.confidence", f"one of {list(kinds)}", self.confidence)
        require_number(self.fit_frac, "gate.fit_frac", at_least=0)
        require(self.fit_frac < 1, "gate.fit_frac", "below 1", self.fit_frac)
        require_count(self.num_open_options, "gate.num_open_options", at_least=2)
        self._calibrate(load_calibration_answers(self.calibration))

    def _calibrate(self, questions: Sequence[CalibrationQuestion]) -> None:
        fit, certify = split_calibration(questions, self.fit_frac)
        rule = f"small enough to leave one of {len(questions)} calibration questions to certify"
        require(len(certify) > 0, "gate.fit_frac", rule, self.fit_frac)
        learned = learn_reliabilities(fit) if self.confidence == "weighted" else None
        rule = f"large enough to learn reliabilities from one of {len(questions)} calibration questions"
        require(learned is None or len(fit) > 0, "gate.fit_frac", rule, self.fit_frac)
        object.__setattr__(self, "reliabilities", learned)
        winners = [self.winner(question.ballot) for question in certify]
        scores = np.array([winner.confidence for winner in winners])
        losses = np.array([of.loss_if_skipped(to.answer) for of, to in zip(certify, winners, strict=True)])
        choice = choose_threshold(
            scores,
            losses,
            POSTERIOR_THRESHOLDS if learned else plurality_thresholds({len(of.ballot.votes) for of in certify}),
            accepted_loss_frac=self.accepted_loss_frac,
            risk_frac=self.risk_frac,
        )
        told = choice.tests[0].threshold if choice.threshold is None else choice.threshold
        promise_frac = smallest_promise_frac(np.where(scores >= told, losses, 0), self.risk_frac)
        for name, value in (
            ("choice", choice), ("num_certify", len(certify)), ("num_fit", len(fit)), ("promise_frac", promise_frac),
            ("question_ids", frozenset(question.id for question in questions)),
        ):  # fmt: skip
            object.__setattr__(self, name, value)

    def at(self, threshold: float | None) -> "Calibrated":
        """Return the gate at a threshold that was chosen together with something else."""
        gate = copy(self)
        object.__setattr__(gate, "choice", self.choice._replace(threshold=threshold))
        return gate

    def winner(self, ballot: Ballot) -> Winner:
        """Find the gate's answer and its confidence."""
        if self.reliabilities is None:
            return plurality(ballot)
        return posterior(ballot, self.reliabilities, self.num_open_options)

    def decide(self, ballot: Ballot) -> Decision:
        return decide_at(ballot, self.winner(ballot), self.choice.threshold)

    def settled(self, partial: PartialBallot) -> Decision | None:
        if self.reliabilities is None:
            return settled_at(partial, self.choice.threshold)
        return settled_whatever_comes(partial, self.decide)

    def notes(self) -> Sequence[str]:
        accepted = f"a loss of at most {100 * self.accepted_loss_frac:.4g} pp"
        level = f"at {100 * (1 - self.risk_frac):.4g}% confidence"
        first = self.choice.tests[0]
        if self.choice.threshold is not None:
            skip_frac = next(test.skip_frac for test in self.choice.tests if test.threshold == self.choice.threshold)
            apart = "are set aside" if self.reliabilities is None else "taught the reliabilities"
            return (
                f"calibrated on {self.num_certify} questions ({self.num_fit} more {apart} and certify nothing): "
                f"threshold {self.choice.threshold:.4g} promises {accepted} {level} and skips {skip_frac:.1%} of them",
            )
        could_pp = ceil(1000 * self.promise_frac - 1e-4) / 10  # rounded up, as a promise must be
        could = f"they could promise {could_pp:.1f} pp at threshold {first.threshold:.4g}"
        if first.mean_loss_frac > self.accepted_loss_frac:
            reason = f"{self.num_certify} questions lose {100 * first.mean_loss_frac:.1f} pp, so they cannot promise"
        else:
            reason = f"{self.num_certify} questions are too few to promise"
        return (f"calibrated: {reason} {accepted} {level} ({could}): nothing is skipped",)

    def report(self) -> dict[str, Any]:
        """List the numbers behind the promise, for summary.json."""
        return {
            "threshold": self.choice.threshold,
            "confidence": self.confidence,
            "accepted_loss_frac": self.accepted_loss_frac,
            "risk_frac": self.risk_frac,
            "num_certify": self.num_certify,
            "num_fit": self.num_fit,
            "promise_frac": self.promise_frac,
            "tests": [test._asdict() for test in self.choice.tests],
        }


def plurality_thresholds(nums_slots: set[int]) -> tuple[float, ...]:
    """List the shares that a plurality of so many slots can have, from 1 down.

    Examples
    --------
    >>> [round(share, 3) for share in plurality_thresholds({3})]
    [1.0, 0.667, 0.333]
    """
    return tuple(sorted({votes / slots for slots in nums_slots for votes in range(1, slots + 1)}, reverse=True))
