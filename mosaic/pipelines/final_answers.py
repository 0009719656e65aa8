"""What a run answers in the end: one final answer a question, with where it came from."""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import NamedTuple

from mosaic.answers.extraction import Comparison, comparison
from mosaic.core.workload import AnswerKind
from mosaic.pipelines.rules.ballot import Ballot, Decision

Comparisons = Mapping[AnswerKind, Comparison | None]
"""How answers of each kind compare; None: they cannot."""


class AnswerSource(StrEnum):
    """Who gave a final answer."""

    MAJORITY = "majority"
    """The gate's choice among the experts' answers."""
    AGGREGATOR = "aggregator"
    NOT_AGGREGATED = "not_aggregated"
    """As ``MAJORITY``, but the question was to be aggregated and could not be: no answer that anybody stands for."""


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


class End(NamedTuple):
    """How a question ended."""

    answer: FinalAnswer
    ballot: Ballot
    """What a rule saw last; without a rule, the votes of the first layer."""
    decision: Decision
    is_too_long: bool
    """A node was left out because its experts cannot read so much."""


def accuracy_frac(finals: Iterable[FinalAnswer]) -> float | None:
    """Share of right answers among those that can be judged; None where none can."""
    known = [final.correct for final in finals if final.correct is not None]
    return sum(known) / len(known) if known else None


def comparisons(free_text: Comparison | None = None) -> Comparisons:
    """Say how answers of each kind compare; free text only by a comparison of the user's own."""
    return {**{kind: comparison(kind) for kind in AnswerKind}, AnswerKind.TEXT: free_text}
