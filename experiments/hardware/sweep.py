"""A sweep: sessions in which every coefficient of a machine's price shows, and rounds of them on every worker."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Annotated, NamedTuple, TypeAlias

from mosaic.core.checks import AtLeast1, Limit, Positive, checked, require
from mosaic.core.cluster import Cluster
from mosaic.core.engine_options import EngineOptions
from mosaic.core.errors import BackendError, DisturbedSweepError
from mosaic.core.plan import Plan, Session, unpriced_plan
from mosaic.core.realization import Outcome, Outcomes
from mosaic.core.results import CallStatus, RunResult
from mosaic.core.workload import PROPOSE, Call, CallKey, Expert
from mosaic.runtime.backend import Backend
from mosaic.runtime.static_plan import execute

Batch: TypeAlias = tuple[tuple[int, int], ...]
"""The requests of a session: prompt and output tokens of each."""

LONGEST_PROMPT = 1024
"""Of batches as large as they get; experts with a shorter context have half of it."""
WARM_UP: Batch = ((24, 6),) * 48
"""Served first by a new engine: its extra time, compared with later ones, belongs to the load."""
NUM_LONG = (1, 4, 16)
"""Long sequences in a batch of unequal ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("engine sweep: ")
class SweepSize:
    """How much a sweep measures."""

    num_rounds: AtLeast1 = 3
    """Every session is run so often on each worker, each round with engines loaded anew."""
    decode_steps: Annotated[int, Limit(at_least=2)] = 48
    """Output tokens of a request in a batch of equal ones."""
    longest_prompt: Annotated[int, Limit(at_least=64)] | None = None
    """Of the batches that show context and unequal lengths; None: there are none."""
    most_tokens: AtLeast1 = 131_072
    """Prompt tokens of a batch, where one request does not have more: with long prompts batches are smaller."""


