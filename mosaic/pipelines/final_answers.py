"""What a run answers in the end: one final answer a question, with where it came from."""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from mosaic.answers.extraction import Comparison, is_correct
from mosaic.core.workload import AnswerKind
from mosaic.pipelines.gates.gate import Ballot, Decision

Comparisons = Mapping[AnswerKind, Comparison | None]
"""How answers of each kind compare; None: they cannot."""


class AnswerSource(StrEnum):
    """Who gave a final answer."""

    MAJORITY = "majority"
    """The gate's choice among the experts' answers."""
    AGGREGATOR = "aggregator"


class FinalAnswer(NamedTuple):
    """A row of answers.parquet."""

    question: str
    answer: str | None
    source: AnswerSource
    confidence: float | None
    votes: tuple[str | None, ...]
    gold: str | None
    correct: bool | None
    """None: there is no gold answer, or nothing to compare with it."""


def final_answers(
    ballots: Sequence[Ballot],
    decisions: Sequence[Decision],
    aggregated: Mapping[str, str | None],
    comparisons: Comparisons,
) -> tuple[FinalAnswer, ...]:
    """Put the aggregator's answers, by question, beside those of the gate.

    A question that the aggregator has not answered, because it was skipped, did not fit or its call failed,
    keeps the answer of the gate.
    """
    finals = []
    for ballot, decision in zip(ballots, decisions, strict=True):
        question = ballot.question
        is_aggregated = question.id in aggregated
        answer = aggregated[question.id] if is_aggregated else decision.answer
        finals.append(
            FinalAnswer(
                question=question.id,
                answer=answer,
                source=AnswerSource.AGGREGATOR if is_aggregated else AnswerSource.MAJORITY,
                confidence=decision.confidence,
                votes=tuple(vote.answer for vote in ballot.votes),
                gold=question.answer,
                correct=is_correct(answer, question, comparisons[question.answer_kind]),
            )
        )
    return tuple(finals)


def accuracy_frac(finals: Iterable[FinalAnswer]) -> float | None:
    """Share of right answers among those that can be told; None where none can."""
    known = [final.correct for final in finals if final.correct is not None]
    return sum(known) / len(known) if known else None
