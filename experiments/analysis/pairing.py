"""Pair runs by world and seed, and sum up the ratios to the baseline."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log, sqrt

from experiments.analysis.labels import label_cases, label_policies, settings_agree
from experiments.analysis.run_points import RunPoint
from mosaic.report.metrics import mean

METRICS = ("expert_makespan_s", "end_to_end_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One policy in one world, over its seeds. Intervals are 95%, None for a single seed."""

    case: str
    policy: str
    num_seeds: int
    makespan_s: float
    makespan_low_s: float | None
    makespan_high_s: float | None
    idle_frac: float | None
    num_loads: float | None
    num_pairs: int
    speedup: float | None
    """Geometric mean of baseline makespan over the policy's; None without a pair."""
    speedup_low: float | None
    speedup_high: float | None
    ratios: tuple[float, ...]
    """One per pair, by seed."""
    is_baseline: bool
    runs: tuple[RunPoint, ...]
    """By seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All rows, and by name whatever could not be compared."""

    baseline: str
    metric: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Point:
    """A run with the names under which it is compared."""

    run: RunPoint
    case: str
    policy: str
    metric_s: float

    def __str__(self) -> str:
        return f"{self.policy} on {self.case}, seed {self.run.seed}"


def compare_runs(runs: Sequence[RunPoint], *, baseline: str, metric: str = METRICS[0]) -> Comparison:
    """Compare policies, each with the baseline's run in the same world with the same seed.

    The baseline is a scheduler, or the full name of a policy where a scheduler was run with several settings.

    Raises
    ------
    ValueError
        If the baseline has no run, is ambiguous, or shares no world and seed with any other policy.
    """
    points, notes = _distinct(_label_points(runs, metric))
    candidates = [point for point in points if baseline in (point.run.scheduler, point.policy)]
    if not candidates:
        policies = sorted({point.policy for point in points})
        raise ValueError(f"--baseline must be one of the complete policies {policies}, got {baseline!r}")
    groups: defaultdict[tuple[str, str], list[_Point]] = defaultdict(list)
    for point in points:
        groups[point.case, point.policy].append(point)
    rows = []
    for group in groups.values():
        row, missing = _make_row(group, candidates, baseline)
        rows.append(row)
        notes += missing
    others = [row for row in rows if not row.is_baseline]
    if others and not any(row.num_pairs for row in others):
        raise ValueError(f"no run shares workload, machines and seed with a run of {baseline}: " + "; ".join(notes[:3]))
    return Comparison(baseline=baseline, metric=metric, rows=tuple(sorted(rows, key=_order)), notes=tuple(notes))


def _order(row: Row) -> tuple[str, bool, str]:
    return row.case, not row.is_baseline, row.policy


def _label_points(runs: Sequence[RunPoint], metric: str) -> list[_Point]:
    cases, policies = label_cases(runs), label_policies(runs)
    points = [
        _Point(run, case, policy, float(run.summary[metric]))
        for run, case, policy in zip(runs, cases, policies, strict=True)
    ]
    return sorted(points, key=lambda point: (point.case, point.policy, point.run.seed, str(point.run.folder)))


def _distinct(points: Sequence[_Point]) -> tuple[list[_Point], list[str]]:
    """Count a configuration once, however often it was run."""
    first: dict[tuple[str, str, int], _Point] = {}
    notes = []
    for point in points:
        known = first.setdefault((point.case, point.policy, point.run.seed), point)
        if known is not point:
            notes.append(f"repeated: {point} in {point.run.folder.name}, counted once as {known.run.folder.name}")
    return list(first.values()), notes


def _make_row(group: Sequence[_Point], candidates: Sequence[_Point], baseline: str) -> tuple[Row, list[str]]:
    case, policy = group[0].case, group[0].policy
    ratios, notes = [], []
    for point in group:
        partner = _partner(point, candidates, baseline)
        if partner is None:
            notes.append(f"no pair: {point} has no run of {baseline}")
        elif partner.run.summary["problem_fingerprint"] != point.run.summary["problem_fingerprint"]:
            notes.append(f"no pair: {point} served other calls than the run of {baseline}")
        else:
            ratios.append(partner.metric_s / point.metric_s)
    seeds = {point.run.seed for point in group}
    lacking = sorted({other.run.seed for other in candidates if other.case == case} - seeds)
    if lacking:
        notes.append(f"no pair: {policy} on {case} has no run with seed {', '.join(map(str, lacking))}")
    makespans = [point.metric_s for point in group]
    low_s, high_s = t_interval(makespans)
    is_baseline = group[0] in candidates
    # NOTE: the baseline's ratio to itself is 1 by definition, which is not a measurement with an interval
    log_low, log_high = t_interval([] if is_baseline else [log(ratio) for ratio in ratios])
    row = Row(
        case=case,
        policy=policy,
        num_seeds=len(group),
        makespan_s=sum(makespans) / len(makespans),
        makespan_low_s=low_s,
        makespan_high_s=high_s,
        idle_frac=mean(point.run.summary["gpu_idle_frac"] for point in group),
        num_loads=mean(point.run.summary["num_loads"] for point in group),
        num_pairs=len(ratios),
        speedup=exp(sum(map(log, ratios)) / len(ratios)) if ratios else None,
        speedup_low=None if log_low is None else exp(log_low),
        speedup_high=None if log_high is None else exp(log_high),
        ratios=tuple(ratios),
        is_baseline=is_baseline,
        runs=tuple(point.run for point in group),
    )
    return row, notes


def _partner(point: _Point, candidates: Sequence[_Point], baseline: str) -> _Point | None:
    """Find the baseline's run in the same world: itself, else the one with the same costs, else any if all agree."""
    near = [other for other in candidates if (other.case, other.run.seed) == (point.case, point.run.seed)]
    if point in near:
        return point
    near = [other for other in near if settings_agree(point.run, other.run, outside="scheduler")] or near
    if len({other.metric_s for other in near}) > 1:
        raise ValueError(
            f"--baseline {baseline!r} is ambiguous for {point}: it must be one of {sorted({o.policy for o in near})}"
        )
    return near[0] if near else None


def t_interval(values: Sequence[float]) -> tuple[float, float] | tuple[None, None]:
    """95% interval of a mean by Student's t; None for fewer than two values."""
    if len(values) < 2:
        return None, None
    from scipy.special import stdtrit

    center = sum(values) / len(values)
    variance = sum((value - center) ** 2 for value in values) / (len(values) - 1)
    half = float(stdtrit(len(values) - 1, 0.975)) * sqrt(variance / len(values))
    return center - half, center + half
