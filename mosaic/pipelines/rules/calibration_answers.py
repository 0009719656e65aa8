"""Answers to calibration questions, with the aggregator's answers: the training data of rules.

A run with gate=never produces them, so that every question has the aggregator's answer.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import NamedTuple

from mosaic.answers.extraction import is_correct
from mosaic.core.checks import require
from mosaic.core.results import CallRecord
from mosaic.pipelines.rules.ballot import Ballot, plurality


class Observed(NamedTuple):
    """The length of a vote's call, and the aggregator's answer to the question without its response."""

    output_tokens: int
    aggregator_tokens: int
    """Of the aggregator with all responses."""
    left_out_answer: str | None
    """None: unparsable."""
    left_out_correct: bool
    left_out_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationQuestion:
    """A question, the votes of its slots and the aggregator's answer, all of them graded."""

    ballot: Ballot
    vote_correct: tuple[bool, ...]
    """In the order of the ballot's votes."""
    aggregator_answer: str | None
    """None: unparsable."""
    aggregator_correct: bool
    observed: tuple[Observed, ...] = ()
    """In the order of the ballot's votes; empty: the run did not leave out each response in turn."""

    def __post_init__(self) -> None:
        label = f"calibration question {self.ballot.question.id}"
        object.__setattr__(self, "vote_correct", tuple(self.vote_correct))
        num_votes = len(self.ballot.votes)
        require(
            len(self.vote_correct) == num_votes, f"{label}: vote_correct", f"of {num_votes} votes", self.vote_correct
        )
        grades: dict[str, bool] = {}
        for vote, correct in zip(self.ballot.votes, self.vote_correct, strict=True):
            if vote.answer is None:
                require(not correct, f"{label}: correct", "false for an unparsable answer", correct)
            elif self.ballot.comparable:
                same = grades.setdefault(vote.answer, correct) == correct
                require(same, f"{label}: correct", f"the same for all votes for {vote.answer!r}", self.vote_correct)
        unparsable = self.aggregator_answer is None and self.aggregator_correct
        require(
            not unparsable, f"{label}: aggregator_correct", "false for an unparsable answer", self.aggregator_correct
        )

    @property
    def id(self) -> str:
        return self.ballot.question.id

    @property
    def majority_correct(self) -> bool:
        """Whether the plurality answer is right; False if there is none."""
        return self.answer_correct(plurality(self.ballot).answer)

    def answer_correct(self, answer: str | None) -> bool:
        """Return whether one of the ballot's answers is right."""
        votes = zip(self.ballot.votes, self.vote_correct, strict=True)
        return answer is not None and any(correct for vote, correct in votes if vote.answer == answer)

    def loss_if_skipped(self, answer: str | None) -> int:
        """Compute the loss of returning this answer instead of the aggregator's: -1, 0 or 1."""
        return int(self.aggregator_correct) - int(self.answer_correct(answer))


def grade_ballot(
    ballot: Ballot, aggregator_answer: str | None, same: Callable[[str, str], bool]
) -> CalibrationQuestion:
    """Grade a ballot and the aggregator's answer against the gold answer, which must be known."""
    question = ballot.question
    return CalibrationQuestion(
        ballot=ballot,
        vote_correct=tuple(bool(is_correct(vote.answer, question, same)) for vote in ballot.votes),
        aggregator_answer=aggregator_answer,
        aggregator_correct=bool(is_correct(aggregator_answer, question, same)),
    )


def with_observed(
    graded: CalibrationQuestion,
    votes: Sequence[CallRecord],
    aggregator: CallRecord,
    left_out: Sequence[CallRecord],
    same: Callable[[str, str], bool],
) -> CalibrationQuestion:
    """Add lengths, and the aggregator's answers without each of the responses in turn, by slot."""
    question, whole_tokens = graded.ballot.question, aggregator.output_tokens
    observed = [
        Observed(
            vote.output_tokens,
            whole_tokens,
            without.answer,
            bool(is_correct(without.answer, question, same)),
            without.output_tokens,
        )
        for vote, without in zip(votes, left_out, strict=True)
    ]
    return replace(graded, observed=tuple(observed))


def split_calibration(
    questions: Iterable[CalibrationQuestion], fit_frac: float
) -> tuple[tuple[CalibrationQuestion, ...], tuple[CalibrationQuestion, ...]]:
    """Split into a part for fitting and a part that certifies, by a hash of the question's id.

    Router profiles, lengths and reliabilities may be made from the first part, which certifies nothing. The part of a
    question does not depend on the other questions. Both parts are in the order of the hash, which acts as a shuffle. A
    file sorted by subject must not be read subject by subject. ``fit_frac`` is the expected share of the first part, 0
    to 1 (excluded).
    """
    given = tuple(questions)
    fit, certify = split_places([question.id for question in given], fit_frac)
    return tuple(given[place] for place in fit), tuple(given[place] for place in certify)


def split_places(ids: Sequence[str], fit_frac: float) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Split the indices of questions with these ids as ``split_calibration`` does: for fitting, and for certifying.

    Examples
    --------
    >>> split_places(["q0", "q1", "q2", "q3"], 0.5)
    ((2,), (3, 1, 0))
    """
    ordered = sorted(range(len(ids)), key=lambda place: (_hash_frac(ids[place]), ids[place]))
    num_fit = sum(_hash_frac(name) < fit_frac for name in ids)
    return tuple(ordered[:num_fit]), tuple(ordered[num_fit:])


def _hash_frac(question: str) -> float:
    """Map an id to 0..1, the same on every machine."""
    digest = blake2b(question.encode(), digest_size=6, person=b"calibration").digest()
    return int.from_bytes(digest, "big") / 2**48
