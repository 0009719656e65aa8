"""Tests whether a promise applies to a run: whether its questions vote like the calibration questions."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import inf
from operator import attrgetter
from typing import Any, NamedTuple

from mosaic.core.results import CallRecord, CallStatus
from mosaic.core.workload import PROPOSE
from mosaic.pipelines.budget_choice import Calibration
from mosaic.pipelines.budgets import LEAST_HEDGED, Budgets
from mosaic.pipelines.call_graph import CallGraph
from mosaic.pipelines.final_answers import accuracy_frac
from mosaic.pipelines.rules.ballot import Ballot, Vote, make_ballot
from mosaic.pipelines.rules.calibration_answers import CalibrationQuestion
from mosaic.pipelines.rules.calibration_file import load_calibration_answers
from mosaic.pipelines.rules.rule import Rule
from mosaic.pipelines.vote_patterns import (
    EARLY,
    LEVEL,
    PatternTest,
    compare_patterns,
    may_be_early,
    vote_pattern,
)
from mosaic.pipelines.walk import vote_of
from mosaic.runtime.job import Job, Outcome

WHOLE = (CallStatus.FINISHED, CallStatus.FAILED)
"""Statuses of calls that were not stopped."""
NUM_NAMED = 3
"""Number of patterns that a withdrawn promise lists."""


class Promise(NamedTuple):
    """A promised loss of accuracy against aggregating every question, with the loss of the run."""

    accepted_loss_frac: float
    votes: PatternTest
    lost_frac: float | None
    """The loss of this batch; None: only a simulation knows it."""

    @property
    def is_broken(self) -> bool | None:
        """Whether the batch lost more than promised; None: not known."""
        return None if self.lost_frac is None else self.lost_frac > self.accepted_loss_frac

    def report(self) -> dict[str, Any]:
        """List its numbers, for summary.json."""
        return {
            "is_withdrawn": self.votes.differs,
            "p_value": self.votes.p_value,
            "calibration_votes": dict(sorted(self.votes.calibration.items())),
            "batch_votes": dict(sorted(self.votes.batch.items())),
            "is_broken": self.is_broken,
            "lost_frac": self.lost_frac,
            "accepted_loss_frac": self.accepted_loss_frac,
        }

    def withdrawal(self) -> str:
        """Explain why nothing is promised."""
        return (
            "promise WITHDRAWN: the votes differ from those of the calibration questions "
            f"(p = {self.votes.p_value:.2g}, below {LEVEL:g}): {self.votes.largest_differences(NUM_NAMED)}. The gate "
            "was used as calibrated, and its loss here has no bound"
        )


def promise_of(job: Job, calibration: Calibration | None, outcome: Outcome) -> Promise | None:
    """Compare the promise with the run; None: nothing was promised."""
    graph = job.graph
    promised = graph.rule.promise() if calibration is None else calibration.promise()
    if promised is None or not promised.is_given:
        return None
    is_early = job.is_cancelling
    questions = load_calibration_answers(promised.calibration)
    votes = compare_patterns(
        calibration_patterns(questions, graph.rule, graph.budgets, is_early=is_early),
        batch_patterns(graph, outcome, is_early=is_early),
    )
    made, always = accuracy_frac(outcome.answers or ()), outcome.always.accuracy_frac
    return Promise(promised.accepted_loss_frac, votes, None if made is None or always is None else always - made)


def calibration_patterns(
    questions: Sequence[CalibrationQuestion], rule: Rule, budgets: Budgets, *, is_early: bool
) -> Iterator[str]:
    """Return the comparable vote patterns of calibration questions.

    Parameters
    ----------
    questions
        All questions of the file.
    rule, budgets
        The run's.
    is_early
        Whether the run cancels calls whose votes no longer matter: see ``mosaic.pipelines.vote_patterns``.
    """
    for question in questions:
        ballot, seen = question.ballot, question.observed
        lost = _lost_votes(budgets, ballot, [one.output_tokens for one in seen]) if seen else {}
        votes = tuple(lost.get(place, vote) for place, vote in enumerate(ballot.votes))
        if ballot.comparable:
            yield _pattern(replace(ballot, votes=votes), rule, is_whole=not lost, is_early=is_early)


def batch_patterns(graph: CallGraph, outcome: Outcome, *, is_early: bool) -> Iterator[str]:
    """Return the comparable vote patterns of a batch's questions; ``is_early`` as above."""
    first: dict[str, list[CallRecord]] = defaultdict(list)
    for record in outcome.result.calls:
        if record.key.node in graph.first_nodes:
            first[record.key.question].append(record)
    for ballot in outcome.ballots:
        question, records = ballot.question, sorted(first[ballot.question.id], key=attrgetter("key"))
        done = {record.key: record for record in records}
        late = graph.budgets.straggler({key: one.expert for key, one in done.items()}, done)
        if graph.rule.is_exit or late is not None:  # otherwise it has the same votes as calibration questions
            votes = [Vote(record.expert, None if record.key == late else vote_of(record)) for record in records]
            ballot = make_ballot(question, votes, graph.compare[question.answer_kind])
        is_whole = late is None and all(record.status in WHOLE for record in records)
        if ballot.comparable:
            yield _pattern(ballot, graph.rule, is_whole=is_whole, is_early=is_early)


def _pattern(ballot: Ballot, rule: Rule, *, is_whole: bool, is_early: bool) -> str:
    """Describe the reliable votes, unless a schedule could have hidden one of them."""
    return EARLY if is_early and (not is_whole or may_be_early(rule, ballot)) else vote_pattern(ballot)


def _lost_votes(budgets: Budgets, ballot: Ballot, tokens: Sequence[int]) -> dict[int, Vote]:
    """Return the votes that budgets leave out, or may leave out, by index: of cut calls, and of a straggler."""
    cuts = budgets.cut_tokens.get(PROPOSE, {})
    pairs = list(enumerate(zip(ballot.votes, tokens, strict=True)))
    cut = {place for place, (vote, number) in pairs if number > cuts.get(vote.expert, inf)}
    over = {place for place, (vote, number) in pairs if number > budgets.hedge_tokens.get(vote.expert, inf)} | cut
    late = over if len(over) == 1 and len(pairs) >= LEAST_HEDGED else set()
    return {place: ballot.votes[place]._replace(answer=None) for place in cut | late}


def gate_notes(graph: CallGraph, calibration: Calibration | None, promise: Promise | None) -> Sequence[str]:
    """Report what the gate promises, or that the promise is withdrawn; with budgets the promise covers both."""
    if promise is not None and promise.votes.differs:
        return (promise.withdrawal(),)
    if calibration is not None:
        return calibration.notes()
    return graph.rule.notes() if graph.upper_nodes else ()
