from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

import mosaic
from mosaic.core.errors import BackendError
from mosaic.core.realization import Outcome
from mosaic.core.results import CallRecord, CallStatus, Inputs, LostWorker, RunResult
from mosaic.core.workload import AGGREGATE, PROPOSE, Call, CallKey
from mosaic.runtime.auditing import Unskipped, answer_unskipped
from tests.answered_questions import make_moa
from tests.run_records import make_failed, make_record
from tests.runtime.jobs import Told, make_job, make_questions

FIRST = [CallKey("agreed", PROPOSE, slot) for slot in range(3)]
LAST = CallKey("agreed", AGGREGATE, 0)


@dataclass(frozen=True)
class Listed(Told):
    """A world that lists the calls that are sent."""

    sent: list[Call] = field(default_factory=list)

    def outcome(self, call: Call, inputs: Inputs) -> Outcome:
        self.sent.append(call)
        return super().outcome(call, dict.fromkeys(call.after, make_record()))


def audit(world: Listed, third: CallRecord | None) -> tuple[Unskipped, list[CallKey]]:
    """Audit a question whose first two calls have finished; gives what was sent too."""
    done = {key: make_record(key=key, expert="ABC"[key.slot], answer="A") for key in FIRST[:2]}
    job = make_job(world=world)
    unskipped = answer_unskipped(job, ["agreed"], {**done, **({} if third is None else {FIRST[2]: third})})
    return unskipped["agreed"], list(dict.fromkeys(call.key for call in world.sent))


def test_a_skipped_question_that_the_aggregator_cannot_read_counts_as_one_that_nobody_knows() -> None:
    job = make_job(make_moa(), questions=make_questions(prompt_tokens=7900))
    done = {record.key: record for record in mosaic.run(job).result.calls}
    assert answer_unskipped(job, ["agreed"], done) == {"agreed": Unskipped("A", has_failed=True)}


@pytest.mark.parametrize("status", [CallStatus.CANCELLED, CallStatus.CUT, None])
def test_a_call_that_the_batch_stopped_or_lost_is_sent_before_its_question_is_aggregated(
    status: CallStatus | None,
) -> None:
    third = None if status is None else make_record(key=FIRST[2], expert="C", status=status)
    assert audit(Listed(), third) == (Unskipped("B", has_failed=False), [FIRST[2], LAST])


def test_a_call_that_failed_in_the_batch_is_not_sent_again_and_its_question_is_aggregated() -> None:
    third = make_failed("agreed", key=FIRST[2], expert="C")
    assert audit(Listed(), third) == (Unskipped("B", has_failed=False), [LAST])


def test_a_call_that_fails_when_it_is_sent_leaves_its_question_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def execute(plan: object, calls: Sequence[Call], *_: object) -> RunResult:
        records = [
            make_failed("agreed", key=call.key) if call.key == FIRST[2] else make_record(key=call.key, answer="A")
            for call in calls
        ]
        return RunResult(calls=tuple(records), sessions=(), num_workers=4)

    monkeypatch.setattr("mosaic.runtime.hindsight.execute", execute)
    assert audit(Listed(), None)[0] == Unskipped("A", has_failed=True)


def test_an_audit_whose_workers_are_lost_says_why_its_calls_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = RunResult(calls=(), sessions=(), num_workers=4, lost_workers=(LostWorker(1.0, 2, "unplugged"),))
    monkeypatch.setattr("mosaic.runtime.hindsight.execute", lambda *_: lost)
    with pytest.raises(BackendError, match=r"1 calls of the audit are left \(worker 2: unplugged\)"):
        audit(Listed(), None)
