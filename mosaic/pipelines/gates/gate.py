"""Decides from a question's answers whether the aggregator is needed: the confidence gate.

A question whose answers agree enough keeps the answer that most of its slots gave; all others go on
to the aggregator. Gates differ in what they call confidence, and in where they draw the line.

References
----------
MOSAIC, arXiv 2606.03014, equation 11 and algorithm 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from operator import eq
from typing import NamedTuple, Protocol

from mosaic.core.checks import require, require_number
from mosaic.core.workload import ExpertName, Question

TAU_TOLERANCE = 1e-3
"""How far below tau a fraction may lie: 2/3 written as 0.6667 or 0.667 in a file still means 2/3."""

MAX_TRIED = 1000
"""Ways in which missing votes may come out that are tried."""


class Vote(NamedTuple):
    """The answer of one slot."""

    expert: ExpertName
    answer: str | None
    """None: unparsable, which is its own answer and never agrees with anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ballot:
    """A question's answers, one vote a slot."""

    question: Question
    votes: tuple[Vote, ...]
    """Answers that compare equal carry the same string, that of the lowest slot."""
    comparable: bool
    """False: free text with no comparison; never skipped."""

    def __post_init__(self) -> None:
        if not isinstance(self.votes, tuple):
            object.__setattr__(self, "votes", tuple(self.votes))
        if not self.votes:
            require(False, f"ballot of {self.question.id}: votes", "at least one vote", self.votes)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialBallot:
    """A question's answers so far. A vote that is missing is not one that cannot be parsed: it may yet say anything."""

    ballot: Ballot
    """All votes, a missing one as if it were unparsable, which is one of the ways in which it may come out."""
    missing: tuple[int, ...]
    """Places of the votes that may still come out in any way, in order."""


class Winner(NamedTuple):
    """The answer a gate would return instead of the aggregator's, and how confident it is."""

    answer: str | None
    """None: nothing is parsable, or nothing can be compared."""
    confidence: float
    """A share or a probability, 0 to 1; 0 without an answer."""


class Decision(NamedTuple):
    """What a gate says of one question."""

    skip: bool
    answer: str | None
    """The gate's answer, also where it does not skip; None if nothing is parsable or not comparable."""
    confidence: float | None
    """0 to 1; None where answers cannot be compared."""


class Gate(Protocol):
    """Decides question by question."""

    @property
    def name(self) -> str:
        """Its name in summaries and figures."""

    def decide(self, ballot: Ballot) -> Decision:
        """Decide whether the aggregator may be skipped."""

    def settled(self, partial: PartialBallot) -> Decision | None:
        """Skip as soon as nothing that is missing can change that, or the answer; None: it may, or does not skip.

        Its confidence is then what the missing votes leave at least.
        """

    def notes(self) -> Sequence[str]:
        """Say what a reader should know of the gate itself: what it promises, or why it refuses to skip."""


def make_ballot(question: Question, votes: Sequence[Vote], same: Callable[[str, str], bool] | None) -> Ballot:
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
    if same is None or same is eq:  # equal texts are the same text: nothing to put in its place
        return Ballot(question=question, votes=tuple(votes), comparable=same is not None)
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
    return Ballot(question=question, votes=tuple(grouped), comparable=True)


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


def settled_at(partial: PartialBallot, threshold: float | None) -> Decision | None:
    """Tell whether the plurality skips with one answer however the missing votes come out.

    NOTE: nothing is worse for an answer than all missing votes agreeing on one other, the strongest or a new one.
    What they add to the answer itself only helps it.
    """
    ballot, missing = partial.ballot, partial.missing
    decision = decide_at(ballot, plurality(ballot), threshold)
    if not decision.skip:
        return None
    if not missing:
        return decision
    places: dict[str, list[int]] = {}
    for place, vote in enumerate(ballot.votes):
        if vote.answer is not None:
            places.setdefault(vote.answer, []).append(place)
    assert decision.answer is not None, "it is skipped"
    mine = places.pop(decision.answer)
    rivals = [sorted((*others, *missing)) for others in (*places.values(), ())]
    return decision if all((len(rival), -rival[0]) < (len(mine), -mine[0]) for rival in rivals) else None


def settled_whatever_comes(partial: PartialBallot, decide: Callable[[Ballot], Decision]) -> Decision | None:
    """Tell the same for any way to decide, by trying all ways in which the missing votes may come out.

    Where they are too many to try nothing is settled: the question waits for another vote.
    """
    ballot, missing = partial.ballot, partial.missing
    decision = decide(ballot)
    if not decision.skip:
        return None
    seen = dict.fromkeys(vote.answer for vote in ballot.votes if vote.answer is not None)
    options = [None, *seen, *(f"(other {number})" for number in range(len(missing)))]
    if len(options) ** len(missing) > MAX_TRIED:
        return None
    for said in product(options, repeat=len(missing)):
        votes = list(ballot.votes)
        for place, answer in zip(missing, said, strict=True):
            votes[place] = votes[place]._replace(answer=answer)
        other = decide(replace(ballot, votes=tuple(votes)))
        if not other.skip or other.answer != decision.answer:
            return None
    return decision


@dataclass(frozen=True, slots=True, kw_only=True)
class Never:
    """Aggregates every question; still reports what the slots agreed on."""

    name: str = "never"

    def decide(self, ballot: Ballot) -> Decision:
        return decide_at(ballot, plurality(ballot), None)

    def settled(self, partial: PartialBallot) -> Decision | None:
        return None

    def notes(self) -> Sequence[str]:
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Unanimous:
    """Skips where all slots agree: the paper's conservative point, tau = 1."""

    name: str = "unanimous"

    def decide(self, ballot: Ballot) -> Decision:
        return decide_at(ballot, plurality(ballot), 1.0)

    def settled(self, partial: PartialBallot) -> Decision | None:
        return settled_at(partial, 1.0)

    def notes(self) -> Sequence[str]:
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Majority:
    """Skips where the plurality's share of the slots is at least tau: algorithm 1 of the paper."""

    tau: float = 2 / 3
    """0 (excluded) to 1; compared with a tolerance of 0.001, so that 0.6667 means 2/3."""
    name: str = "majority"

    def __post_init__(self) -> None:
        require_number(self.tau, "gate.tau", above=0)
        require(self.tau <= 1, "gate.tau", "at most 1", self.tau)

    def decide(self, ballot: Ballot) -> Decision:
        return decide_at(ballot, plurality(ballot), self.tau - TAU_TOLERANCE)

    def settled(self, partial: PartialBallot) -> Decision | None:
        return settled_at(partial, self.tau - TAU_TOLERANCE)

    def notes(self) -> Sequence[str]:
        return ()
