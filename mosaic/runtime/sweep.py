"""Measures a profile on calls that are not the batch's: sessions of several sizes, run on a backend."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice
from typing import TypeAlias, TypeVar

from mosaic.core.checks import AtLeast1, checked, require, require_unique
from mosaic.core.cluster import Cluster, Worker, may_be_gang
from mosaic.core.commands import Command
from mosaic.core.errors import BackendError, DisturbedSweepError
from mosaic.core.events import Event, Finished, Lost
from mosaic.core.plan import Expected, Session, unpriced_plan
from mosaic.core.results import SERVED, CallRecord, RunResult
from mosaic.core.view import View
from mosaic.core.workload import PROPOSE, Call, CallKey, Expert, ExpertName, NodeName, Question, Workload
from mosaic.pipelines.budgets import NO_BUDGETS, Budgets
from mosaic.planning.profiles import Profile, ProfileEntry
from mosaic.runtime.backend import Backend
from mosaic.runtime.controller import Controller, Show, Tell
from mosaic.runtime.profiling import fit, fit_entry
from mosaic.runtime.site import Site
from mosaic.runtime.static_plan import execute
from mosaic.runtime.stopping import Cuts
from mosaic.runtime.unpriced import gangs_of, waves_of

_Swept = TypeVar("_Swept")
PromptTokens: TypeAlias = Callable[[int], int]
"""Prompt tokens of the i-th calibration call; sources with fewer questions repeat them."""
PlaceOf: TypeAlias = Callable[[Expert, int], tuple[int, ...]]
"""Gives the workers of an expert's session, by the session's number if all experts had as many."""
Fits: TypeAlias = Callable[[Expert, Sequence[Worker]], bool]
"""Tells whether workers can hold an expert."""

MIN_CALLS = 8
"""The least that is measured: sessions of 1, 2 and 5 calls, the two points that a line needs and one to spare."""
WAVES = (1, 2, 4)
"""Waves serve all calls, a half and a quarter of them."""
NUM_SWEPT_CALLS, MAX_REPEATS = 512, 8
"""Waves are repeated until they have served so many calls: a few waves of a few calls say little."""
MAX_TRIES = 3
"""Of a sweep whose workers are lost or disturbed, in one start; the next goes without those that are lost."""
MEASURED_OTHERWISE = "Correct this, or give a profile (profile.path, profile.aggregator_path)"


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("profile.sweep.")
class Sweep:
    """Which sessions a profile is made of."""

    shard_sizes: tuple[AtLeast1, ...]
    num_repeats: AtLeast1 = 1

    def __post_init__(self) -> None:
        require_unique(self.shard_sizes, "profile.sweep.shard_sizes")
        require(len(self.shard_sizes) >= 2, "profile.sweep.shard_sizes", "at least two sizes", self.shard_sizes)

    @property
    def num_calls(self) -> int:
        """Of an expert, in all."""
        return sum(self.shard_sizes) * self.num_repeats

    def within(self, num_calls: int | None) -> "Sweep":
        """Shrink to so many calls: by the repeats first, and then to three sessions, each twice the one before.

        Few large sessions tell more of a large batch than many small ones, and one of them may be interrupted.

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
        small, middle = num_calls // 7, 2 * num_calls // 7
        return Sweep(shard_sizes=(small, middle, num_calls - small - middle))

    def by_expert(self, calls: Sequence[Call], max_batch_frac: float | None) -> dict[ExpertName, "Sweep"]:
        """Give the sweep of each expert that a batch calls, by how often it does."""
        counts = Counter(call.expert for call in calls)
        return {expert: self.within(measured_calls(number, max_batch_frac)) for expert, number in counts.items()}


def measured_calls(num_calls: int, max_batch_frac: float | None) -> int | None:
    """Say how many calls may be measured before a batch has so many; None: there is no limit.

    Examples
    --------
    >>> [measured_calls(num_calls, 0.1) for num_calls in (20, 300, 25600)], measured_calls(20, None)
    ([8, 30, 2560], None)
    """
    return None if max_batch_frac is None else max(MIN_CALLS, int(max_batch_frac * num_calls))


def announcement(what: str, num_calls: Mapping[ExpertName, int], why: str, instead: str) -> str:
    """Say what is sent before the batch, why, and what spares it.

    Examples
    --------
    >>> announcement("profiling", {"Qwen": 2560, "GLM": 8}, "to price it", "profile.path=FILE spares them")
    'profiling: 2,568 calls that are not the batch (Qwen 2,560, GLM 8), to price it; profile.path=FILE spares them'
    """
    listed = ", ".join(f"{expert} {count:,}" for expert, count in num_calls.items())
    return f"{what}: {sum(num_calls.values()):,} calls that are not the batch ({listed}), {why}; {instead}"


def of_questions(workload: Workload, questions: tuple[Question, ...]) -> Workload:
    """Cut a workload down to some of its questions."""
    kept = {question.id for question in questions}
    calls = tuple(call for call in workload.calls if call.key.question in kept)
    return Workload(name=workload.name, questions=questions, calls=calls)


