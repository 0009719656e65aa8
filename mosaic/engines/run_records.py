"""From a journal to a RunResult: what happened is what is on the disk."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from mosaic.answers.extraction import extract_answer
from mosaic.core.plan import Plan
from mosaic.core.results import Action, CallRecord, CallStatus, RunResult, SessionRecord
from mosaic.core.workload import CallKey, Question
from mosaic.runtime.journal_records import EndedCall, JournalView, OpenedSession


class Answered(NamedTuple):
    """What a response says."""

    answer: str | None
    visible_tokens: int | None


def read_response(entry: EndedCall, questions: Mapping[str, Question]) -> Answered:
    """Read what the model decided to say; calls of questions that are not there have no answer."""
    if entry.status is not CallStatus.FINISHED:
        return Answered(None, None)
    question = questions.get(entry.key.question)
    answer = None
    if question is not None and entry.text is not None:
        answer = extract_answer(entry.text, question, thinking_opened=entry.thinking_opened)
    return Answered(answer, entry.visible_tokens)


def final_entries(view: JournalView, fingerprints: dict[CallKey, str]) -> dict[CallKey, EndedCall]:
    """Find the calls that need not be run: they finished, or were cancelled, and nothing that decides them changed."""
    found: dict[CallKey, EndedCall] = {}
    for entry in view.ended:
        if entry.status is not CallStatus.FAILED and fingerprints.get(entry.key) == entry.fingerprint:
            found.setdefault(entry.key, entry)
    return found


def ended_entries(
    view: JournalView, fingerprints: dict[CallKey, str], earlier: Collection[EndedCall]
) -> dict[CallKey, EndedCall]:
    """Find how each call ended; a failure of an earlier run, after which the call was tried again, does not count."""
    before = {id_of(entry) for entry in earlier}
    failed = {
        entry.key: entry
        for entry in view.ended
        if entry.status is CallStatus.FAILED
        and fingerprints.get(entry.key) == entry.fingerprint
        and id_of(entry) not in before
    }
    return failed | final_entries(view, fingerprints)


def id_of(entry: EndedCall) -> tuple[CallKey, int, CallStatus, float]:
    """Tell the records of one call apart."""
    return entry.key, entry.attempt, entry.status, entry.finished_ts


def number_sessions(plan: Plan, fingerprint: str, entries: Iterable[EndedCall]) -> dict[tuple[str, int], int]:
    """Number the sessions of a result, by plan and session: those of the plan keep their own numbers.

    A call that another plan's session served, before what was left was planned anew, keeps that session under
    a number behind those of the plan.
    """
    numbers = {(fingerprint, session.id): session.id for session in plan.sessions}
    free = 1 + max(numbers.values(), default=-1)
    for entry in sorted(entries, key=lambda entry: entry.finished_ts):
        if (entry.plan, entry.session) not in numbers:
            numbers[entry.plan, entry.session] = free
            free += 1
    return numbers


def call_record(entry: EndedCall, session: int, said: Answered) -> CallRecord:
    """Turn an entry into the record that every backend gives."""
    return CallRecord(
        key=entry.key,
        expert=entry.expert,
        session=session,
        workers=entry.workers,
        prompt_tokens=entry.prompt_tokens,
        output_tokens=entry.output_tokens,
        queued_ts=entry.queued_ts,
        admitted_ts=entry.admitted_ts,
        first_token_ts=entry.first_token_ts,
        finished_ts=entry.finished_ts,
        num_preemptions=entry.num_preemptions,
        attempt=entry.attempt,
        cached_tokens=entry.cached_tokens,
        wasted_tokens=entry.wasted_tokens,
        status=entry.status,
        answer=said.answer,
        visible_tokens=said.visible_tokens,
    )


def collect(
    plan: Plan,
    fingerprint: str,
    view: JournalView,
    entries: dict[CallKey, EndedCall],
    read_answer: Callable[[EndedCall], Answered],
) -> RunResult:
    """Put a run together.

    Parameters
    ----------
    plan, fingerprint
        What was run.
    view
        The journal.
    entries
        How each call ended; a call without an entry is left to run.
    read_answer
        Reads a response.
    """
    numbers = number_sessions(plan, fingerprint, entries.values())
    by_session: dict[tuple[str, int], list[CallRecord]] = {place: [] for place in numbers}
    for entry in sorted(entries.values(), key=lambda entry: entry.finished_ts):
        place = entry.plan, entry.session
        by_session[place].append(call_record(entry, numbers[place], read_answer(entry)))
    sessions = [_session_record(view, place, number, by_session[place]) for place, number in numbers.items()]
    cancelled = sorted(
        (entry for entry in entries.values() if entry.status is CallStatus.CANCELLED), key=lambda e: e.finished_ts
    )
    return RunResult(
        calls=tuple(record for records in by_session.values() for record in records),
        sessions=tuple(record for record in sessions if record is not None),
        num_workers=plan.num_workers,
        actions=tuple(Action(entry.finished_ts, "cancel", entry.key) for entry in cancelled),
    )


def _session_record(
    view: JournalView, place: tuple[str, int], number: int, calls: Sequence[CallRecord]
) -> SessionRecord | None:
    """Describe a session; None: its engine was never ready.

    One that was interrupted has one record: from the load of its first attempt to the end of its last, the loads of
    the others inside.
    """
    opened = [entry for entry in view.opened if (entry.plan, entry.session) == place]
    if not opened:
        return None
    first: OpenedSession = opened[0]
    ends = [entry.end_ts for entry in view.closed if (entry.plan, entry.session) == place]
    ends += [call.finished_ts for call in calls if call.finished_ts is not None]
    finished = [call for call in calls if call.status is CallStatus.FINISHED]
    return SessionRecord(
        session=number,
        expert=first.expert,
        node=first.node,
        workers=first.workers,
        load_start_ts=first.load_start_ts,
        load_s=first.load_s,
        start_ts=first.start_ts,
        end_ts=max([*(entry.start_ts for entry in opened), *ends]),
        num_calls=len(finished),
        output_tokens=sum(call.output_tokens for call in finished),
    )
