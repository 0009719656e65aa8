"""Defines the answers of a question so far, and the decision of a rule on them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from operator import eq
from typing import NamedTuple

from mosaic.core.results import CallRecord
from mosaic.core.workload import ExpertName, Question


class Vote(NamedTuple):
    """The answer of one slot."""

    expert: ExpertName
    answer: str | None
    """None: unparsable; it is a separate answer and never agrees with any other."""


@lru_cache(1 << 12)
def vote_for(expert: ExpertName, answer: str | None) -> Vote:
    """Make a vote; equal votes are one object, since a large batch has few different ones."""
    return Vote(expert, answer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ballot:
    """The answers of a question so far, one vote per slot, and at least one."""

    question: Question
    votes: tuple[Vote, ...]
    """Equal answers are stored as the same string, that of the lowest slot."""
    comparable: bool
    """False: free text without a comparison; never skipped."""
    pending: tuple[int, ...] = ()
    """Indices of votes that are still open, ascending; their answers are None until then.

    None is also one of the possible outcomes.
    """
    order: tuple[int, ...] = field(default=(), compare=False)
    """Indices of the votes that have arrived, in the order in which they count."""
    records: tuple[CallRecord | None, ...] = field(default=(), compare=False)
    """For a rule that reads confidences, the record of each vote; None: a call that failed, or has not ended."""

    def without(self, *places: int) -> "Ballot":
        """Return the ballot without knowledge of some votes."""
        votes = (vote._replace(answer=None) if place in places else vote for place, vote in enumerate(self.votes))
        return replace(self, votes=tuple(votes))


class Winner(NamedTuple):
    """The answer that a rule would return without further calls, and its confidence."""

    answer: str | None
    """None: no answer is parsable, or answers cannot be compared."""
    confidence: float
    """A share or a probability, 0 to 1; 0 without an answer."""


class Decision(NamedTuple):
    """The decision of a rule on the answers so far."""

    skip: bool
    """The answer is final: no node needs to read the votes."""
    answer: str | None
    """The rule's answer, even if it does not skip; None: no answer is parsable or comparable."""
    confidence: float | None
    """0 to 1; None if answers cannot be compared."""
    read: tuple[int, ...] = ()
    """If it does not skip: indices of the votes that are enough to read; empty: all of them."""


def make_ballot(
    question: Question,
    votes: Sequence[Vote],
    same: Callable[[str, str], bool] | None,
    *,
    pending: tuple[int, ...] = (),
    order: tuple[int, ...] = (),
    records: tuple[CallRecord | None, ...] = (),
) -> Ballot:
    """Group equal answers under the first of them.

    ``same`` compares two answers; None if no comparison exists (free text), so that the question is never skipped.

    Examples
    --------
    >>> question = Question(id="q", prompt_tokens=10)
    >>> votes = [Vote("A", "0.5"), Vote("B", "1/2"), Vote("A", None)]
    >>> ballot = make_ballot(question, votes, lambda a, b: {a, b} == {"0.5", "1/2"})
    >>> [vote.answer for vote in ballot.votes]
    ['0.5', '0.5', None]
    """
    if same is not None and same is not eq:  # equal texts need no grouping
        votes = _grouped(votes, same)
    return Ballot(
        question=question,
        votes=tuple(votes),
        comparable=same is not None,
        pending=pending,
        order=order,
        records=records,
    )


def _grouped(votes: Sequence[Vote], same: Callable[[str, str], bool]) -> list[Vote]:
    groups: list[list[str]] = []
    grouped: list[Vote] = []
    for vote in votes:
        answer = vote.answer
        if answer is None:
            grouped.append(vote)
            continue
        # NOTE: equality need not be transitive (75% equals 75 and 0.75), so a new member must equal all of a group.
        fitting = (group for group in groups if all(known == answer or same(known, answer) for known in group))
        group = next(fitting, None)
        if group is None:
            groups.append(group := [])
        group.append(answer)
        grouped.append(Vote(vote.expert, group[0]))
    return grouped


def plurality(ballot: Ballot) -> Winner:
    """Find the answer of most slots and its share of all slots, C(q) of equation 11; ties go to the lowest slot.

    The share is of all k slots, unparsable ones included. If none is parsable there is no answer and the share is 0.
    """
    answers = [vote.answer for vote in ballot.votes]
    winner, most = None, 0
    for answer in answers if ballot.comparable else ():
        if answer is not None and (number := answers.count(answer)) > most:  # the first of equals
            winner, most = answer, number
    return Winner(winner, most / len(answers))


def decide_at(ballot: Ballot, winner: Winner, threshold: float | None) -> Decision:
    """Skip if there is an answer whose confidence reaches the threshold; None: never skip."""
    if not ballot.comparable:
        return _decision(False, None, None)
    skip = threshold is not None and winner.answer is not None and winner.confidence >= threshold
    return _decision(skip, *winner)


@lru_cache(1 << 12)
def _decision(skip: bool, answer: str | None, confidence: float | None) -> Decision:
    """Make a decision that names no votes to read: equal ones are one object, as with votes."""
    return Decision(skip, answer, confidence)