def batches_of(context_tokens: int, settings: EngineOptions, size: SweepSize) -> list[Batch]:
    """List the sessions of a round, each once.

    They are equal requests by batch size and prompt, prompts alone, and queues with arrivals and ends. If a longest
    prompt is given, there are also equal and unequal requests of long contexts.
    """
    require(context_tokens >= 64, "engine sweep: context_tokens", "at least 64", context_tokens)
    span, largest = min(context_tokens, LONGEST_PROMPT * 2), settings.max_num_seqs
    steps = min(size.decode_steps, span // 4)
    short, middle, long = (max(8, span // part) for part in (32, 10, 2))
    sizes = sorted({1, min(4, largest), max(1, largest // 4), max(1, largest // 2), largest})

    def held(prompt: int, number: int) -> int:
        return _held(prompt, steps, number, settings, size)

    equal = [((prompt, steps),) * held(prompt, number) for prompt in (short, long) for number in sizes]
    alone = [((prompt, 1),) * held(prompt, number) for prompt in (short, middle, long) for number in (1, largest)]
    # In a long queue of unequal lengths nearly every iteration takes a request in.
    spread = [1 + round(steps * (0.618034 * i % 1)) for i in range(3 * largest)]
    churn = [
        tuple((prompt, max(1, length * share // 4)) for prompt, length in zip(cycle(prompts), spread))
        for prompts, share in (((middle, short, 2 * middle), 1), ((middle,), 4), ((middle, 2 * middle), 8))
    ]
    # A quarter of the batch ends at once, so that prompts are read a quarter of a batch at a time.
    waves = [tuple((middle, part * (1 + i % 4)) for i in range(4 * largest)) for part in (3, max(1, steps // 4))]
    lengths: list[Batch] = []
    if size.longest_prompt is not None:
        lengths = _by_length(min(size.longest_prompt, context_tokens - steps), steps, settings, size)
    return list(dict.fromkeys([*equal, *alone, *churn, *waves, *lengths]))


def _by_length(longest: int, steps: int, settings: EngineOptions, size: SweepSize) -> list[Batch]:
    """Batches of long contexts; and of one size with unequal lengths, with their mean and with their maximum."""
    contexts = [
        ((prompt, steps),) * _held(prompt, steps, number, settings, size)
        for prompt in (longest // 4, longest // 2, longest)
        for number in (1, 4, settings.max_num_seqs)
    ]
    number, short = settings.max_num_seqs // 4, max(8, longest // 64)
    unequal: list[Batch] = []
    for total in (number, 2 * number, 4 * number):
        for num_long in NUM_LONG:
            mean = (num_long * longest + (total - num_long) * short) // total
            if num_long < total and _held(mean, steps, total, settings, size) == total:
                # The long prompts come first, so that all decode together soon after the others are read.
                mixed = ((longest, steps),) * num_long + ((short, steps),) * (total - num_long)
                unequal += [mixed, ((mean, steps),) * total]
    return [*contexts, *unequal]


def _held(prompt: int, steps: int, number: int, settings: EngineOptions, size: SweepSize) -> int:
    """Cut a batch down to what the KV cache holds at once, and to what is read in good time."""
    kv_tokens = settings.kv_cache_tokens
    in_memory = number if kv_tokens is None else kv_tokens // (prompt + steps + settings.block_size)
    return max(1, min(number, in_memory, size.most_tokens // prompt))


MakeBackend: TypeAlias = Callable[[Outcomes, str], Backend]
"""Makes a backend that replays outcomes with random prompts, for a run of this name."""

MAX_TRIES = 3
"""Of a round, until no session of it was interrupted."""


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("measured session: ")
class MeasuredSession:
    """What a session held and how long it took; instants are seconds since its engine was ready."""

    requests: tuple[tuple[int, int], ...]
    """Prompt and output tokens of each, in the order in which they were given to the engine."""
    serve_s: Positive
    prompts_read_s: float
    """When the last of them had its first token."""
    last_token_s: float
    cpu_s: float | None = None
    """Processor time of its worker; None: not known, or not what limits the worker."""

    def __post_init__(self) -> None:
        require(len(self.requests) > 0, "measured session: requests", "at least one", 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRound:
    """What a round showed of a expert."""

    sessions: tuple[MeasuredSession, ...]
    ready_s: tuple[float, ...]
    """Of each engine: from the start of its load to the end of the session that warmed it up."""


def measure_round(
    expert: Expert,
    cluster: Cluster,
    make_backend: MakeBackend,
    settings: EngineOptions,
    size: SweepSize,
    number: int,
    run: str,
    *,
    by_cpu: bool,
) -> MeasuredRound:
    """Run every session of an expert once on all workers; a round with a session that failed is run again.

    Raises
    ------
    BackendError
        If a call did not finish.
    DisturbedSweepError
        If sessions are interrupted again and again.
    """
    # Over several workers a session has several threads, whose seconds add up to more than the clock's.
    alone = by_cpu and expert.tp_degree == 1
    listed = batches_of(expert.context_limit, settings, size)
    for again in range(MAX_TRIES):
        name = f"{run}-{again}"
        content = round_of(expert, cluster.num_workers, listed, number, name)
        result = execute(content.plan, content.calls, make_backend(content.outcome, name))
        if is_undisturbed(result, by_cpu=alone):
            break
    else:
        raise DisturbedSweepError("engine sweep: sessions fail again and again, so that no time can be taken")
    return MeasuredRound(
        sessions=tuple(measured_sessions(result, content.batches, by_cpu=alone)),
        ready_s=ready_s(result, content.batches),
    )


class Round(NamedTuple):
    """The sessions of a round, on all workers at once."""

    plan: Plan
    calls: tuple[Call, ...]
    batches: dict[int, Batch]
    """By session."""
    outcome: Outcomes


def round_of(expert: Expert, num_workers: int, listed: Sequence[Batch], number: int, run: str) -> Round:
    """Put every batch on every worker once, as a session, behind one that warms the engine up.

    NOTE: a worker starts somewhere else in the list than its neighbour, so that no session always meets the same one
    beside it.
    """
    degree = expert.tp_degree
    gangs = [tuple(range(first, first + degree)) for first in range(0, num_workers - degree + 1, degree)]
    sessions: list[Session] = []
    calls: list[Call] = []
    batches: dict[int, Batch] = {}
    lengths: dict[CallKey, int] = {}
    for place, workers in enumerate(gangs):
        start = (place * len(listed)) // len(gangs) + number
        turned = [listed[(start + i) % len(listed)] for i in range(len(listed))]
        for batch in (WARM_UP, *turned):
            batches[len(sessions)] = batch
            keys = tuple(CallKey(f"{run}-{len(sessions)}-{i}", PROPOSE, 0) for i in range(len(batch)))
            calls += [Call(key, expert.name, prompt) for key, (prompt, _) in zip(keys, batch, strict=True)]
            lengths |= {key: output for key, (_, output) in zip(keys, batch, strict=True)}
            sessions.append(Session(id=len(sessions), expert=expert.name, node=PROPOSE, workers=workers, shard=keys))
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
            prompts_read_s=max(first for first, _ in finished[session.session]) - session.start_ts,
            last_token_s=max(last for _, last in finished[session.session]) - session.start_ts,
            cpu_s=session.cpu_s if by_cpu else None,
        )
        for session in result.sessions
        if batches[session.session] != WARM_UP
    ]


def ready_s(result: RunResult, batches: Mapping[int, Batch]) -> tuple[float, ...]:
    """Say how long each engine took from the start of its load until it was warm."""
    return tuple(
        session.load_s + session.end_ts - session.start_ts
        for session in result.sessions
        if batches[session.session] == WARM_UP
    )


def is_undisturbed(result: RunResult, *, by_cpu: bool) -> bool:
    """Return whether no session was interrupted and tried again, which would be measured with what that cost."""
    known = not by_cpu or all(session.cpu_s is not None for session in result.sessions)
    return known and not any(call.attempt for call in result.calls)
