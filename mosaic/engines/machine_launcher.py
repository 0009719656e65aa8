"""Worker processes on several machines; what they say is on the driver's disk before anybody hears of it."""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path

from mosaic.engines.engine import EngineSpec
from mosaic.engines.fleet import Came, Fleet, Happening, Machine, Went
from mosaic.engines.local_launcher import output_of
from mosaic.engines.machine_messages import End, News, OpenOn, Order, Pass, Printed
from mosaic.engines.messages import HOST_DIED, Exited, FromWorker, Gone, Load, There, ToWorker
from mosaic.runtime.journal import Log

ABSENT = "no machine is there for it"
COME_BACK_S = 300.0
"""So long a run without any machine waits for one."""


class MachineChannel:
    """The link to a worker process on another machine; the driver writes its journal's log."""

    def __init__(
        self, number: int, machine: Machine, offset_s: float, workers: tuple[int, ...], orders: list[Order]
    ) -> None:
        self.number = number
        self.machine = machine
        self.workers = workers
        self.log: Log | None = None
        self._offset_s = offset_s
        self._orders = orders

    def send(self, message: ToWorker) -> None:
        if isinstance(message, Load):
            assert message.journal is not None, "a session has a log"
            self.log = Log(message.journal)
            message = replace(message, journal=None, zero_ts=message.zero_ts + self._offset_s)
        self._orders.append(Pass(self.number, message))

    def kill(self) -> None:
        self._orders.append(End(self.number))


class MachineLauncher:
    """Launches on the machines of a fleet, which the caller keeps for several runs.

    A worker process that goes on after its machine was given up for lost can do no harm: nobody hears it any more, and
    only what the driver hears is in the journal.
    """

    _numbers = count()
    """Of processes, never used twice: an agent may still speak of those of an earlier run."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._folder = Path()
        self._channels: dict[int, MachineChannel] = {}
        self._orders: defaultdict[str, list[Order]] = defaultdict(list)
        """By machine, until they are told all at once."""
        self._changes: list[Gone | There] = []
        self._missed: Gone | None = None
        """Workers of the last machine that went: a run cannot do without, and waits for another."""
        self._missed_until_s = 0.0
        self._num_host_deaths: dict[str, int] = {}

    @property
    def machines(self) -> Mapping[int, Machine]:
        """By worker, as far as it was heard."""
        return self._fleet.machines

    @property
    def num_host_deaths(self) -> int:
        return sum(self._num_host_deaths.values())

    def begin(self, folder: Path, num_workers: int, *, is_new: bool) -> None:
        """Take up a run."""
        self._folder = folder
        for _, happening in self._fleet.hear(0.0):
            self._note_change(happening)
        if absent := self._fleet.absent():
            self._miss(absent, ABSENT)

    def open(self, spec: EngineSpec, workers: tuple[int, ...]) -> MachineChannel | None:
        machine = self._fleet.machines.get(workers[0])
        if machine is None:
            return None  # it has gone, which is told next
        number, orders = next(self._numbers), self._orders[machine.id]
        offset_s = self._fleet.offsets[machine.id].offset_s
        orders.append(OpenOn(number, spec, tuple(map(self._fleet.local_number, workers))))
        self._channels[number] = MachineChannel(number, machine, offset_s, workers, orders)
        return self._channels[number]

    def listen(self, timeout_s: float) -> Iterator[tuple[MachineChannel, FromWorker | Exited]]:
        self._tell()
        for machine, happening in self._fleet.hear(0.0 if self._changes else timeout_s):
            self._note_change(happening)
            if isinstance(happening, News):
                self._num_host_deaths[machine.id] = happening.num_host_deaths
                yield from self._hear(happening)
            elif isinstance(happening, Went):
                for channel in [one for one in self._channels.values() if one.machine is machine]:
                    yield self._exit(channel, HOST_DIED)

    def changes(self) -> Sequence[Gone | There]:
        if self._missed is not None and time.monotonic() > self._missed_until_s:
            self._give_up_missed()
        changes, self._changes = self._changes, []
        return changes

    def close(self) -> None:
        self._fleet.close()

    def _tell(self) -> None:
        """Give all orders that have come together."""
        for machine in {id(one): one for one in self._fleet.machines.values()}.values():
            if orders := self._orders[machine.id]:
                machine.tell(list(orders))
                orders.clear()

    def _note_change(self, happening: Happening) -> None:
        if isinstance(happening, Came):
            self._changes.append(There(happening.workers))
            self._give_up_missed()
        elif isinstance(happening, Went):
            self._miss(happening.workers, happening.cause)

    def _miss(self, workers: Sequence[int], cause: str) -> None:
        """Give workers up, unless there are no others: their sessions then wait for a machine to come."""
        if self._fleet.machines:
            self._changes.append(Gone(tuple(workers), cause))
            return
        if self._missed is None:
            self._missed_until_s = time.monotonic() + COME_BACK_S
            self._fleet.tell(f"no machine is left ({cause}): waiting {COME_BACK_S:g} s for one")
            self._missed = Gone(tuple(workers), cause)
        else:
            self._missed = Gone(tuple({*self._missed.workers, *workers}), self._missed.cause)

    def _give_up_missed(self) -> None:
        """Give up those that no machine that came serves."""
        if self._missed is not None:
            left = tuple(worker for worker in self._missed.workers if worker not in self._fleet.machines)
            self._changes += [Gone(left, self._missed.cause)] if left else []
            self._missed = None

    def _hear(self, news: News) -> Iterator[tuple[MachineChannel, FromWorker | Exited]]:
        """Put the journal's lines on the disk, then tell them and all else in order."""
        lines: defaultdict[int, list[bytes]] = defaultdict(list)
        for number, message in news.said:
            if isinstance(message, bytes) and number in self._channels:
                lines[number].append(message)
        for number, written in lines.items():
            log = self._channels[number].log
            assert log is not None, "a process is told what to load first"
            log.append(written)
        for number, message in news.said:
            channel = self._channels.get(number)
            if channel is None:
                continue  # of an earlier run
            if isinstance(message, Printed):
                self._keep_output(channel, message)
            elif isinstance(message, Exited):
                yield self._exit(channel, message)
            else:
                yield channel, message

    def _exit(self, channel: MachineChannel, exited: Exited) -> tuple[MachineChannel, Exited]:
        del self._channels[channel.number]
        if channel.log is not None:
            channel.log.close()
        return channel, exited

    def _keep_output(self, channel: MachineChannel, printed: Printed) -> None:
        with suppress(OSError), output_of(self._folder, channel.workers).open("ab") as file:
            file.write(f"--- on {channel.machine.name}\n".encode() + printed.text)
