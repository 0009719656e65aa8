"""The answers of a question so far, and what a rule makes of them."""

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
    """None: unparsable, which is its own answer and never agrees with anything."""


@lru_cache(1 << 12)
def vote_for(expert: ExpertName, answer: str | None) -> Vote:
    """Make a vote: equal ones are one object, since a large batch has few that differ."""
    return Vote(expert, answer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ballot:
    """A question's answers so far, one vote a slot, and at least one."""

    question: Question
    votes: tuple[Vote, ...]
    """Answers that compare equal carry the same string, that of the lowest slot."""
    comparable: bool
    """False: free text with no comparison; never skipped."""
    pending: tuple[int, ...] = ()
    """Places of votes that may still come out in any way, ascending. Their answers are None until then, which is one
    of the ways in which they may come out."""
    order: tuple[int, ...] = field(default=(), compare=False)
    """Places of the votes that have come, in the order in which they count."""
    records: tuple[CallRecord | None, ...] = field(default=(), compare=False)
    """Of a rule that reads confidences, what each vote was read from; None: a call that did not finish, or has not."""

    def without(self, *places: int) -> "Ballot":
        """Return the ballot as if nothing were known of some votes."""
        votes = (vote._replace(answer=None) if place in places else vote for place, vote in enumerate(self.votes))
        return replace(self, votes=tuple(votes))


class Winner(NamedTuple):
    """The answer a rule would return instead of asking further, and how confident it is."""

    answer: str | None
    """None: nothing is parsable, or nothing can be compared."""
    confidence: float
    """A share or a probability, 0 to 1; 0 without an answer."""


class Decision(NamedTuple):
    """What a rule says of the answers so far."""

    skip: bool
    """The answer stands: no node needs to read the votes."""
    answer: str | None
    """The rule's answer, also where it does not skip; None if nothing is parsable or not comparable."""
    confidence: float | None
    """0 to 1; None where answers cannot be compared."""
    read: tuple[int, ...] = ()
    """Where it does not skip: places of the votes that are enough to read; empty: all of them."""


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

    ``same`` compares two answers; None where nothing can (free text), so that the question is never skipped.

    Examples
    --------
    >>> question = Question(id="q", prompt_tokens=10)
    >>> votes = [Vote("A", "0.5"), Vote("B", "1/2"), Vote("A", None)]
    >>> ballot = make_ballot(question, votes, lambda a, b: {a, b} == {"0.5", "1/2"})
    >>> [vote.answer for vote in ballot.votes]
    ['0.5', '0.5', None]
    """
    if same is not None and same is not eq:  # equal texts are the same text: nothing to put in its place
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
        # NOTE: equality need not be transitive (75% is 75 and 0.75), so a group takes what equals all of it.
        fitting = (group for group in groups if all(known == answer or same(known, answer) for known in group))
        group = next(fitting, None)
        if group is None:
            groups.append(group := [])
        group.append(answer)
        grouped.append(Vote(vote.expert, group[0]))
    return grouped


def plurality(ballot: Ballot) -> Winner:
    """Find the answer of most slots and its share of all slots, C(q) of equation 11; ties go to the lowest slot.

    The share is of all k slots, unparsable ones included; if none is parsable there is no answer and the share is 0.
    """
    answers = [vote.answer for vote in ballot.votes]
    winner, most = None, 0
    for answer in answers if ballot.comparable else ():
        if answer is not None and (number := answers.count(answer)) > most:  # the first of equals
            winner, most = answer, number
    return Winner(winner, most / len(answers))


def decide_at(ballot: Ballot, winner: Winner, threshold: float | None) -> Decision:
    """Skip where there is an answer whose confidence reaches the threshold; None: never."""
    if not ballot.comparable:
        return Decision(False, None, None)
    skip = threshold is not None and winner.answer is not None and winner.confidence >= threshold
    return Decision(skip, *winner)
