"""One execution of a plan over worker processes: who starts when, what is tried again, and what is given up."""

from collections.abc import Callable, Iterable, Sequence

from mosaic.core.errors import BackendError
from mosaic.core.results import CallStatus
from mosaic.core.workload import CallKey
from mosaic.engines.live_sessions import MAX_ISOLATED, LiveProcess, LiveSession, Phase, Stage
from mosaic.engines.orders import CancelOrder, Failure, FromWorker, Progress, Served, ServeOrder
from mosaic.engines.worker_processes import Site, WorkerProcesses
from mosaic.runtime.journal import SUFFIX, JournalError, Log, read_log
from mosaic.runtime.journal_records import EndedCall, OpenedSession, from_record, to_record

_TRY_AGAIN = "correct it and start the same run again: failed calls are tried again"


class PlanRun:
    """Runs sessions over worker processes until each has ended or its worker is gone.

    A session starts when those before it on its workers, and those that it follows, have ended. Where its expert
    is still loaded on the same workers it goes to that process, else to a new one, once the old one is gone. A process
    that dies, fails or hangs takes its session back to waiting, with the calls that are not on the disk.
    """

    def __init__(
        self,
        site: Site,
        plan: str,
        sessions: Sequence[LiveSession],
        *,
        num_workers: int,
        start_ts: float,
        on_finish: Callable[[EndedCall], Iterable[CallKey]],
        on_state: Callable[[LiveProcess], None],
    ) -> None:
        self.dead_workers: dict[int, str] = {}
        """Why each was given up."""
        self._site = site
        self._plan = plan
        self._sessions = sessions
        self._on_finish = on_finish
        self._on_state = on_state
        self._processes = WorkerProcesses(site)
        self._home = {key: live for live in sessions for key in live.session.shard}
        self._by_id = {live.session.id: live for live in sessions}
        self._free_ts = [start_ts] * num_workers
        self._num_failed_loads = [0] * num_workers

    def run(self) -> None:
        """Run to the end; whatever interrupts it, no process is left behind.

        Raises
        ------
        BackendError
            If the host cannot run, the journal cannot be written, or a listener names a call that is not of the plan.
        """
        try:
            while not all(live.has_ended for live in self._sessions) or list(self._processes):
                self._start_sessions()
                for process, message in self._processes.listen():
                    self._hear(process, message)
                self._processes.watch()
        except BaseException:
            self._processes.kill_all()
            raise

    def cancel(self, key: CallKey) -> None:
        """Stop a call; one that has ended stays as it is.

        Raises
        ------
        BackendError
            If it is not of the plan.
        """
        live = self._home.get(key)
        if live is None:
            raise BackendError(f"listener: Cancel must name a call of the plan, got {key}")
        if key not in live.jobs:
            return
        serving = next((process for process in self._processes if process.live is live), None)
        if serving is None:
            self._end_here(live, [key], CallStatus.CANCELLED, error=None)
        else:
            live.cancelling.add(key)
            self._processes.send(serving, CancelOrder((key,)))

    def _start_sessions(self) -> None:
        """Start what can start, in the plan's order, and let go of experts that nobody waits for."""
        held: set[int] = set()
        for live in self._sessions:
            workers = live.session.workers
            if live.stage is Stage.WAITING:
                if not live.jobs:
                    live.stage = Stage.OVER
                elif any(worker in self.dead_workers for worker in workers):
                    live.stage = Stage.ABANDONED
                elif held.isdisjoint(workers) and all(self._by_id[needed].has_ended for needed in live.session.after):
                    self._start(live)
            if not live.has_ended:
                held.update(workers)
        for process in self._processes:
            if process.phase is Phase.IDLE and not self._is_wanted(process):
                self._processes.close(process)

    def _start(self, live: LiveSession) -> None:
        """Start a session on workers that are its own now; where another expert is still loaded, wait for its end."""
        workers = live.session.workers
        there = [process for process in self._processes if not set(workers).isdisjoint(process.workers)]
        is_resident = len(there) == 1 and there[0].phase is Phase.IDLE and self._is_wanted(there[0])
        if there and not is_resident:
            return
        process = there[0] if is_resident else self._processes.fork(live)
        if process is None:
            return
        followed = [self._by_id[needed].end_ts for needed in live.session.after]
        live.stage, process.live = Stage.RUNNING, live
        process.one_at_a_time = 0 < live.num_failures == self._site.patience.max_retries
        process.begin(Phase.SERVING if is_resident else Phase.LOADING)
        order = ServeOrder(
            plan=self._plan,
            session=live.session.id,
            attempt=live.attempt,
            node=live.session.node,
            expert=live.session.expert,
            workers=workers,
            load_start_ts=max([self._free_ts[worker] for worker in workers] + followed),
            is_resident=is_resident,
            one_at_a_time=process.one_at_a_time,
            jobs=tuple(live.jobs.values()),
        )
        self._processes.send(process, order)
        self._on_state(process)

    def _is_wanted(self, process: LiveProcess) -> bool:
        """Whether what comes next on all its workers is one session of its expert."""
        following = [
            next((live for live in self._sessions if worker in live.session.workers and not live.has_ended), None)
            for worker in process.workers
        ]
        first = following[0]
        same = first is not None and first.session.workers == process.workers and first.spec == process.spec
        return same and all(live is first for live in following)

    def _hear(self, process: LiveProcess, message: FromWorker | None) -> None:
        live = process.live
        if message is None:
            self._lose(process)
        elif isinstance(message, EndedCall):
            self._end_call(message)
        elif isinstance(message, OpenedSession):
            process.begin(Phase.SERVING)
        elif isinstance(message, Progress):
            process.progress = message
        elif isinstance(message, Served) and live is not None:
            self._end_session(live, message.end_ts, Stage.OVER)
            process.live = None
            process.begin(Phase.IDLE)
        elif isinstance(message, Failure) and message.is_journal:
            raise JournalError(message.cause)
        self._on_state(process)

    def _end_call(self, entry: EndedCall) -> None:
        live = self._home[entry.key]
        if live.jobs.pop(entry.key, None) is None:
            return  # heard before
        if entry.status is not CallStatus.FINISHED:
            return
        live.num_failures = live.num_isolated = 0
        for worker in entry.workers:
            self._num_failed_loads[worker] = 0
        self._processes.note_finish()
        for key in self._on_finish(entry):
            self.cancel(key)

    def _end_session(self, live: LiveSession, end_ts: float, stage: Stage) -> None:
        live.stage, live.end_ts = stage, end_ts
        for worker in live.session.workers:
            self._free_ts[worker] = max(self._free_ts[worker], end_ts)

    def _lose(self, process: LiveProcess) -> None:
        """Take back what a process that is gone did not finish; what it put on the disk without saying so counts."""
        live = process.live
        if live is None:
            return
        for record in read_log(self._site.log_of(process.workers)).records:
            entry = from_record(record)
            if isinstance(entry, EndedCall) and entry.plan == self._plan and entry.session == live.session.id:
                self._end_call(entry)
        live.attempt += 1
        self._end_session(live, self._site.now(), Stage.WAITING)
        self._end_here(live, [key for key in live.jobs if key in live.cancelling], CallStatus.CANCELLED, error=None)
        if not live.jobs or process.host_died:
            return
        cause = f"{process.cause()}; see {self._site.output_of(process.workers)}"
        worker = process.workers[0]
        if process.is_workers_fault:
            self._num_failed_loads[worker] += 1
            if self._num_failed_loads[worker] > self._site.patience.max_restarts:
                self.dead_workers[worker] = cause
            return
        live.num_failures += 1
        if live.num_failures <= self._site.patience.max_retries:
            return
        keys = list(live.jobs)
        if process.one_at_a_time and process.phase is Phase.SERVING and live.num_isolated < MAX_ISOLATED:
            keys = [live.running_alone]
            live.num_isolated += 1
            live.num_failures = 0
        self._end_here(live, keys, CallStatus.FAILED, error=f"{cause}; {_TRY_AGAIN}")

    def _end_here(self, live: LiveSession, keys: Sequence[CallKey], status: CallStatus, error: str | None) -> None:
        """Record calls that end without a process."""
        if not keys:
            return
        now = self._site.now()
        entries = [
            EndedCall(
                fingerprint=live.jobs[key].fingerprint,
                key=key,
                expert=live.session.expert,
                plan=self._plan,
                session=live.session.id,
                workers=live.session.workers,
                attempt=live.attempt,
                status=status,
                prompt_tokens=live.jobs[key].prompt_tokens,
                queued_ts=min(live.jobs[key].ready_s, now),
                finished_ts=now,
                error=error,
            )
            for key in keys
        ]
        with Log(self._site.journal / f"executor{SUFFIX}") as log:
            log.append([to_record(entry) for entry in entries])
        for entry in entries:
            self._end_call(entry)