@dataclass(frozen=True, slots=True)
class Row:
    """Experts that are measured together: each at one degree, on workers of one kind."""

    name: str
    """Of the measurement."""
    experts: tuple[Expert, ...]
    place_of: PlaceOf


def rows_of(experts: Sequence[Expert], cluster: Cluster, site: Site, fits: Fits) -> Iterator[Row]:
    """List what is measured of experts: each of their degrees, on each kind of GPU that holds them.

    Where all have one degree and workers are of one kind, that is one row, and the site says where its sessions run.
    """
    workers = cluster.workers
    if len({worker.gpu for worker in workers}) == 1 and not any(expert.tp_degrees for expert in experts):
        yield Row("profile", tuple(experts), partial(site.swept_place, num_experts=len(experts)))
        return
    for degree in sorted({degree for expert in experts for degree in expert.possible_degrees}):
        gangs = (workers[start : start + degree] for start in range(0, len(workers) - degree + 1, degree))
        first = {gang[0].gpu: gang for gang in reversed([gang for gang in gangs if may_be_gang(gang)])}
        for gpu, gang in first.items():
            shaped = (replace(expert, tp_degree=degree) for expert in experts if degree in expert.possible_degrees)
            held = tuple(expert for expert in shaped if fits(expert, gang))
            place = tuple(worker.id for worker in gang)
            if held:
                yield Row(f"profile_{gpu.name}_tp{degree}", held, partial(_always, place))


def _always(place: tuple[int, ...], expert: Expert, session: int) -> tuple[int, ...]:
    return place


def sweep_calls(sweep: Sweep, expert: ExpertName, prompt_tokens: PromptTokens) -> Iterator[tuple[Call, ...]]:
    """List the calibration shards of an expert; every call has a key, and so an outcome, of its own."""
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
    place_of: PlaceOf = lambda expert, session: tuple(range(expert.tp_degree)),
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
    place_of
        Where sessions run; the first workers by default.
    controllers
        Who else receives the events.

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
        for turn, expert in enumerate(experts):
            if index >= len(shards[expert.name]):
                continue
            shard = shards[expert.name][index]
            calls += shard
            keys = tuple(call.key for call in shard)
            workers = place_of(expert, index * len(experts) + turn)
            sessions.append(Session(id=len(sessions), expert=expert.name, node=PROPOSE, workers=workers, shard=keys))
    result = _served("profile sweep", sessions, calls, cluster, backend, controllers)
    return fit(experts, cluster, result, source)


def _served(
    name: str,
    sessions: Sequence[Session],
    calls: Sequence[Call],
    cluster: Cluster,
    backend: Backend,
    controllers: Sequence[Controller],
) -> RunResult:
    """Run sessions whose calls must all finish."""
    made = (*controllers, StopWhenFailing(name, len(calls)))
    result = execute(unpriced_plan(sessions, num_workers=cluster.num_workers), calls, backend, made)
    assert len(result.calls) == len(calls), "all finished"
    return result


def run_waves(
    expert: Expert,
    calls: Sequence[Call],
    cluster: Cluster,
    backend: Backend,
    places: Sequence[tuple[int, ...]] | None = None,
    controllers: Sequence[Controller] = (),
    *,
    max_calls: int | None = None,
    log: Callable[[int], object] = lambda num_calls: None,
) -> ProfileEntry:
    """Measure an aggregator at its tensor-parallel degree, with as many replicas as its cap and the cluster allow.

    NOTE: Its replicas serve in waves, all at once, and a wave lasts as long as the replica with the longest answers.
    With a heavy tail that is far above the mean of one session, so a wave is what is measured, and what a replica's
    price stands for.

    Parameters
    ----------
    expert, calls, cluster, backend, controllers
        As in `run_sweep`; the calls are those that calibration questions leave to the aggregator.
    places
        The gangs of workers where it may run; None: all that the cluster makes up.
    max_calls
        The most that are served, but for one wave of each size with four calls a place.
    log
        Receives how many are served.

    Raises
    ------
    BackendError
        If a session cannot be run, or a call does not finish: a price is never fitted to part of a sweep.
    DisturbedSweepError
        If sessions that were interrupted leave too few others.
    ValueError
        If there are no calls, or no place for the aggregator.
    """
    require(len(calls) > 0, "aggregator sweep: calls", "at least one call", 0)
    places = gangs_of(expert, cluster.num_workers) if places is None else places
    shards = list(_wave_shards(calls, len(places), max_calls))
    waves, served = waves_of(shards, places), [call for shard in shards for call in shard]
    log(len(served))
    sessions = [session for wave in waves for session in wave]
    result = _served("aggregator sweep", sessions, served, cluster, backend, controllers)
    return fit_entry(expert, cluster, result, waves)


