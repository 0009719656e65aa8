"""Tabulates the most that a gate with budgets loses on calibration questions, under any schedule, as arrays."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mosaic.pipelines.budgets import LEAST_HEDGED
from mosaic.pipelines.rules.ballot import Ballot, Winner
from mosaic.pipelines.rules.calibration_answers import CalibrationQuestion

NO_LIMIT = np.iinfo(np.int64).max


class BudgetSetting(NamedTuple):
    """The threshold of a gate, and token budgets that are the same for all experts; None: no budget."""

    threshold: float | None
    """Lowest confidence at which the gate's answer is accepted; None: every question is aggregated."""
    propose_tokens: int | None = None
    aggregate_tokens: int | None = None
    hedge_tokens: int | None = None


class _Ends(NamedTuple):
    """Ends of questions, shape (num_questions,) each."""

    column: NDArray[np.int64]
    """The response that is left out: 0 none, 1 that of slot 0 and so on."""
    is_read: NDArray[np.bool_]
    """The aggregator reads the responses."""
    is_late: NDArray[np.bool_]
    """The response that is left out is a straggler's."""
    is_right: NDArray[np.bool_]
    """Right in each possible outcome."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LossTable:
    """Calibration questions, and the effect of leaving out each response; column 0 leaves out none."""

    tokens: NDArray[np.int64]
    """Of the proposals, shape (num_questions, num_slots); 0 if a question has no such slot."""
    num_slots: NDArray[np.int64]
    """Of each question, shape (num_questions,)."""
    confidence: NDArray[np.float64]
    """Of the gate's answer without one vote, shape (num_questions, 1 + num_slots); -1: there is no answer."""
    vote_right: NDArray[np.bool_]
    """Whether this answer is right, of the same shape."""
    slot_right: NDArray[np.bool_]
    """Whether the answer of a slot is right, shape (num_questions, num_slots)."""
    read_right: NDArray[np.bool_]
    """Whether the aggregator is right without one response, shaped as ``confidence``."""
    read_tokens: NDArray[np.int64]
    """Tokens that the aggregator writes then, of the same shape."""

    def __len__(self) -> int:
        return len(self.num_slots)

    def take(self, places: NDArray[Any]) -> "LossTable":
        """Select questions; the same one may be selected more than once."""
        return LossTable(**{field.name: getattr(self, field.name)[places] for field in fields(self)})

    def losses(self, setting: BudgetSetting) -> NDArray[np.int8]:
        """Compute the most that each question loses against always aggregating whole responses: -1, 0 or 1."""
        return self.read_right[:, 0].astype(np.int8) - self._ends(setting).is_right.astype(np.int8)

    def written_tokens(self, setting: BudgetSetting) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Estimate each question's output tokens in all, and along its longest chain, with an early quorum."""
        _, propose, aggregate, hedge = setting
        ends = self._ends(setting)
        rows = np.arange(len(self))
        propose_tokens = np.minimum(self.tokens, _limit(propose))
        late = np.flatnonzero(ends.is_late)
        slots = ends.column[late] - 1
        propose_tokens[late, slots] = np.minimum(propose_tokens[late, slots], _limit(hedge))
        longest = propose_tokens.argmax(axis=1)
        spared = np.flatnonzero(self._accepts(setting.threshold)[rows, 1 + longest])
        others = propose_tokens.copy()
        others[rows, longest] = 0
        propose_tokens[spared, longest[spared]] = others[spared].max(axis=1)
        read = np.minimum(self.read_tokens[rows, ends.column], _limit(aggregate)) * ends.is_read
        return propose_tokens.sum(axis=1) + read, propose_tokens.max(axis=1) + read

    def _accepts(self, threshold: float | None) -> NDArray[np.bool_]:
        accepted: NDArray[np.bool_] = self.confidence >= (np.inf if threshold is None else threshold)
        return accepted

    def _ends(self, setting: BudgetSetting) -> _Ends:
        threshold, propose, aggregate, hedge = setting
        rows, accepts = np.arange(len(self)), self._accepts(threshold)
        after_read = np.where(self.read_tokens > _limit(aggregate), self.vote_right, self.read_right)
        cut = self.tokens > _limit(propose)
        num_cut = cut.sum(axis=1)
        column = np.where(num_cut == 1, 1 + cut.argmax(axis=1), 0)
        is_read = ~accepts[rows, column]
        is_right = np.where(is_read, after_read[rows, column], self.vote_right[rows, column])
        # A single remaining response becomes the answer. If more than one is cut, the aggregator's answer from the
        # others is not known: it counts as wrong.
        is_one_left = (num_cut > 0) & (num_cut == self.num_slots - 1)
        is_read = (is_read | (num_cut > 1)) & ~is_one_left
        is_right &= num_cut <= 1
        is_right = np.where(is_one_left, (self.slot_right & ~cut).any(axis=1), is_right)
        over = (self.tokens > _limit(hedge)) | cut
        of_one = 1 + over.argmax(axis=1)
        is_late = (over.sum(axis=1) == 1) & (self.num_slots >= LEAST_HEDGED) & ~accepts[rows, of_one]
        is_late &= hedge is not None
        may_count = (num_cut == 0) & accepts[:, 0]
        late_right = after_read[rows, of_one] & (~may_count | self.vote_right[:, 0])
        return _Ends(
            column=np.where(is_late, of_one, column),
            is_read=is_read | is_late,
            is_late=is_late,
            is_right=np.where(is_late, late_right, is_right),
        )


def loss_table(questions: Sequence[CalibrationQuestion], winner: Callable[[Ballot], Winner]) -> LossTable:
    """Tabulate questions with observed lengths and observed answers without each response.

    Parameters
    ----------
    questions
        In the order of the table's rows.
    winner
        Finds the answer that the gate would return for a ballot, and its confidence.
    """
    most = max(len(question.ballot.votes) for question in questions)
    shape = len(questions), 1 + most
    table = LossTable(
        tokens=np.zeros((len(questions), most), dtype=np.int64),
        num_slots=np.array([len(question.ballot.votes) for question in questions], dtype=np.int64),
        confidence=np.full(shape, -1.0),
        vote_right=np.zeros(shape, dtype=np.bool_),
        slot_right=np.zeros((len(questions), most), dtype=np.bool_),
        read_right=np.zeros(shape, dtype=np.bool_),
        read_tokens=np.zeros(shape, dtype=np.int64),
    )
    for row, question in enumerate(questions):
        seen = question.observed
        assert seen, "its lengths are known"
        table.tokens[row, : len(seen)] = [one.output_tokens for one in seen]
        table.slot_right[row, : len(seen)] = question.vote_correct
        reads = [(question.aggregator_correct, seen[0].aggregator_tokens)]
        reads += [(one.left_out_correct, one.left_out_tokens) for one in seen]
        for column, (is_right, tokens) in enumerate(reads):
            ballot = question.ballot.without(column - 1) if column else question.ballot
            answer, confidence = winner(ballot)
            table.confidence[row, column] = -1.0 if answer is None else confidence
            table.vote_right[row, column] = question.answer_correct(answer)
            table.read_right[row, column] = is_right
            table.read_tokens[row, column] = tokens
    return table


def _limit(tokens: int | None) -> int:
    return NO_LIMIT if tokens is None else tokens
