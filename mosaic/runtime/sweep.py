"""Measures a profile: sessions of several shard sizes on calibration calls, run on a backend."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeAlias

from mosaic.core.checks import require, require_count, require_unique
from mosaic.core.cluster import Cluster
from mosaic.core.errors import DisturbedSweepError
from mosaic.core.plan import Session, prediction_from_sample, unpriced_plan
from mosaic.core.results import CallRecord, RunResult, SessionRecord
from mosaic.core.workload import PROPOSE, Call, CallKey, Expert, ExpertName
from mosaic.planning.profiles import Profile, ProfileEntry, SweepPoint, fit_session
from mosaic.runtime.backend import Backend
from mosaic.runtime.controller import Controller
from mosaic.runtime.speed_fit import fit_speed
from mosaic.runtime.static_plan import execute
from mosaic.runtime.whole_sweep import WholeSweep

PromptTokens: TypeAlias = Callable[[int], int]
"""Prompt tokens of the i-th calibration call; sources with fewer questions repeat them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """Which sessions a profile is made of."""

    shard_sizes: tuple[int, ...]
    num_repeats: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.shard_sizes, Sequence) or isinstance(self.shard_sizes, str):
            raise TypeError(f"profile.sweep.shard_sizes must be a list of whole numbers, got {self.shard_sizes!r}")
        object.__setattr__(self, "shard_sizes", tuple(self.shard_sizes))
        for size in self.shard_sizes:
            require_count(size, "profile.sweep.shard_sizes", at_least=1)
        require_unique(self.shard_sizes, "profile.sweep.shard_sizes")
        require(len(self.shard_sizes) >= 2, "profile.sweep.shard_sizes", "at least two sizes", self.shard_sizes)
        require_count(self.num_repeats, "profile.sweep.num_repeats", at_least=1)

    @property
    def num_calls(self) -> int:
        """Of an expert, in all."""
        return sum(self.shard_sizes) * self.num_repeats


def sweep_calls(sweep: Sweep, expert: ExpertName, prompt_tokens: PromptTokens) -> Iterator[tuple[Call, ...]]:
    """List the calibration shards of an expert; every call has a key of its own, so luck is not shared."""
    first = 0
    for size in sweep.shard_sizes:
        for _ in range(sweep.num_repeats):
            yield tuple(
                Call(CallKey(f"calibration-{expert}-{i}", PROPOSE, 0), expert, prompt_tokens(i))
                for i in range(first, first + size)
            )
            first += size


def run_sweep(
    sweeps: Mapping[ExpertName, Sweep],
    experts: Sequence[Expert],
    cluster: Cluster,
    backend: Backend,
    prompt_tokens: PromptTokens,
    source: str,
    workers_of: Callable[[Expert, int], tuple[int, ...]] = lambda expert, session: tuple(range(expert.tp_degree)),
    controllers: Sequence[Controller] = (),
) -> Profile:
    """Run the sessions of sweeps one expert after the other and fit their costs.

    Parameters
    ----------
    sweeps, experts, cluster, backend
        What to run of each expert, where and by whom.
    prompt_tokens
        Of the calibration calls.
    source
        Where the profile says it comes from.
    workers_of
        Where an expert is measured, by the number of the session if all had as many; the first workers unless told
        otherwise.
    controllers
        Who else hears the events.

    Raises
    ------
    BackendError
        If the backend cannot run a session, or a call does not finish: a price is never fitted to part of a sweep.
    DisturbedSweepError
        If sessions that were interrupted leave too few others.
    """
    sessions: list[Session] = []
    calls: list[Call] = []
    shards = {expert.name: list(sweep_calls(sweeps[expert.name], expert.name, prompt_tokens)) for expert in experts}
    # NOTE: sizes outside, experts inside, so that an expert is loaded again for each of its sessions
    # (and its load is measured again) unless it is alone in the pool.
    for index in range(max(map(len, shards.values()))):
        for place, expert in enumerate(experts):
            if index >= len(shards[expert.name]):
                continue
            shard = shards[expert.name][index]
            calls += shard
            sessions.append(
                Session(
                    id=len(sessions),
                    expert=expert.name,
                    node=PROPOSE,
                    workers=workers_of(expert, index * len(experts) + place),
                    shard=tuple(call.key for call in shard),
                )
            )
    everybody = (*controllers, WholeSweep("profile sweep", len(calls)))
    result = execute(unpriced_plan(sessions, num_workers=cluster.num_workers), calls, backend, everybody)
    assert len(result.calls) == len(calls), "all finished"
    return Profile(source=source, entries=tuple(entry_of(expert, cluster, result) for expert in experts))


def entry_of(expert: Expert, cluster: Cluster, result: RunResult) -> ProfileEntry:
    """Fit an expert's costs to its sessions.

    Raises
    ------
    DisturbedSweepError
        If sessions that were interrupted leave fewer than two sizes.
    """
    records: list[CallRecord] = [call for call in result.calls if call.expert == expert.name]
    # NOTE: a session that was interrupted and begun again took longer than its calls need. One whose server wanted a
    # request twice did not: the batch will meet the same server.
    sessions: list[SessionRecord] = [
        session for session in result.sessions if session.expert == expert.name and not session.num_interruptions
    ]
    sizes = {session.num_calls for session in sessions}
    if len(sizes) < 2:
        raise DisturbedSweepError(
            f"profile sweep of {expert.name}: sessions of two shard sizes must run undisturbed, {len(sizes)} did"
        )
    points = tuple(
        SweepPoint(
            num_calls=session.num_calls,
            session_s=session.end_ts - session.start_ts,
            output_tokens=session.output_tokens,
        )
        for session in sessions
    )
    sample = tuple(sorted(record.output_tokens for record in records))
    return ProfileEntry(
        expert=expert.name,
        gpu=cluster.select(sessions[0].workers)[0].gpu.name,
        tp_degree=expert.tp_degree,
        load_s=typical_load_s(result.sessions, expert.name),
        fit=fit_session(points),
        lengths=prediction_from_sample(sample),
        points=points,
        output_tokens=sample,
        speed=fit_speed([record for record in records if record.session in {one.session for one in sessions}]),
        kv_budget_tokens=expert.kv_budget_tokens,
    )


def typical_load_s(sessions: Sequence[SessionRecord], expert: ExpertName) -> float:
    """Take the median of an expert's loads: one that something else disturbed must not price them all; 0: none."""
    loads = [session.load_s for session in sessions if session.expert == expert and session.load_s > 0]
    return median(loads) if loads else 0.0
