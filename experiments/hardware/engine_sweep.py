"""Measure what an engine's iterations cost on the machine in front of you, by sessions whose content is known.

``fit_machine`` runs equal requests in batches of several sizes, prompts of several lengths, and long queues through a
replay backend, with all workers busy, and fits a conf/hardware file to what the records say.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from statistics import median
from typing import Any, NamedTuple, TypeAlias

from experiments.hardware.engine_fit import MeasuredSession, ShapeFit, fit_loads, fit_shape, hardware_config, serve_s
from mosaic.core.checks import require, require_count
from mosaic.core.cluster import Cluster
from mosaic.core.engine_options import Device, EngineOptions, ModelLoading, Order
from mosaic.core.errors import BackendError, DisturbedSweepError
from mosaic.core.plan import Plan, Session, unpriced_plan
from mosaic.core.realization import Outcome, Outcomes
from mosaic.core.results import CallStatus, RunResult
from mosaic.core.workload import PROPOSE, Call, CallKey, Expert, ModelShape
from mosaic.runtime.backend import Backend
from mosaic.runtime.static_plan import execute

MakeBackend: TypeAlias = Callable[[Outcomes, str], Backend]
"""Makes a backend that replays outcomes with random prompts, for a run of this name."""
Batch: TypeAlias = tuple[tuple[int, int], ...]
"""The requests of a session: prompt and output tokens of each."""

DEFAULT_BATCHED_TOKENS = {Device.CPU: 4096, Device.GPU: 8192}
"""vLLM 0.32's token budget of an iteration where none is given, for one offline engine (16384 on the largest GPUs)."""

LONGEST_PROMPT = 1024
"""Of the sweep; experts with a shorter context have half of it."""
MAX_TRIES = 3
"""Of a round, until no session of it was interrupted."""
WARM_UP: Batch = ((24, 6),) * 48
"""Served first by a fresh engine: what it takes longer than later on belongs to the load."""


