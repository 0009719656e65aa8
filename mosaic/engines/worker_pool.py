"""The worker processes of a run: started, listened to, watched, and never left behind."""

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

from mosaic.core.errors import BackendError
from mosaic.engines.launcher import Channel, Launcher
from mosaic.engines.messages import Exited, Failure, FromWorker, Gone, Load, Quit, There
from mosaic.engines.sessions import Patience, Phase, SessionState, WorkerProcess

Heard: TypeAlias = FromWorker | Exited


class WorkerPool:
    """All worker processes of a run that are not gone."""

    def __init__(self, launcher: Launcher, folder: Path, zero_ts: float, patience: Patience) -> None:
        self._launcher = launcher
        self._folder = folder
        self._zero_ts = zero_ts
        self._patience = patience
        self._processes: dict[Channel, WorkerProcess] = {}
        self._num_fork_server_deaths = launcher.num_fork_server_deaths

    def __iter__(self) -> Iterator[WorkerProcess]:
        return iter(list(self._processes.values()))

    def __len__(self) -> int:
        return len(self._processes)

    def start(self, state: SessionState) -> WorkerProcess | None:
        """Start a process for a session; None: not now, ask again."""
        workers = state.session.workers
        channel = self._launcher.open(workers)
        if channel is None:
            self._check_fork_server()
            return None
        process = WorkerProcess(channel=channel, spec=state.spec, workers=workers, session=state)
        self._processes[channel] = process
        process.send(Load(spec=state.spec, zero_ts=self._zero_ts))
        return process

    def quit(self, process: WorkerProcess) -> None:
        """Let a process end when it has said everything."""
        process.begin(Phase.CLOSING)
        process.send(Quit())

    def listen(self, timeout_s: float) -> Iterator[tuple[WorkerProcess, Heard]]:
        """Send what is meant for processes, and wait for news; of one that is gone ``Exited`` is the last.

        Raises
        ------
        BackendError
            If what starts processes dies again and again.
        """
        for process in self._processes.values():
            process.flush()
        for channel, message in self._launcher.listen(timeout_s):
            process = self._processes[channel]
            process.heard_ts = time.monotonic()
            if isinstance(message, Failure):
                process.failure = message
            elif isinstance(message, Exited):
                del self._processes[channel]
            yield process, message
        self._check_fork_server()

    def changes(self) -> Sequence[Gone | There]:
        """Tell which workers have gone and come since it was last asked."""
        return self._launcher.changes()

    def watch(self) -> None:
        """Kill processes that said nothing for too long."""
        for process in self:
            process.watch(self._patience)

    def kill_all(self) -> None:
        """End all processes at once and wait until they are gone."""
        deadline = time.monotonic() + self._patience.close_timeout_s
        for process in self:
            process.channel.kill()
        while self._processes and time.monotonic() < deadline:
            with suppress(BackendError):
                for _ in self.listen(1.0):
                    pass

    def note_finish(self) -> None:
        """Count the fork server's deaths anew: the run gets on."""
        self._num_fork_server_deaths = self._launcher.num_fork_server_deaths

    def _check_fork_server(self) -> None:
        num_deaths = self._launcher.num_fork_server_deaths - self._num_fork_server_deaths
        if num_deaths > self._patience.max_restarts:
            raise BackendError(
                f"the fork server died {num_deaths} times without a call finished in between; "
                f"see {self._folder / 'fork_server.log'}"
            )
