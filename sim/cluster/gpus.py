"""Simulates the GPUs of a run: their queues, the engines on them, and the time of loading another one."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import simpy

from mosaic.core.cluster import Cluster
from mosaic.core.plan import Placement, placement_of
from sim.cluster.clock import wait_until
from sim.cluster.expert_on_gpu import ExpertOnGpu, GpuUse, Keep
from sim.cluster.host_memory import Asleep, Holding, HostMemory, Weights
from sim.cluster.session import SimSession
from sim.hardware.hardware import Host


@dataclass(slots=True, eq=False)
class Slot:
    """Memory of a worker for one engine."""

    worker: int
    home: Placement | None
    """The engine there, in use by a session or not."""
    model: ExpertOnGpu | None = None
    """Of that engine; None: nothing is known of it."""
    owner: SimSession | None = None
    free_ts: float = 0.0
    """When the engine before has released its memory."""
    holding: Holding | None = None

    def is_left(self, home: Placement) -> bool:
        """Whether it has an engine that no session uses; another copy may serve one at the same time."""
        return self.home == home and (self.owner is None or placement_of(self.owner.session) != home)


Loading: TypeAlias = Generator[simpy.Event, Any, tuple[float, float]]
"""Returns when a load began, and its seconds."""


class Gpus:
    """Workers with slots for engines, and the memory of their machine.

    NOTE: when a session is opened, it requests slots on all its workers, and its turn. Requests are served in the order
    in which sessions were opened, so gangs cannot wait for each other. The engine of an ended session stays until a
    slot is needed for another; then it ends, or is put to sleep.

    Parameters
    ----------
    env, cluster
        The clock and the workers.
    use
        How sessions share them.
    host
        Keeps weights and engines; None: no memory for them.
    held
        The models on every worker at the start.
    """

    def __init__(
        self, env: simpy.Environment, cluster: Cluster, use: GpuUse, host: Host | None, held: Placement | None
    ) -> None:
        self._env = env
        self._use = use
        self._rooms = [simpy.Resource(env, use.num_slots) for _ in cluster.workers]
        self._turns = [simpy.Resource(env) for _ in cluster.workers] if use.ahead_bytes else []
        self._slots = [[Slot(worker.id, held) for _ in range(use.num_slots)] for worker in cluster.workers]
        self._host: HostMemory | None = None
        if host is not None and use.keep is not Keep.NOTHING:
            spare = [worker.gpu.memory_bytes - worker.gpu.usable_bytes for worker in cluster.workers]
            self._host = HostMemory(host.memory_bytes, host.asleep_gpu_bytes, spare)
        self._holdings: list[Holding] = []

    @property
    def holdings(self) -> Sequence[Holding]:
        """All held memory, by the start of each holding."""
        return [*self._holdings, *(self._host.holdings if self._host else ())]

    def request(self, live: SimSession) -> None:
        """Request room for an opened session."""
        workers = live.session.workers
        live.requests = [self._rooms[worker].request() for worker in workers for _ in range(live.model.num_slots)]
        live.turns = [self._turns[worker].request() for worker in workers] if self._turns else []

    def leave(self, live: SimSession) -> Iterator[int]:
        """Release a session's room; yields the workers that are idle then."""
        slots = self._slots_of(live)
        for slot in slots:
            slot.owner = None
        others = {slot.owner for worker in live.session.workers for slot in self._slots[worker]}
        if self._turns and any(other and placement_of(other.session) != placement_of(live.session) for other in others):
            self._end_engines(slots, live)  # a session that has loaded beside it needs the rest of its memory
        for number, worker in enumerate(live.session.workers):
            for request in live.requests[number * live.model.num_slots : (number + 1) * live.model.num_slots]:
                self._rooms[worker].release(request)
            if live.turns and live.turns[number].triggered:
                self._turns[worker].release(live.turns[number])
            elif live.turns:
                live.turns[number].cancel()
            if not self._rooms[worker].users and not self._rooms[worker].queue:
                yield worker

    def paces(self, touched: Iterable[SimSession]) -> list[tuple[SimSession, int]]:
        """List the sessions with calls whose pace changes, beside some that have started or ended calls.

        Engines on a GPU take turns, iteration by iteration: with n engines that have calls, each takes n times as long.
        """
        changed: dict[SimSession, int] = {}
        for worker in dict.fromkeys(worker for live in touched for worker in live.session.workers):
            busy = {slot.owner: None for slot in self._slots[worker] if slot.owner and slot.owner.is_busy}
            changed |= {live: len(busy) for live in busy if live.pace != len(busy)}
        return list(changed.items())

    def bring_up(self, live: SimSession) -> Loading:
        """Load a session's expert if needed, and wait for its turn; returns the load."""
        home, workers = placement_of(live.session), live.session.workers
        has_turn = not live.turns
        if not has_turn and any(
            slot.owner and placement_of(slot.owner.session) == home for slot in self._slots[workers[0]]
        ):
            yield self._env.all_of(live.turns)  # the session before has the same engine, and leaves it loaded
            has_turn = True
        self._take(live)
        load = self._env.now, 0.0
        if any(slot.home != home for slot in self._slots_of(live)):
            load = yield from self._load(live)
        if not has_turn:
            yield self._env.all_of(live.turns)
            beside = [slot for worker in workers for slot in self._slots[worker]]
            yield from wait_until(self._env, max(slot.free_ts for slot in beside))
        self._hold(live, live.model.held_bytes)
        return load

    def _slots_of(self, live: SimSession) -> list[Slot]:
        """List a session's slots."""
        return [slot for worker in live.session.workers for slot in self._slots[worker] if slot.owner is live]

    def _take(self, live: SimSession) -> None:
        """Choose slots: those with the session's engine, or else empty ones."""
        home = placement_of(live.session)
        for worker in live.session.workers:
            free = [slot for slot in self._slots[worker] if slot.owner is None]
            free.sort(key=lambda slot: (slot.home != home, slot.home is not None))
            for slot in free[: live.model.num_slots]:
                slot.owner = live

    def _load(self, live: SimSession) -> Loading:
        env, home, slots = self._env, placement_of(live.session), self._slots_of(live)
        gone = list(slots)
        if self._turns:  # an unused engine beside it would hold all the memory
            mine = [slot for worker in live.session.workers for slot in self._slots[worker]]
            gone += [slot for slot in mine if slot.owner is None]
        self._end_engines([slot for slot in gone if slot.home != home], live)
        yield from wait_until(env, max(slot.free_ts for slot in slots))
        start_ts = env.now
        self._hold(live, live.model.ahead_bytes if self._turns else live.model.held_bytes)
        asleep, weights = Asleep(home), Weights(live.session.expert)
        entry = next((entry for entry in (asleep, weights) if self._host and entry in self._host), None)
        load_s = self._load_s(live, entry)
        if self._host is not None:
            if entry is None:
                num_bytes = live.model.expert.known_shape.weight_bytes
                self._host.keep(weights, num_bytes, start_ts, start_ts + load_s)
            else:
                self._host.read(entry)
        yield from wait_until(env, start_ts + load_s)
        if self._host is not None and entry is not None:
            self._host.end_read(entry)
            if entry is asleep:
                self._host.drop(entry, env.now)
        for slot in slots:
            slot.home, slot.model = home, live.model
        return start_ts, load_s

    def _load_s(self, live: SimSession, entry: Asleep | Weights | None) -> float:
        """Return the seconds of a load that begins now, by the location of the weights; running copies end first."""
        model = live.model
        if entry is None or self._host is None:
            return model.load_s
        left_s = max(0.0, self._host.ready_ts[entry] - self._env.now)
        return left_s + model.sleep_s if isinstance(entry, Asleep) else max(left_s, model.warm_load_s)

    def _end_engines(self, slots: Sequence[Slot], live: SimSession) -> None:
        """End the engines of some slots, or put them to sleep, from now on; ``live`` needs the slots."""
        for home in dict.fromkeys(slot.home for slot in slots if slot.home is not None):
            mine = [slot for slot in slots if slot.home == home]
            there = [slot for worker in home[1] for slot in self._slots[worker] if slot.is_left(home)]
            seconds = self._sleep_s(home, there)
            if seconds is None:
                seconds = live.model.unload_s
            is_partial = self._host is None and self._use.num_slots == 1
            for slot in mine if is_partial else {id(slot): slot for slot in (*mine, *there)}.values():
                slot.home = None
                slot.free_ts = self._env.now + seconds
                if slot.holding is not None:
                    slot.holding.end_ts = slot.free_ts
                    slot.holding = None

    def _sleep_s(self, home: Placement, there: Sequence[Slot]) -> float | None:
        """Put a whole engine to sleep, and return the seconds of it; None: it cannot sleep."""
        model = there[0].model if there else None
        if self._host is None or self._use.keep is not Keep.ENGINES or model is None:
            return None
        if len(there) < len(home[1]) * model.num_slots:
            return None
        now = self._env.now
        is_kept = self._host.keep(Asleep(home), model.expert.known_shape.weight_bytes, now, now + model.sleep_s)
        return model.sleep_s if is_kept else None

    def _hold(self, live: SimSession, num_bytes: int) -> None:
        """Record a session's memory on each worker from now on."""
        num_bytes //= live.model.num_slots
        for slot in self._slots_of(live):
            if slot.holding is not None and slot.holding.num_bytes == num_bytes:
                continue
            if slot.holding is not None:
                slot.holding.end_ts = self._env.now
            slot.holding = Holding(slot.worker, "engine", live.session.expert, num_bytes, self._env.now)
            self._holdings.append(slot.holding)
