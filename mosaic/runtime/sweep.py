"""Defines the sessions that a profile is measured by, if their calls are not the batch's."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice
from typing import TypeAlias

import msgspec

from mosaic.core.checks import AtLeast1, checked, require, require_unique
from mosaic.core.cluster import Cluster, Worker, may_be_gang
from mosaic.core.workload import PROPOSE, Call, CallKey, Expert, ExpertName, NodeName, Question, Workload
from mosaic.runtime.unpriced import PlacesOf, in_thirds

Fits: TypeAlias = Callable[[Expert, Sequence[Worker]], bool]
"""Checks whether workers can hold an expert."""

MIN_CALLS = 8
"""The smallest measurement: sessions of 1, 2 and 5 calls, the two points of a line and one in reserve."""
MOST_SWEPT_CALLS = 50_000
"""Of all experts together: with 20 experts or more, sessions are smaller than the sweep's settings."""
WAVES = (1, 2, 4)
"""Waves serve all calls, a half and a quarter of them."""
NUM_SWEPT_CALLS, MAX_REPEATS = 512, 8
"""Waves are repeated until they have served so many calls: a few small waves give little information."""


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("profile.sweep.")
class Sweep:
    """The sessions of a profile."""

    shard_sizes: tuple[AtLeast1, ...]
    num_repeats: AtLeast1 = 1

    def __post_init__(self) -> None:
        require_unique(self.shard_sizes, "profile.sweep.shard_sizes")
        require(len(self.shard_sizes) >= 2, "profile.sweep.shard_sizes", "at least two sizes", self.shard_sizes)

    @property
    def num_calls(self) -> int:
        """Calls of an expert, in all."""
        return sum(self.shard_sizes) * self.num_repeats

    def within(self, num_calls: int | None) -> "Sweep":
        """Shrink to so many calls: first the repeats, and then to three sessions, each twice as large as the last.

        Few large sessions predict a large batch better than many small ones, and one of them may be interrupted.

        Examples
        --------
        >>> sweep = Sweep(shard_sizes=(128, 384, 768), num_repeats=2)
        >>> [sweep.within(num_calls) for num_calls in (1500, 30)]
        [Sweep(shard_sizes=(128, 384, 768), num_repeats=1), Sweep(shard_sizes=(4, 8, 18), num_repeats=1)]
        """
        size = sum(self.shard_sizes)
        if num_calls is None or size * self.num_repeats <= num_calls:
            return self
        if size <= num_calls:
            return replace(self, num_repeats=num_calls // size)
        return Sweep(shard_sizes=in_thirds(num_calls))

    def by_expert(self, calls: Sequence[Call], max_batch_frac: float | None) -> dict[ExpertName, "Sweep"]:
        """Return the sweep of each expert of a batch, given its number of calls and the number of experts."""
        counts = Counter(call.expert for call in calls)
        share = self.within(MOST_SWEPT_CALLS // max(1, len(counts)))
        return {expert: share.within(measured_calls(number, max_batch_frac)) for expert, number in counts.items()}


def measured_calls(num_calls: int, max_batch_frac: float | None) -> int | None:
    """Return how many calls may be measured before a batch with so many; None: no limit.

    Examples
    --------
    >>> [measured_calls(num_calls, 0.1) for num_calls in (20, 300, 25600)], measured_calls(20, None)
    ([8, 30, 2560], None)
    """
    return None if max_batch_frac is None else max(MIN_CALLS, int(max_batch_frac * num_calls))


def of_questions(workload: Workload, questions: Sequence[Question]) -> Workload:
    """Reduce a workload to some of its questions."""
    kept = {question.id for question in questions}
    calls = tuple(call for call in workload.calls if call.key.question in kept)
    return Workload(name=workload.name, questions=tuple(questions), calls=calls)


@dataclass(frozen=True, slots=True)
class Row:
    """Experts that are measured together: each at one degree, on workers of one kind."""

    name: str
    """Name of the measurement."""
    experts: tuple[Expert, ...]
    places: PlacesOf


def rows_of(experts: Sequence[Expert], cluster: Cluster, places: PlacesOf, fits: Fits) -> Iterator[Row]:
    """List the measurements of experts: each of their degrees, on each kind of GPU that holds them.

    If all have one degree and workers are of one kind, there is one row, on all their gangs.
    """
    workers = cluster.workers
    if len({worker.gpu for worker in workers}) == 1 and not any(expert.tp_degrees for expert in experts):
        yield Row("profile", tuple(experts), places)
        return
    for degree in sorted({degree for expert in experts for degree in expert.possible_degrees}):
        gangs = (workers[start : start + degree] for start in range(0, len(workers) - degree + 1, degree))
        first = {gang[0].gpu: gang for gang in reversed([gang for gang in gangs if may_be_gang(gang)])}
        for gpu, gang in first.items():
            shaped = (replace(expert, tp_degree=degree) for expert in experts if degree in expert.possible_degrees)
            held = tuple(expert for expert in shaped if fits(expert, gang))
            if held:
                yield Row(f"profile_{gpu.name}_tp{degree}", held, partial(_only, tuple(worker.id for worker in gang)))


def _only(place: tuple[int, ...], expert: Expert) -> list[tuple[int, ...]]:
    return [place]


def sweep_calls(sweep: Sweep, expert: ExpertName, prompt_tokens: Sequence[int]) -> Iterator[tuple[Call, ...]]:
    """List the shards of an expert's calls, which use the prompts in turn.

    Every call has its own key, and so its own outcome.
    """
    first = 0
    for size in sweep.shard_sizes:
        for _ in range(sweep.num_repeats):
            yield tuple(
                Call(CallKey(f"calibration-{expert}-{i}", PROPOSE, 0), expert, prompt_tokens[i % len(prompt_tokens)])
                for i in range(first, first + size)
            )
            first += size


def wave_shards(calls: Sequence[Call], num_places: int, max_calls: int | None) -> Iterator[list[Call]]:
    """Make waves from the calls that calibration questions give to an aggregator, for so many replicas.

    NOTE: its replicas serve in waves, all at once, and a wave takes as long as the replica with the longest answers.
    With a heavy tail that is far above the mean of one session. So a wave is measured, and it is the price of a
    replica.

    A repeated call has its own key, and so its own outcome. At most ``max_calls`` are served, except for one wave of
    each size with four calls per gang.
    """
    least = num_places * max(WAVES)
    if max_calls is not None:
        calls = calls[: max(least, max_calls // len(WAVES))]
    num_copies = -(-least // len(calls))
    num_repeats = min(MAX_REPEATS, -(-NUM_SWEPT_CALLS // (num_copies * len(calls))))
    if max_calls is not None:
        num_repeats = min(num_repeats, max(1, max_calls // (len(WAVES) * num_copies * len(calls))))
    copies_made = count()
    ranked = list(_ranked(calls))
    width = 1 + max(rank for rank, _ in ranked)
    for share in WAVES * num_repeats:
        chosen = list(islice(copies_made, num_copies))
        copies = [
            msgspec.structs.replace(call, key=call.key._replace(slot=copy * width + rank))
            for copy in chosen
            for rank, call in ranked
        ]
        if max_calls is not None:
            copies = copies[: max(least, max_calls // len(WAVES))]
        for part in range(share):
            yield copies[part::share]


def _ranked(calls: Sequence[Call]) -> Iterator[tuple[int, Call]]:
    """Number the calls of each question: an expert may have several slots of a node."""
    seen: Counter[tuple[str, NodeName]] = Counter()
    for call in calls:
        index = call.key.question, call.key.node
        yield seen[index], call
        seen[index] += 1
