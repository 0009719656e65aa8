"""The machines of a run: agents on them, one thread each that hears them, and one that looks for more of them."""

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import NamedTuple, Protocol, TypeAlias

from mosaic.core.errors import BackendError
from mosaic.engines.berths import Berths
from mosaic.engines.machine_clock import Offset
from mosaic.engines.machine_messages import News, Order

LOOK_S = 0.5
"""So often it is looked for machines that come, and for those that go."""
KNOCK_S = 1.0
NUM_KNOCKS = 2
"""A machine that does not answer so often in a row is gone."""
NEWS_S = 10.0
SETTLE_S = 10.0
"""A machine whose agent is gone is looked at again after this time: by then it is known whether the machine is too."""
TRY_AGAIN_S = 60.0
CLOSE_S = 15.0
CLOCK_S = 30.0
"""Clocks are compared again after this time: they drift."""


class MachineLostError(BackendError):
    """A machine, or the agent on it, is gone."""


class Machine(Protocol):
    """The driver's hold on the agent of a machine."""

    @property
    def id(self) -> str:
        """Unique; a machine that comes back has another."""

    @property
    def name(self) -> str:
        """For people."""

    def problems(self) -> Sequence[str]:
        """Say what the machine lacks."""

    def clock(self) -> Offset:
        """Compare its clock with this machine's."""

    def tell(self, orders: Sequence[Order]) -> None:
        """Give orders; returns at once. A machine that is going is noticed by who waits for news."""

    def news(self, timeout_s: float) -> News:
        """Wait for news.

        Raises
        ------
        MachineLostError
            Saying what became of it.
        """

    def end(self) -> None:
        """End the agent and all it started."""


class Found(NamedTuple):
    """A machine that is there, with or without an agent."""

    id: str
    name: str
    num_workers: int
    """That it has room for."""
    door: tuple[str, int] | None = None
    """A port on which it listens while it is there; None: nobody can tell."""

    def answers(self) -> bool:
        """Tell whether it listens: what places agents takes seconds, or half a minute, to notice that it does not."""
        if self.door is None:
            return True
        try:
            socket.create_connection(self.door, timeout=KNOCK_S).close()
        except OSError:
            return False
        return True


class Source(Protocol):
    """Where machines come from."""

    def find(self) -> Sequence[Found]:
        """List those that are there now, always in the same order.

        Raises
        ------
        BackendError
            If it cannot be told now.
        """

    def start(self, found: Found, num_workers: int) -> Machine:
        """Start an agent.

        Raises
        ------
        BackendError
            If it does not start, and why.
        """

    def close(self) -> None:
        """Let go of all."""


class Came(NamedTuple):
    """A machine serves workers now."""

    workers: tuple[int, ...]


class Went(NamedTuple):
    """A machine is gone, and its workers with it."""

    workers: tuple[int, ...]
    cause: str


Happening: TypeAlias = News | Came | Went


