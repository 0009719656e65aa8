"""How well times were predicted: simulated against measured sessions, workers, makespans and orders of finish.

Everything here is a pure function of run results; ``experiments/validate.py`` makes them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isnan
from statistics import fmean

from mosaic.core.checks import require
from mosaic.core.plan import Plan
from mosaic.core.results import CallStatus, RunResult, SessionRecord
from mosaic.core.workload import CallKey
from mosaic.report.metrics import makespan_s

MAKESPAN_TARGET_FRAC = 0.10
"""Mean absolute error of the makespans that was set as a target."""
SESSION_TARGET_FRAC = 0.20
"""Largest absolute error of a session that was set as a target."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedTime:
    """A duration as it was predicted, and as every repeat measured it, in seconds."""

    simulated_s: float
    planned_s: float
    """By the session costs that the scheduler planned with."""
    measured_s: tuple[float, ...]

    @property
    def mean_s(self) -> float:
        """Mean of the repeats."""
        return fmean(self.measured_s)

    @property
    def error_frac(self) -> float:
        """Of the simulator; positive where it predicted too much."""
        return self.simulated_s / self.mean_s - 1 if self.mean_s else 0.0

    @property
    def planned_error_frac(self) -> float:
        """Of the session costs."""
        return self.planned_s / self.mean_s - 1 if self.mean_s else 0.0

    @property
    def spread_frac(self) -> float | None:
        """Mean error of predicting a repeat by the mean of the others; None: there is one only."""
        return spread_frac(self.measured_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedSession:
    """A session: its load, its serving, and both together."""

    session: int
    expert: str
    workers: tuple[int, ...]
    num_calls: int
    load: ComparedTime
    serve: ComparedTime
    whole: ComparedTime
    order_tau: float | None
    """Kendall's tau-b of the order in which its calls finish, simulated and measured; None: one order only."""
    repeat_tau: float | None
    """The same of two repeats, the first and the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedPlan:
    """A plan's run."""

    plan: str
    sessions: tuple[ComparedSession, ...]
    workers: tuple[ComparedTime, ...]
    """The instant at which each has done its last session."""
    makespan: ComparedTime
    cpu_frac: tuple[float, ...] = ()
    """Of each repeat: CPU seconds of the sessions over their wall seconds; below 1 the machine did other things too."""


def spread_frac(values: Sequence[float]) -> float | None:
    """Mean absolute relative error of predicting each value by the mean of the others; None below two values.

    Examples
    --------
    >>> round(spread_frac([1.0, 1.25]), 3)
    0.225
    """
    if len(values) < 2:
        return None
    total = sum(values)
    return fmean(abs((total - value) / (len(values) - 1) / value - 1) for value in values)


def compare(plan: Plan, simulated: RunResult, measured: Sequence[RunResult]) -> ComparedPlan:
    """Put a plan's simulated run beside its measured ones.

    Raises
    ------
    ValueError
        If there is no measured run, or one did not finish every call.
    """
    require(len(measured) > 0, "validation: measured runs", "at least one", 0)
    calls = {key for session in plan.sessions for key in session.shard}
    for run in (simulated, *measured):
        finished = {record.key for record in run.calls if record.status is CallStatus.FINISHED}
        rule = f"all {len(calls)} calls of plan {plan.scheduler}"
        require(finished == calls, "validation: finished calls of a run", rule, len(finished))
    sessions = tuple(_compare_session(plan, place, simulated, measured) for place in range(len(plan.sessions)))
    workers = tuple(
        ComparedTime(
            simulated_s=_end_s(simulated, worker),
            planned_s=_planned_end_s(plan, worker),
            measured_s=tuple(_end_s(run, worker) for run in measured),
        )
        for worker in range(plan.num_workers)
    )
    makespan = ComparedTime(
        simulated_s=makespan_s(simulated.sessions) or 0.0,
        planned_s=plan.predicted_makespan_s,
        measured_s=tuple(makespan_s(run.sessions) or 0.0 for run in measured),
    )
    return ComparedPlan(plan=plan.scheduler, sessions=sessions, workers=workers, makespan=makespan)


def _compare_session(plan: Plan, place: int, simulated: RunResult, measured: Sequence[RunResult]) -> ComparedSession:
    session, expected = plan.sessions[place], plan.predicted[place]
    again = _record(simulated, session.id)
    real = [_record(run, session.id) for run in measured]
    load = ComparedTime(
        simulated_s=again.load_s, planned_s=expected.load_s, measured_s=tuple(record.load_s for record in real)
    )
    serve = ComparedTime(
        simulated_s=again.end_ts - again.start_ts,
        planned_s=expected.end_s - expected.start_s - expected.load_s,
        measured_s=tuple(record.end_ts - record.start_ts for record in real),
    )
    whole = ComparedTime(
        simulated_s=load.simulated_s + serve.simulated_s,
        planned_s=load.planned_s + serve.planned_s,
        measured_s=tuple(sum(parts) for parts in zip(load.measured_s, serve.measured_s, strict=True)),
    )
    orders = [_finishes(run, session.shard) for run in (simulated, *measured)]
    return ComparedSession(
        session=session.id,
        expert=session.expert,
        workers=session.workers,
        num_calls=len(session.shard),
        load=load,
        serve=serve,
        whole=whole,
        order_tau=mean_of(kendall_tau(orders[0], order) for order in orders[1:]),
        repeat_tau=kendall_tau(orders[1], orders[-1]) if len(orders) > 2 else None,
    )


def _record(run: RunResult, session: int) -> SessionRecord:
    return next(record for record in run.sessions if record.session == session)


def _finishes(run: RunResult, shard: Sequence[CallKey]) -> list[float]:
    finished = {record.key: record.finished_ts or 0.0 for record in run.calls}
    return [finished[key] for key in shard]


def _end_s(run: RunResult, worker: int) -> float:
    return max((record.end_ts for record in run.sessions if worker in record.workers), default=0.0)


def _planned_end_s(plan: Plan, worker: int) -> float:
    times = zip(plan.sessions, plan.predicted, strict=True)
    return max((expected.end_s for session, expected in times if worker in session.workers), default=0.0)


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Rank correlation of two lists of instants; None where one of them has a single rank.

    Examples
    --------
    >>> kendall_tau([1.0, 2.0, 3.0], [2.0, 4.0, 8.0])
    1.0
    """
    from scipy.stats import kendalltau

    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return float(kendalltau(first, second).statistic)


def mean_of(values: Iterable[float | None]) -> float | None:
    """Mean of what is known; None: nothing is.

    Examples
    --------
    >>> mean_of([1.0, None, 2.0])
    1.5
    """
    known = [value for value in values if value is not None and not isnan(value)]
    return fmean(known) if known else None


def mean_makespan_error_frac(plans: Sequence[ComparedPlan]) -> float:
    """Mean absolute error of the simulated makespans."""
    return fmean(abs(plan.makespan.error_frac) for plan in plans)


def worst_session_error_frac(plans: Sequence[ComparedPlan]) -> float:
    """Largest absolute error of a session, load and serving together."""
    return max(abs(session.whole.error_frac) for plan in plans for session in plan.sessions)


def margins(plans: Sequence[ComparedPlan], baseline: str) -> dict[str, tuple[float, float]]:
    """By how much each plan's makespan is below the baseline's: simulated and measured, as fractions of it."""
    base = next((plan.makespan for plan in plans if plan.plan == baseline), None)
    if base is None:
        return {}
    return {
        plan.plan: (1 - plan.makespan.simulated_s / base.simulated_s, 1 - plan.makespan.mean_s / base.mean_s)
        for plan in plans
        if plan.plan != baseline
    }
