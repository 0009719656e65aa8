"""What a journal says that calls on servers have come to, however they ended."""

import pytest

from mosaic.core.results import CallRecord, CallStatus
from mosaic.core.spending import Payee, Spent, total_of
from mosaic.core.workload import PROPOSE, CallKey
from mosaic.runtime.journal import EndedCall, JournalState, SentCall, Start

HERE = Payee("a", 0)


def sent(slot: int, *, attempt: int = 0, num_requests: int = 1) -> SentCall:
    return SentCall(CallKey("q", PROPOSE, slot), "a", 0, attempt, num_requests, prompt_tokens=900, output_tokens=800)


def ended(slot: int, status: CallStatus, *, attempt: int = 0, admitted_ts: float | None = 1.0) -> EndedCall:
    record = CallRecord(
        key=CallKey("q", PROPOSE, slot), expert="a", session=0, workers=(0,), prompt_tokens=10, output_tokens=5,
        queued_ts=0.0, admitted_ts=admitted_ts, first_token_ts=None, finished_ts=2.0, attempt=attempt, status=status,
    )  # fmt: skip
    return EndedCall(record)


def spent_by(*entries: object) -> Spent:
    state = JournalState()
    for entry in entries:
        state.add(entry, None)
    in_progress = [each.most for each in state.sent.values()]
    assert state.reserved.get(HERE, Spent()) == total_of(in_progress)
    return state.spent.get(HERE, Spent())


FINISHED = (sent(0), ended(0, CallStatus.FINISHED))
KNOWN = Spent(num_requests=1, num_answered=1, prompt_tokens=10, output_tokens=5)


@pytest.mark.parametrize(
    ("entries", "spent"),
    [
        (FINISHED, KNOWN),
        ((sent(0), ended(0, CallStatus.FINISHED, attempt=2)), KNOWN._replace(num_requests=3, num_retries=2)),
        ((sent(0, attempt=4), ended(0, CallStatus.FINISHED, attempt=5)), KNOWN._replace(num_requests=2, num_retries=1)),
        ((sent(0), ended(0, CallStatus.FAILED, attempt=1)), Spent(num_requests=2, num_retries=1)),
        ((sent(0, num_requests=5), ended(0, CallStatus.FAILED, admitted_ts=None)), Spent(5, 4)),
        ((ended(0, CallStatus.FAILED),), Spent()),
        ((sent(0), ended(0, CallStatus.CANCELLED, admitted_ts=None)), Spent()),
        ((sent(0), sent(0), ended(0, CallStatus.FINISHED)), KNOWN._replace(num_requests=2)),
    ],
    ids=["answered", "retried", "later_attempt", "failed", "given_up", "never_sent", "cancelled_in_time", "elsewhere"],
)
def test_a_call_counts_as_it_ended(entries: tuple[object, ...], spent: Spent) -> None:
    assert spent_by(*entries) == spent


def test_a_call_in_progress_counts_nothing_until_its_run_stops() -> None:
    assert spent_by(*FINISHED, sent(1)) == KNOWN


@pytest.mark.parametrize("end", [Start(2.0, 0.0), ended(1, CallStatus.CANCELLED)])
def test_a_call_whose_reply_never_came_counts_as_the_mean_of_the_others_or_else_at_its_most(end: object) -> None:
    assert spent_by(sent(1), end) == Spent(num_requests=1, num_lost=1, prompt_tokens=900, output_tokens=800)
    assert spent_by(*FINISHED, sent(1), end) == KNOWN._replace(
        num_requests=2, num_lost=1, prompt_tokens=20, output_tokens=10
    )
