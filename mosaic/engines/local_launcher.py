"""Worker processes of this machine: forked from one host process, and dealt its cores and GPUs."""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path

from mosaic.core.engine_options import Device
from mosaic.engines.engine import EngineSpec
from mosaic.engines.host_process import HostProcess, kill_group
from mosaic.engines.messages import HOST_DIED, Exited, Forked, FromWorker, Gone, Reaped, There, ToWorker


class LocalChannel:
    """The link to a forked process.

    The process is gone when its link is closed and read to the end, and the host has reaped it: then all it wrote is
    in the journal and nobody writes there any more.
    """

    def __init__(self, host: HostProcess, number: int, link: Connection) -> None:
        self.number = number
        self.link: Connection | None = link
        """None once it is closed and all that was said is heard."""
        self.pid: int | None = None
        self.exited: Exited | None = None
        self._host = host

    def send(self, message: ToWorker) -> None:
        if self.link is not None:
            with suppress(OSError):
                self.link.send(message)

    def kill(self) -> None:
        self._host.kill(self.number)


class LocalLauncher:
    """Launches on this machine.

    Parameters
    ----------
    host
        Kept by the caller for several runs, so that its engine module is imported once.
    device
        What workers are: each process gets the cores of its workers, and on GPUs these too. None: neither, since
        the engines are elsewhere.
    interrupt
        What arrives there ends a wait for news.
    """

    def __init__(
        self, host: HostProcess, device: Device | None = Device.GPU, interrupt: Connection | None = None
    ) -> None:
        self._host = host
        self._device = device
        self._interrupt = interrupt
        self._folder = Path()
        self._num_workers = 0
        self._channels: dict[int, LocalChannel] = {}
        self._num_host_deaths = 0

    @property
    def num_host_deaths(self) -> int:
        return self._num_host_deaths

    def begin(self, folder: Path, num_workers: int, *, is_new: bool) -> None:
        self._folder, self._num_workers = folder, num_workers
        if is_new:  # one that goes on may have nothing left to do, and then needs no engine
            self._start_host()

    def open(self, spec: EngineSpec, workers: tuple[int, ...]) -> LocalChannel | None:
        self._start_host()
        cores: set[int] = set()
        gpus: tuple[str, ...] = ()
        if self._device is not None:
            dealt = cores_of_workers(self._num_workers)
            cores = {core for worker in workers for core in dealt[worker]}
        if self._device is Device.GPU:
            gpus = tuple(gpus_of_workers(self._num_workers)[worker] for worker in workers)
        try:
            log = output_of(self._folder, workers)
            number, link = self._host.fork(cores=tuple(sorted(cores)), gpus=gpus, log=log)
        except OSError:
            self._lose_host()
            return None
        self._channels[number] = LocalChannel(self._host, number, link)
        return self._channels[number]

    def _start_host(self) -> None:
        self._host.start(self._folder / "host.log")

    def listen(self, timeout_s: float) -> Iterator[tuple[LocalChannel, FromWorker | Exited]]:
        control = self._host.control
        by_link = {channel.link: channel for channel in self._channels.values() if channel.link is not None}
        others = [link for link in (control, self._interrupt) if link is not None]
        for ready in wait([*by_link, *others], timeout=timeout_s):
            if ready is self._interrupt:
                self._interrupt.recv_bytes()
            elif ready is control:
                self._hear_host(control)
            elif isinstance(ready, Connection):
                yield from self._hear(by_link[ready], ready)
        for channel in list(self._channels.values()):
            if channel.link is None and channel.exited is not None:
                del self._channels[channel.number]
                yield channel, channel.exited

    def changes(self) -> Sequence[Gone | There]:
        """None: its workers are cores and GPUs of this machine."""
        return ()

    def _hear(self, channel: LocalChannel, link: Connection) -> Iterator[tuple[LocalChannel, FromWorker]]:
        try:
            while link.poll():
                said: list[FromWorker] = link.recv()
                for message in said:
                    yield channel, message
        except (EOFError, OSError):
            link.close()
            channel.link = None

    def _hear_host(self, control: Connection) -> None:
        try:
            while control.poll():
                message: Forked | Reaped = control.recv()
                channel = self._channels.get(message.process)
                if channel is not None and isinstance(message, Reaped):
                    channel.exited = Exited(message.exit_code)
                elif channel is not None and isinstance(message, Forked):
                    channel.pid = message.pid
        except (EOFError, OSError):
            self._lose_host()

    def _lose_host(self) -> None:
        """Reap the host; the kernel ends its workers, and what they started is ended here."""
        self._host.close()
        for channel in self._channels.values():
            channel.exited = channel.exited or HOST_DIED
            if channel.pid is not None:
                kill_group(channel.pid)
        self._num_host_deaths += 1


def output_of(folder: Path, workers: tuple[int, ...]) -> Path:
    """Where a process on these workers prints."""
    return folder / f"worker-{workers[0]}.log"


def cores_of_workers(num_workers: int) -> tuple[tuple[int, ...], ...]:
    """Deal the cores that this process may use out to the workers; where there are fewer, workers share."""
    cores = sorted(os.sched_getaffinity(0))
    share = max(1, len(cores) // num_workers)
    return tuple(
        tuple(sorted(cores[(worker * share + i) % len(cores)] for i in range(share))) for worker in range(num_workers)
    )


def gpus_of_workers(num_workers: int) -> tuple[str, ...]:
    """Name the GPU of each worker, as CUDA_VISIBLE_DEVICES does; those that it lists already come first."""
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return tuple(visible[worker] if worker < len(visible) else str(worker) for worker in range(num_workers))
