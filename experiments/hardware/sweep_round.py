"""One round of a sweep: every session of a group on every worker, and what the records say of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from experiments.hardware.engine_fit import MeasuredSession
from experiments.hardware.sweep_sessions import WARM_UP, Batch, SweepSize, batches_of
from mosaic.core.cluster import Cluster
from mosaic.core.engine_options import EngineOptions
from mosaic.core.errors import BackendError, DisturbedSweepError
from mosaic.core.plan import Plan, Session, unpriced_plan
from mosaic.core.realization import Outcome, Outcomes
from mosaic.core.results import CallStatus, RunResult
from mosaic.core.workload import PROPOSE, Call, CallKey, Expert, ModelShape
from mosaic.runtime.backend import Backend
from mosaic.runtime.static_plan import execute

MakeBackend: TypeAlias = Callable[[Outcomes, str], Backend]
"""Makes a backend that replays outcomes with random prompts, for a run of this name."""

MAX_TRIES = 3
"""Of a round, until no session of it was interrupted."""


class Group(NamedTuple):
    """Experts of one shape, context and tensor-parallel degree."""

    shape: ModelShape
    tp_degree: int
    context_tokens: int
    experts: tuple[Expert, ...]


def groups_of(experts: Sequence[Expert]) -> list[Group]:
    """Put experts that cost the same together."""
    found: dict[tuple[ModelShape, int], list[Expert]] = {}
    for expert in experts:
        found.setdefault((expert.shape, expert.tp_degree), []).append(expert)
    return [
        Group(shape, tp_degree, min(expert.context_tokens for expert in members), tuple(members))
        for (shape, tp_degree), members in found.items()
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRound:
    """What a round showed of a group."""

    sessions: tuple[MeasuredSession, ...]
    ready_s: tuple[float, ...]
    """Of each engine: from the start of its load to the end of the session that warmed it up."""


def measure_round(
    group: Group,
    cluster: Cluster,
    make_backend: MakeBackend,
    settings: EngineOptions,
    size: SweepSize,
    number: int,
    run: str,
    *,
    by_cpu: bool,
) -> MeasuredRound:
    """Run every session of a group once on all workers; a round with a session that failed is run again.

    Raises
    ------
    BackendError
        If a call did not finish.
    DisturbedSweepError
        If sessions are interrupted again and again.
    """
    # Over several workers a session has several threads, whose seconds add up to more than the clock's.
    alone = by_cpu and group.tp_degree == 1
    listed = batches_of(group.context_tokens, settings, size)
    for again in range(MAX_TRIES):
        name = f"{run}-{again}"
        content = round_of(group, cluster.num_workers, listed, number, name)
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


def round_of(group: Group, num_workers: int, listed: Sequence[Batch], number: int, run: str) -> Round:
    """Put every batch on every worker once, as a session, behind one that warms the engine up.

    NOTE: a worker starts somewhere else in the list than its neighbour, so that no session always meets the same one
    beside it.
    """
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
    """Tell whether no session was interrupted and tried again, which would be measured with what that cost."""
    known = not by_cpu or all(session.cpu_s is not None for session in result.sessions)
    return known and not any(call.attempt for call in result.calls)