class Fleet:
    """Keeps agents on machines, for several runs one after the other.

    Parameters
    ----------
    source
        Of machines.
    group_sizes
        Workers of each host; a machine holds those of one, or of several.
    tell
        Told why a machine that came later cannot serve, which is tried again after a while, and that none is left.
    """

    def __init__(
        self, source: Source, group_sizes: Sequence[int], tell: Callable[[str], None] = lambda line: None
    ) -> None:
        self._source = source
        self.tell = tell
        self._berths = Berths(group_sizes)
        self.machines: dict[int, Machine] = {}
        """By worker, as far as the driver has heard."""
        self.offsets: dict[str, Offset] = {}
        """Of clocks, by machine."""
        self._happened: SimpleQueue[tuple[Machine, Happening]] = SimpleQueue()
        self._held: dict[str, tuple[Found, Machine]] = {}
        self._refused: dict[str, float] = {}
        """Machines that came and cannot serve, and when to try them again."""
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._closing = threading.Event()

    @property
    def is_open(self) -> bool:
        return bool(self._held)

    def open(self) -> None:
        """Start an agent on each machine that is needed; those that are gone before it is up are absent.

        Raises
        ------
        BackendError
            If a machine cannot serve, with all that is missing on all of them, or none is left.
        """
        found = self._source.find()
        placed = [(one, self._berths.take(one.id, one.num_workers)) for one in found]
        wanted = [(one, workers) for one, workers in placed if workers]
        with ThreadPoolExecutor(max(1, len(wanted))) as pool:
            lines = list(pool.map(lambda pair: self._start(*pair), wanted))
        refused = [(one, line) for (one, _), line in zip(wanted, lines, strict=True) if line is not None]
        problems = [line for one, line in refused if not self._held or one.answers()]
        if problems:
            self.close()
            raise BackendError("machines cannot serve: " + "; ".join(problems))
        self._begin_thread(self._look)

    def absent(self) -> tuple[int, ...]:
        """List the workers that no machine serves, as far as the driver has heard."""
        return tuple(w for group in self._berths.groups for w in group if w not in self.machines)

    def local_number(self, worker: int) -> int:
        """Say how a machine counts one of its workers."""
        machine = self.machines[worker]
        return [w for w in sorted(self.machines) if self.machines[w] is machine].index(worker)

    def hear(self, timeout_s: float) -> list[tuple[Machine, Happening]]:
        """Wait for what happens, not longer than that."""
        heard: list[tuple[Machine, Happening]] = []
        try:
            heard.append(self._happened.get(timeout=timeout_s))
            while True:
                heard.append(self._happened.get_nowait())
        except Empty:
            pass
        for machine, happening in heard:
            if isinstance(happening, Came):
                self.machines |= dict.fromkeys(happening.workers, machine)
            elif isinstance(happening, Went):
                for worker in happening.workers:
                    del self.machines[worker]
        return heard

    def close(self) -> None:
        """End all agents."""
        self._closing.set()
        with self._lock:
            held, self._held = list(self._held.values()), {}
        for _, machine in held:
            machine.end()
        for thread in self._threads:
            thread.join(CLOSE_S)
        self._source.close()

    def _begin_thread(self, run: Callable[..., object], *args: object) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        self._threads.append(threading.Thread(target=run, args=args, daemon=True))
        self._threads[-1].start()

    def _start(self, found: Found, workers: tuple[int, ...]) -> str | None:
        """Start an agent for workers and hear it from now on; gives why not."""
        try:
            machine = self._source.start(found, len(workers))
        except BackendError as error:
            return self._refuse(found, str(error))
        try:
            if problems := machine.problems():
                machine.end()
                return self._refuse(found, ", ".join(problems))
            self.offsets[machine.id] = machine.clock()
        except MachineLostError as error:
            machine.end()
            return self._refuse(found, str(error))
        with self._lock:
            if self._closing.is_set():
                machine.end()
                return None
            self._held[found.id] = found, machine
        self._happened.put((machine, Came(workers)))
        self._begin_thread(self._listen, machine)
        return None

    def _refuse(self, found: Found, why: str) -> str:
        with self._lock:
            self._berths.leave(found.id)
            self._refused[found.id] = time.monotonic() + TRY_AGAIN_S
        return f"{found.name} {why}"

    def _listen(self, machine: Machine) -> None:
        try:
            compared = time.monotonic()
            while not self._closing.is_set():
                self._happened.put((machine, machine.news(NEWS_S)))
                if time.monotonic() - compared > CLOCK_S:
                    self.offsets[machine.id] = machine.clock()
                    compared = time.monotonic()
        except MachineLostError as error:
            self._lose(machine, str(error))

    def _lose(self, machine: Machine, cause: str) -> None:
        """Give a machine up; whoever notices first tells."""
        with self._lock:
            if self._closing.is_set() or self._held.pop(machine.id, None) is None:
                return
            workers = self._berths.leave(machine.id)
            self._refused[machine.id] = time.monotonic() + SETTLE_S
        self._happened.put((machine, Went(workers, cause)))
        machine.end()

    def _look(self) -> None:
        """Give machines up that do not answer, and take in those that come while workers have none."""
        silent: Counter[str] = Counter()
        while not self._closing.wait(LOOK_S):
            for found, machine in list(self._held.values()):
                silent[found.id] = 0 if found.answers() else silent[found.id] + 1
                if silent[found.id] == NUM_KNOCKS:
                    self._lose(machine, f"machine {found.name} is gone")
            if not self._berths.vacant:
                continue
            try:
                there = self._source.find()
            except BackendError:  # it is asked again soon; machines that are gone are noticed by others
                continue
            for one in there:
                with self._lock:
                    may_try = time.monotonic() > self._refused.get(one.id, 0.0)
                    is_new = not self._berths.holds(one.id) and may_try
                    workers = self._berths.take(one.id, one.num_workers) if is_new else ()
                if workers:
                    self._begin_thread(self._take_in, one, workers)

    def _take_in(self, found: Found, workers: tuple[int, ...]) -> None:
        why = self._start(found, workers)
        if why is not None and not self._closing.is_set():
            self.tell(why)
