"""What earlier starts of a run have left in its journals: what ended then is told and not run again."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mosaic.core.results import CallRecord, PrefillRecord
from mosaic.core.workload import CallKey, ExpertName
from mosaic.engines.session_state import SessionState
from mosaic.runtime.journal_records import read_journal


class EarlierWork:
    """What the journals of a run hold when it starts.

    Parameters
    ----------
    journal
        The run's own.
    earlier
        Of what was run before this run and is part of it.
    others
        Of the same batch by an earlier start, whose numbers of sessions mean nothing here.
    """

    def __init__(self, journal: Path, earlier: Sequence[Path] = (), others: Sequence[Path] = ()) -> None:
        state = read_journal(*earlier)
        num_damaged, num_prefills = state.num_damaged, len(state.prefills)
        self.first_ts = state.last_ts
        """When the run began, on its own clock."""
        self.state = read_journal(journal, state=state)
        """Of the run so far; what happens now is added to it."""
        self.num_damaged = state.num_damaged - num_damaged
        self.prefills: Sequence[PrefillRecord] = state.prefills[num_prefills:]
        self._others = read_journal(*others)
        self.last_ts = max(self.state.last_ts, self._others.last_ts)

    def done(
        self, key: CallKey, fingerprint: str, to: int | ExpertName, sessions: Mapping[int, SessionState]
    ) -> CallRecord | None:
        """Find a call that need not be run; None: it never ended, or what decides it has changed.

        Where the number of its session means another one here, it is told as one of the session that it is sent to.
        """
        record = self.state.done(key, fingerprint)
        if record is not None:
            there = sessions.get(record.session)
            if there is None or (there.session.expert, there.session.workers) == (record.expert, record.workers):
                return record
        else:
            record = self._others.done(key, fingerprint)
        return record._replace(session=to) if record is not None and isinstance(to, int) else record

    def last_fingerprint(self, key: CallKey) -> str | None:
        """Tell what decided a call when it was done last; None: it never was."""
        return self.state.last_fingerprint(key) or self._others.last_fingerprint(key)