def _wave_shards(calls: Sequence[Call], num_places: int, max_calls: int | None) -> Iterator[list[Call]]:
    """Cut waves out of the calls; what is served again has a key, and so an outcome, of its own."""
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
            replace(call, key=call.key._replace(slot=copy * width + rank)) for copy in chosen for rank, call in ranked
        ]
        if max_calls is not None:
            copies = copies[: max(least, max_calls // len(WAVES))]
        for part in range(share):
            yield copies[part::share]


def _ranked(calls: Sequence[Call]) -> Iterator[tuple[int, Call]]:
    """Number the calls of each question: an expert may have several slots of a node."""
    seen: Counter[tuple[str, NodeName]] = Counter()
    for call in calls:
        asked = call.key.question, call.key.node
        yield seen[asked], call
        seen[asked] += 1


def sweep_first_layer(
    sweep: Sweep,
    calls: Sequence[Call],
    experts: Sequence[Expert],
    cluster: Cluster,
    site: Site,
    source: str,
    show: Show,
    *,
    budgets: Budgets = NO_BUDGETS,
    max_batch_frac: float | None = None,
    fits: Fits = lambda expert, workers: True,
    tell: Tell = lambda line: None,
) -> Profile:
    """Measure the experts that have calls, each with no more than this share of the calls that it has.

    None is no bound, and a few calls are measured in any case. Experts are measured at each of their degrees and on
    each kind of GPU that ``fits`` says can hold them. Calls are cut as those of the batch are: so prices are of what is
    written within the budgets.
    """
    sweeps = sweep.by_expert(calls, max_batch_frac)
    swept = [expert for expert in experts if expert.name in sweeps]
    rows = list(rows_of(swept, cluster, site, fits))
    why = "to price sessions" if len(rows) == 1 else "in each shape, to price sessions"
    num_calls = {expert.name: sweeps[expert.name].num_calls for expert in swept}

    def measure(row: Row, name: str) -> Profile:
        backend, prompt_tokens = site.sweep(name, row.experts)
        if row is rows[0]:
            tell(announcement("profiling", num_calls, why, "profile.path=FILE spares them"))
        with show("profiling", Expected()) as shown:
            controllers = (Cuts(budgets), *shown)
            return run_sweep(sweeps, row.experts, cluster, backend, prompt_tokens, source, row.place_of, controllers)

    measured = [again_if_disturbed(row.name, partial(measure, row), site, tell) for row in rows]
    return Profile(source=source, entries=tuple(entry for profile in measured for entry in profile.entries))


def again_if_disturbed(name: str, measure: Callable[[str], _Swept], site: Site, tell: Tell) -> _Swept:
    """Measure until it is undisturbed; those that earlier starts began do not count as tries of this one."""
    num_tries = 0
    for number in count(1):
        this = name if number == 1 else f"{name}_{number}"
        num_tries += not site.has_begun(this)
        try:
            return measure(this)
        except DisturbedSweepError as error:
            if num_tries >= MAX_TRIES:
                raise
            tell(f"{error}; it is measured once more")
    raise AssertionError("a count does not end")


class StopWhenFailing:
    """A controller that stops a measurement which can price nothing any more, and says why.

    A price is never fitted to part of a sweep, so what comes after a call that fails would be sent for nothing. What
    has finished is in the journal of a real run.

    Parameters
    ----------
    name
        Of the measurement.
    num_calls
        That it has.
    max_in_a_row
        It stops where so many calls fail in a row. A pilot's single failures are tried again with the batch.
    may_lose
        Whether other workers take over what a lost one leaves.
    """

    reacts = False

    def __init__(self, name: str, num_calls: int, *, max_in_a_row: int = 1, may_lose: bool = False) -> None:
        self._name = name
        self._num_calls = num_calls
        self._max_in_a_row = max_in_a_row
        self._may_lose = may_lose
        self._num_finished = 0
        self._failed: list[CallRecord] = []
        """Since a call finished."""

    def on(self, event: Event, view: View) -> tuple[Command, ...]:
        """Count how calls end, and look at each worker that is lost.

        Raises
        ------
        BackendError
            If too many calls fail.
        DisturbedSweepError
            If a call never ends since its worker is lost: on the others it may.
        """
        if isinstance(event, Finished):
            if event.record.status in SERVED:
                self._num_finished += 1
                self._failed.clear()
            else:
                self._failed.append(event.record)
            if len(self._failed) == self._max_in_a_row:
                first = self._failed[0]
                why = first.response.error if first.response is not None else None
                cause = f"call {first.key.question} of {first.expert} {first.status}: {why or 'no reason is known'}"
                more = "" if self._max_in_a_row == 1 else f", the first of {self._max_in_a_row} in a row"
                raise BackendError(self._stopped(f"{cause}{more}"))
        elif isinstance(event, Lost) and not self._may_lose and view.left_by({event.worker}):
            raise DisturbedSweepError(self._stopped(f"worker {event.worker} is lost: {event.cause}"))
        return ()

    def _stopped(self, cause: str) -> str:
        done = f"{self._num_finished} of {self._num_calls} calls finished before it stopped"
        return f"{self._name}: {done}: {cause}. {MEASURED_OTHERWISE}"
