"""What every backend with a journal does around a run: find what is done, run the rest, read what came of it."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from mosaic.core.plan import Plan
from mosaic.core.results import CallStatus, Listener, RunResult
from mosaic.core.workload import CallKey
from mosaic.engines.run_records import Answered, call_record, collect, ended_entries, final_entries, number_sessions
from mosaic.engines.vllm_jobs import plan_fingerprint
from mosaic.runtime.journal import hold, read_journal
from mosaic.runtime.journal_records import EndedCall, JournalView, view


class Standing(NamedTuple):
    """Where a plan stands when it is started, or started again."""

    plan: str
    """Its fingerprint."""
    before: JournalView
    done: dict[CallKey, EndedCall]
    """Calls that need not be run."""
    lock: int
    """File descriptor of the journal's lock."""

    def num_attempts(self, session: int) -> int:
        """Count how often a session of the plan was opened."""
        return sum((entry.plan, entry.session) == (self.plan, session) for entry in self.before.opened)


def run_with_journal(
    journal: Path,
    plan: Plan,
    fingerprints: dict[CallKey, str],
    run: Callable[[Standing], None],
    read_answer: Callable[[EndedCall], Answered],
) -> tuple[RunResult, dict[CallKey, EndedCall]]:
    """Run what a journal does not hold yet; gives the result, and how each call ended.

    Raises
    ------
    JournalError
        If the journal is in use, or cannot be written.
    KeyboardInterrupt
        On Ctrl-C, when ``run`` is over; it says what is kept. The same run with the same journal goes on from there.
    """
    fingerprint = plan_fingerprint(plan)
    with hold(journal) as lock:
        before = view(read_journal(journal).records)
        try:
            run(Standing(fingerprint, before, final_entries(before, fingerprints), lock))
        except KeyboardInterrupt:
            ended = final_entries(view(read_journal(journal).records), fingerprints)
            raise KeyboardInterrupt(f"stopped; {len(ended)} of {len(fingerprints)} calls are in {journal}") from None
        after = view(read_journal(journal).records)
    entries = ended_entries(after, fingerprints, before.ended)
    return collect(plan, fingerprint, after, entries, read_answer), entries


def teller(
    plan: Plan, standing: Standing, listener: Listener | None, read_answer: Callable[[EndedCall], Answered]
) -> Callable[[EndedCall], Iterable[CallKey]]:
    """Make what tells a listener of a finish, and gives the calls that it cancels."""
    numbers = number_sessions(plan, standing.plan, standing.done.values())

    def tell(entry: EndedCall) -> Iterable[CallKey]:
        if listener is None:
            return ()
        number = numbers.get((entry.plan, entry.session), entry.session)
        return [action.key for action in listener.on_finish(call_record(entry, number, read_answer(entry)))]

    return tell


def tell_again(
    done: Mapping[CallKey, EndedCall],
    tell: Callable[[EndedCall], Iterable[CallKey]],
    cancel: Callable[[CallKey], None],
) -> None:
    """Tell of the finishes of earlier runs, in order of time, as if they were of this one."""
    for entry in sorted(done.values(), key=lambda entry: entry.finished_ts):
        if entry.status is CallStatus.FINISHED:
            for key in tell(entry):
                cancel(key)
