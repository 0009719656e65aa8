"""The worker processes of a run: started, listened to, watched, and never left behind."""

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

from mosaic.core.errors import BackendError
from mosaic.engines.engine import Device
from mosaic.engines.host_process import HostProcess
from mosaic.engines.live_sessions import LiveProcess, LiveSession, Patience, Phase
from mosaic.engines.orders import CloseOrder, Ended, Failure, Forked, FromHost, FromWorker, OpenOrder
from mosaic.engines.vllm_host import kill_group
from mosaic.runtime.journal import SUFFIX
from mosaic.runtime.journal_records import decode_entry

TICK_S = 1.0
"""The watchdog looks this often."""
_KILLED = -9


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where a run happens: its host process, its journal, its clock."""

    host: HostProcess
    journal: Path
    lock: int
    """File descriptor of the journal's lock."""
    zero_ts: float
    """The run's zero on the machine's monotonic clock."""
    cores: tuple[tuple[int, ...], ...]
    """Of each worker."""
    gpus: tuple[str, ...]
    """Of each worker; empty on CPU."""
    patience: Patience

    def now(self) -> float:
        """Seconds on the run's clock."""
        return time.monotonic() - self.zero_ts

    def log_of(self, workers: tuple[int, ...]) -> Path:
        """The journal's log that a process on these workers writes."""
        return self.journal / f"worker-{workers[0]}{SUFFIX}"

    def output_of(self, workers: tuple[int, ...]) -> Path:
        """Where a process on these workers prints."""
        return self.journal / f"worker-{workers[0]}.log"


class WorkerProcesses:
    """All worker processes of a run that are not gone.

    A process is gone when its link is closed and read to the end, and the host has buried it: then all it wrote is in
    the journal and nobody writes there any more.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._processes: dict[int, LiveProcess] = {}
        self._num_host_deaths = 0

    def __iter__(self) -> Iterator[LiveProcess]:
        return iter(list(self._processes.values()))

    def fork(self, live: LiveSession) -> LiveProcess | None:
        """Start a process for a session; None: the host has just died, and will be there again next time."""
        host, workers, settings = self._site.host, live.session.workers, live.spec.settings
        host.start(self._site.journal / "host.log")
        gpus = self._site.gpus if settings.device is Device.GPU else ()
        try:
            number, link = host.fork(
                cores=tuple(sorted({core for worker in workers for core in self._site.cores[worker]})),
                gpus=tuple(gpus[worker] for worker in workers) if gpus else (),
                log=self._site.output_of(workers),
                lock=self._site.lock,
            )
        except OSError:
            self._lose_host()
            return None
        process = LiveProcess(number=number, link=link, spec=live.spec, workers=workers, live=live)
        self._processes[number] = process
        log = self._site.log_of(workers)
        self.send(process, OpenOrder(spec=live.spec, journal=log, zero_ts=self._site.zero_ts))
        return process

    def send(self, process: LiveProcess, order: object) -> None:
        """Tell a process something; one that is dying is noticed when its link closes."""
        if process.link is not None:
            with suppress(OSError):
                process.link.send(order)

    def close(self, process: LiveProcess) -> None:
        """Let a process end when it has said everything."""
        process.begin(Phase.CLOSING)
        self.send(process, CloseOrder())

    def listen(self) -> Iterator[tuple[LiveProcess, FromWorker | None]]:
        """Wait for news; gives each message with its process, and None for a process that is gone."""
        if not self._processes:
            return
        control = self._site.host.control
        by_link = {process.link: process for process in self if process.link is not None}
        for ready in wait([*by_link, *([control] if control is not None else [])], timeout=TICK_S):
            if ready is control:
                self._hear_host(control)
            elif isinstance(ready, Connection):
                yield from self._hear(by_link[ready], ready)
        for process in self:
            if process.link is None and process.exit_code is not None:
                del self._processes[process.number]
                yield process, None

    def watch(self) -> None:
        """Kill processes that said nothing for too long."""
        now = time.monotonic()
        for process in self:
            limit_s = process.silence_limit_s(self._site.patience)
            if limit_s is not None and process.hung is None and now - process.heard_ts > limit_s:
                process.hung = f"{process.spec.expert} made no progress for {limit_s:g} s while {process.phase}"
                self._site.host.kill(process.number)

    def kill_all(self) -> None:
        """End all processes at once and wait until they are gone."""
        deadline = time.monotonic() + self._site.patience.close_timeout_s
        for process in self:
            self._site.host.kill(process.number)
        while self._processes and time.monotonic() < deadline:
            with suppress(BackendError):
                for _ in self.listen():
                    pass

    def note_finish(self) -> None:
        """Count the host's deaths anew: the run gets on."""
        self._num_host_deaths = 0

    def _hear(self, process: LiveProcess, link: Connection) -> Iterator[tuple[LiveProcess, FromWorker | None]]:
        try:
            while link.poll():
                said: list[FromWorker | bytes] = link.recv()
                process.heard_ts = time.monotonic()
                for message in said:
                    if isinstance(message, Failure):
                        process.failure = message
                    yield process, decode_entry(message) if isinstance(message, bytes) else message
        except (EOFError, OSError):
            link.close()
            process.link = None

    def _hear_host(self, control: Connection) -> None:
        try:
            while control.poll():
                message: FromHost = control.recv()
                if isinstance(message, Ended) and message.process in self._processes:
                    self._processes[message.process].exit_code = message.exit_code
                elif isinstance(message, Forked) and message.process in self._processes:
                    self._processes[message.process].pid = message.pid
        except (EOFError, OSError):
            self._lose_host()

    def _lose_host(self) -> None:
        """Bury the host; the kernel ends its workers, and what they started is ended here."""
        self._site.host.close()
        for process in self:
            process.host_died = process.exit_code is None
            process.exit_code = _KILLED if process.exit_code is None else process.exit_code
            if process.pid is not None:
                kill_group(process.pid)
        self._num_host_deaths += 1
        if self._num_host_deaths > self._site.patience.max_restarts:
            log = self._site.journal / "host.log"
            raise BackendError(
                f"the host process died {self._num_host_deaths} times without a call finished in between; see {log}"
            )