class Group(NamedTuple):
    """Experts of one shape, context and tensor-parallel degree."""

    shape: ModelShape
    tp_degree: int
    context_tokens: int
    experts: tuple[Expert, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepSize:
    """How much a sweep measures."""

    num_rounds: int = 3
    """Every session is run so often on each worker, each round with engines loaded anew."""
    decode_steps: int = 48
    """Output tokens of a request in a batch of equal ones."""

    def __post_init__(self) -> None:
        require_count(self.num_rounds, "engine sweep: num_rounds", at_least=1)
        require_count(self.decode_steps, "engine sweep: decode_steps", at_least=2)


def fit_machine(
    experts: Sequence[Expert],
    cluster: Cluster,
    make_backend: MakeBackend,
    *,
    settings: EngineOptions,
    name: str,
    memory_gib: float,
    source: str,
    by_cpu: bool = False,
    size: SweepSize | None = None,
) -> dict[str, Any]:
    """Sweep each distinct shape of the experts and fit the coefficients of this machine.

    Parameters
    ----------
    experts, cluster
        The experts; of those that share a shape only the first few are loaded. All workers run at once.
    make_backend
        Makes the backend of a round.
    settings
        The simulator's name for how these engines schedule: what was in an iteration follows from it.
    name, memory_gib
        Of the hardware.
    source
        What was measured where, for the file.
    by_cpu
        Where workers are CPU cores: by the processor time of sessions, which other work on the machine does not
        lengthen as much as the time by the clock.
    size
        How much to measure.

    Returns
    -------
    dict
        Configuration of ``sim.hardware.hardware_from_config``, see `experiments.hardware.engine_fit.machine_yaml`.

    Raises
    ------
    BackendError
        If a call of the sweep did not finish.
    """
    size = size or SweepSize()
    fits: list[ShapeFit] = []
    load_s_by_bytes: dict[int, float] = {}
    for number, group in enumerate(groups_of(experts)):
        measured: list[MeasuredSession] = []
        ready_s: list[float] = []
        # Over several workers a session has several threads, whose seconds add up to more than the clock's.
        alone = by_cpu and group.tp_degree == 1
        for round_number in range(size.num_rounds):
            for again in range(MAX_TRIES):
                run = f"sweep-{number}-{round_number}-{again}"
                content = round_of(group, cluster.num_workers, settings, size, round_number, run)
                backend = make_backend(content.outcome, run)
                result = execute(content.plan, content.calls, backend)
                if is_undisturbed(result, by_cpu=alone):
                    break
            else:
                raise DisturbedSweepError("engine sweep: sessions fail again and again, so that no time can be taken")
            measured += measured_sessions(result, content.batches, by_cpu=alone)
            ready_s += [
                session.load_s + session.end_ts - session.start_ts
                for session in result.sessions
                if content.batches[session.session] == WARM_UP
            ]
        if alone:
            measured = typical(measured)
        fit = fit_shape(group.shape, group.tp_degree, group.context_tokens, settings, measured)
        load_s_by_bytes[group.shape.weight_bytes] = max(0.0, median(ready_s) - serve_s(fit, WARM_UP, settings))
        fits.append(fit)
    clock = "by the clock" if not by_cpu else "by processor time, medians of repeats, loads by the clock"
    conditions = f"{source}; {cluster.num_workers} workers busy at once, {size.num_rounds} rounds, {clock}"
    return hardware_config(fits, fit_loads(load_s_by_bytes), name=name, memory_gib=memory_gib, source=conditions)


def mirrored_settings(engine: EngineOptions, experts: Sequence[Expert]) -> EngineOptions:
    """Give the simulator the options of real engines, with what these leave to vLLM or say in bytes written out.

    NOTE: on CPU prompts are read whole, where the simulator may split the last prompt of an iteration; with prompts far
    below the token budget that changes nothing. The KV cache of several shapes is that of the hungriest. Prefixes are
    not cached: prompts of a replay share none.
    """
    device = engine.loading.device
    budget = engine.max_num_batched_tokens or DEFAULT_BATCHED_TOKENS[device]
    if device is Device.CPU:
        budget = max(budget, *(expert.context_tokens for expert in experts))
    kv_tokens = engine.kv_cache_tokens
    if engine.kv_cache_memory_bytes is not None:
        hungriest = max(expert.shape.kv_bytes_per_token(expert.tp_degree) for expert in experts)
        kv_tokens = engine.kv_cache_memory_bytes // hungriest
    return replace(
        engine,
        order=Order.MIXED,
        max_num_batched_tokens=max(budget, engine.max_num_seqs),
        kv_cache_tokens=kv_tokens,
        kv_cache_memory_bytes=None,
        enable_prefix_caching=False,
        loading=ModelLoading(),
    )


def groups_of(experts: Sequence[Expert]) -> list[Group]:
    """Put experts that cost the same together."""
    found: dict[tuple[ModelShape, int], list[Expert]] = {}
    for expert in experts:
        found.setdefault((expert.shape, expert.tp_degree), []).append(expert)
    return [
        Group(shape, tp_degree, min(expert.context_tokens for expert in members), tuple(members))
        for (shape, tp_degree), members in found.items()
    ]


def batches_of(context_tokens: int, settings: EngineOptions, size: SweepSize) -> list[Batch]:
    """List the sessions of a round: equal requests by batch size and prompt, prompts alone, and queues that churn."""
    require(context_tokens >= 64, "engine sweep: context_tokens", "at least 64", context_tokens)
    span, largest = min(context_tokens, LONGEST_PROMPT * 2), settings.max_num_seqs
    steps = min(size.decode_steps, span // 4)
    short, middle, long = (max(8, span // part) for part in (32, 10, 2))
    sizes = sorted({1, min(4, largest), max(1, largest // 4), max(1, largest // 2), largest})
    equal = [((prompt, steps),) * number for prompt in (short, long) for number in sizes]
    alone = [((prompt, 1),) * number for prompt in (short, middle, long) for number in (1, largest)]
    # In a long queue of unequal lengths nearly every iteration takes somebody in.
    spread = [1 + round(steps * (0.618034 * i % 1)) for i in range(3 * largest)]
    churn = [
        tuple((prompt, max(1, length * share // 4)) for prompt, length in zip(cycle(prompts), spread))
        for prompts, share in (((middle, short, 2 * middle), 1), ((middle,), 4), ((middle, 2 * middle), 8))
    ]
    # A quarter of the batch ends at once, so that prompts are read a quarter of a batch at a time.
    waves = [tuple((middle, part * (1 + i % 4)) for i in range(4 * largest)) for part in (3, max(1, steps // 4))]
    return [*equal, *alone, *churn, *waves]


class Round(NamedTuple):
    """The sessions of a round, on all workers at once."""

    plan: Plan
    calls: tuple[Call, ...]
    batches: dict[int, Batch]
    """By session."""
    outcome: Outcomes


def round_of(group: Group, num_workers: int, settings: EngineOptions, size: SweepSize, number: int, run: str) -> Round:
    """Put every session on every worker once, behind one that warms the engine up.

    NOTE: a worker starts somewhere else in the list than its neighbour, so that no session always meets the same one
    beside it.
    """
    listed = batches_of(group.context_tokens, settings, size)
    degree = group.tp_degree
    gangs = [tuple(range(first, first + degree)) for first in range(0, num_workers - degree + 1, degree)]
    sessions: list[Session] = []
    calls: list[Call] = []
    batches: dict[int, Batch] = {}
    lengths: dict[CallKey, int] = {}
    for place, workers in enumerate(gangs):
        expert = group.experts[(place + number) % len(group.experts)].name
        start = (place * len(listed)) // len(gangs) + number
        turned = [listed[(start + i) % len(listed)] for i in range(len(listed))]
        for batch in (WARM_UP, *turned):
            batches[len(sessions)] = batch
            keys = tuple(CallKey(f"{run}-{len(sessions)}-{i}", PROPOSE, 0) for i in range(len(batch)))
            calls += [Call(key, expert, prompt) for key, (prompt, _) in zip(keys, batch, strict=True)]
            lengths |= {key: output for key, (_, output) in zip(keys, batch, strict=True)}
            sessions.append(Session(id=len(sessions), expert=expert, node=PROPOSE, workers=workers, shard=keys))
    plan = unpriced_plan(sessions, num_workers=num_workers)
    return Round(plan, tuple(calls), batches, lambda call, _: Outcome(lengths[call.key]))


def measured_sessions(result: RunResult, batches: Mapping[int, Batch], *, by_cpu: bool) -> list[MeasuredSession]:
    """Read the sessions of a round, those that warmed an engine up left out.

    Raises
    ------
    BackendError
        If a call did not finish.
    """
    finished: dict[int, list[tuple[float, float]]] = {number: [] for number in batches}
    for call in result.calls:
        if call.status is CallStatus.FINISHED and call.first_token_ts is not None and call.finished_ts is not None:
            finished[call.session].append((call.first_token_ts, call.finished_ts))
    num_finished, num_calls = sum(map(len, finished.values())), sum(map(len, batches.values()))
    if num_finished != num_calls:
        raise BackendError(f"engine sweep: every call must finish, {num_finished} of {num_calls} did")
    return [
        MeasuredSession(
            requests=batches[session.session],
            serve_s=session.end_ts - session.start_ts,
            first_token_s=min(first for first, _ in finished[session.session]) - session.start_ts,
            last_token_s=max(last for _, last in finished[session.session]) - session.start_ts,
            cpu_s=session.cpu_s if by_cpu else None,
        )
        for session in result.sessions
        if batches[session.session] != WARM_UP
    ]


def is_undisturbed(result: RunResult, *, by_cpu: bool) -> bool:
    """Tell whether no session was interrupted and tried again, which would be measured with what that cost."""
    known = not by_cpu or all(session.cpu_s is not None for session in result.sessions)
    return known and not any(call.attempt for call in result.calls)


def typical(measured: Sequence[MeasuredSession]) -> list[MeasuredSession]:
    """Keep of each session's repeats the one of median processor time: what runs will meet, not the best case."""
    repeats: dict[Batch, list[MeasuredSession]] = {}
    for session in measured:
        repeats.setdefault(session.requests, []).append(session)
    return [
        sorted(those, key=lambda session: session.cpu_s or 0.0)[(len(those) - 1) // 2] for those in repeats.values()
    ]
