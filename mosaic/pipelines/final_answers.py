"""What a run answers in the end: one final answer a question, with where it came from."""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import NamedTuple

from mosaic.answers.extraction import Comparison
from mosaic.core.workload import AnswerKind

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


def accuracy_frac(finals: Iterable[FinalAnswer]) -> float | None:
    """Share of right answers among those that can be told; None where none can."""
    known = [final.correct for final in finals if final.correct is not None]
    return sum(known) / len(known) if known else None
