"""How far a question is on its way through a call graph: plain values."""

from collections.abc import Sequence
from typing import NamedTuple

from mosaic.core.results import CallStatus, Inputs
from mosaic.core.workload import Call, CallKey
from mosaic.pipelines.final_answers import AnswerSource, FinalAnswer
from mosaic.pipelines.gates.gate import Ballot, Decision


class Step(NamedTuple):
    """What a question needs now."""

    submit: tuple[Call, ...] = ()
    cancel: tuple[CallKey, ...] = ()
    """Calls that have not ended and whose answers no longer matter; who does not cancel them waits for them."""
    answer: FinalAnswer | None = None
    """None: calls are still to come."""


class Forecast(NamedTuple):
    """A call that a question is expected to need."""

    call: Call
    probability: float


class End(NamedTuple):
    """How a question ended."""

    answer: FinalAnswer
    ballot: Ballot
    """What the last gate saw; without one, the votes of the first layer."""
    decision: Decision
    is_too_long: bool
    """A node was left out because its expert cannot read so much."""


class Progress(NamedTuple):
    """How far a question is: all that follows from what has ended of its calls."""

    merges: tuple[Call, ...]
    """Calls behind the first layer, whether they have ended or not."""
    submit: tuple[Call, ...]
    """Calls that are needed and have not ended."""
    is_over: bool
    last: tuple[CallKey, ...]
    """Calls of the last node that ran behind the first layer."""
    ballot: Ballot | None
    decision: Decision | None
    """Of the last gate that was asked."""
    is_settled: bool
    """It accepted what the last node's calls agree on."""
    is_too_long: bool

    def source(self, decision: Decision, done: Inputs) -> AnswerSource:
        """Tell who gives the final answer of a question that is over."""
        statuses = {done[key].status for key in self.last}
        if CallStatus.FINISHED in statuses:
            return AnswerSource.AGGREGATOR
        if CallStatus.FAILED in statuses or (self.is_too_long and not decision.skip):
            return AnswerSource.NOT_AGGREGATED
        return AnswerSource.MAJORITY


def expected_calls(expected: Sequence[Forecast], nodes: set[str]) -> tuple[Call, ...]:
    """Pick as many calls of some nodes as are expected: one whenever the probabilities add up to the next whole number.

    Examples
    --------
    >>> likely = [Forecast(Call(CallKey(f"q{i}", "aggregate", 0), "A", 10), 0.4) for i in range(5)]
    >>> [call.key.question for call in expected_calls(likely, {"aggregate"})]
    ['q1', 'q3']
    """
    picked, total = [], 0.5
    for call, probability in expected:
        if call.key.node in nodes:
            whole, total = int(total), total + probability
            if int(total) > whole:
                picked.append(call)
    return tuple(picked)
