"""Defines the final answers of a run: one per question, with its source."""

from collections.abc import Iterable, Mapping
from enum import StrEnum

import msgspec

from mosaic.answers.extraction import Comparison, comparison
from mosaic.core.workload import AnswerKind
from mosaic.pipelines.rules.ballot import Ballot, Decision

Comparisons = Mapping[AnswerKind, Comparison | None]
"""Comparison for each kind of answer; None: such answers cannot be compared."""


class AnswerSource(StrEnum):
    """The source of a final answer."""

    MAJORITY = "majority"
    """The gate's choice among the experts' answers."""
    AGGREGATOR = "aggregator"
    NOT_AGGREGATED = "not_aggregated"
    """As ``MAJORITY``, but the question needed an aggregation and could not be aggregated: not a reliable answer."""


class FinalAnswer(msgspec.Struct, frozen=True, gc=False):
    """A row of answers.parquet."""

    question: str
    answer: str | None
    source: AnswerSource
    confidence: float | None
    votes: tuple[str | None, ...]
    gold: str | None
    correct: bool | None
    """None: there is no gold answer, or no comparison with it."""


class End(msgspec.Struct, frozen=True, gc=False):
    """The end of a question."""

    answer: FinalAnswer
    ballot: Ballot
    """The last votes that a rule decided on; without a rule, the votes of the first layer."""
    decision: Decision
    is_too_long: bool
    """A node was left out because its experts cannot read so many tokens."""


def accuracy_frac(finals: Iterable[FinalAnswer]) -> float | None:
    """Share of right answers among those with a known gold answer; None if there are none."""
    known = [final.correct for final in finals if final.correct is not None]
    return sum(known) / len(known) if known else None


def comparisons(free_text: Comparison | None = None) -> Comparisons:
    """Return the comparison for each kind of answer; for free text, the user's own."""
    return {**{kind: comparison(kind) for kind in AnswerKind}, AnswerKind.TEXT: free_text}
