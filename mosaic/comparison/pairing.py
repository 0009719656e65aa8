"""Pairs runs by world and seed, and summarises times, ratios to the baseline, skips and accuracy by policy."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, TypeAlias

from mosaic.comparison.estimate import estimate, geometric
from mosaic.comparison.labels import label_runs
from mosaic.comparison.run_points import RunPoint
from mosaic.report.metrics import mean

METRICS = {"expert_makespan_s": "expert stage", "end_to_end_s": "end to end"}
"""Times to compare, and their names."""
NEVER = "never"
ALWAYS = "always_aggregate"
"""The references of an accuracy change: a run that never skips, or the same run without skipping."""

OPTIONAL = (
    "aggregator", "num_workers", "num_calls", "skip_frac", "skip_frac_source", "accuracy_frac",
    "always_aggregate_accuracy_frac",
)  # fmt: skip
"""Keys that the summary of an older version may lack."""
Row: TypeAlias = dict[str, Any]
"""Known values of a run or of a policy, by name: means as ``Estimate``, and None for unknown ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One row per policy and world, over its seeds, and notes on runs that could not be compared."""

    baseline: str
    metric: str
    rows: Sequence[Row]
    scaling: Sequence[Row]
    """Policies that were run on several numbers of workers, each against itself on the fewest."""
    notes: tuple[str, ...]


def compare_runs(runs: Sequence[RunPoint], *, baseline: str, metric: str = "expert_makespan_s") -> Comparison:
    """Compare policies, each with the baseline's run in the same world with the same seed.

    The baseline is a scheduler, or the full name of a policy if a scheduler was run with several settings.

    Raises
    ------
    ValueError
        If the baseline has no run, is ambiguous, or shares no world and seed with any other policy.
    """
    known = [
        dict.fromkeys(OPTIONAL) | run.summary | label._asdict() | {"folder": str(run.folder)}
        for run, label in zip(runs, label_runs(runs), strict=True)
    ]
    known.sort(key=itemgetter("case", "policy", "seed", "folder"))
    own, notes = _distinct(known)
    for run in own:
        run["time_s"], run["is_baseline"] = run[metric], baseline in (run["scheduler"], run["policy"])
    base = [run for run in own if run["is_baseline"]]
    if not base:
        policies = sorted({run["policy"] for run in own})
        raise ValueError(f"--baseline must be one of the complete policies {policies}, got {baseline!r}")
    _pair(own, base, baseline)
    _add_changes(own)
    groups = [[*group] for _, group in groupby(own, itemgetter("case", "policy"))]
    for group in groups:
        notes += _missing(group, base, baseline)
    rows = [_row(group) for group in groups]
    others = [row for row in rows if not row["is_baseline"]]
    if others and not any(row["num_pairs"] for row in others):
        raise ValueError(f"no run shares workload, machines and seed with a run of {baseline}: " + "; ".join(notes[:3]))
    rows.sort(key=lambda row: (row["case"], not row["is_baseline"], row["policy"]))
    return Comparison(baseline=baseline, metric=metric, rows=rows, scaling=scale_runs(own), notes=tuple(notes))


def scale_runs(runs: Sequence[Row]) -> list[Row]:
    """Compare every policy with itself on the fewest workers it was run on, paired by seed on equal calls."""
    place = itemgetter("world", "policy", "num_workers", "seed")
    num_by_place = Counter(map(place, runs))
    known = [run for run in runs if run["num_workers"] is not None and num_by_place[place(run)] == 1]
    rows = []
    for _, members in groupby(sorted(known, key=place), itemgetter("world", "policy")):
        sizes = [[*same] for _, same in groupby(members, itemgetter("num_workers"))]
        fewest_s = {(run["seed"], run["num_calls"]): run["time_s"] for run in sizes[0]}
        for same in sizes if len(sizes) > 1 else ():
            keys = [(run["seed"], run["num_calls"]) for run in same]
            times = [run["time_s"] for run in same]
            ratios = [fewest_s[key] / time_s for key, time_s in zip(keys, times, strict=True) if key in fewest_s]
            names = ("world", "policy", "scheduler", "num_workers")
            rows.append(
                {name: same[0][name] for name in names}
                | {"num_seeds": len(same), "num_pairs": len(ratios)}
                | {"time_s": estimate(times), "speedup": geometric(ratios) if ratios else None}
            )
    return rows


def _distinct(runs: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """Count a configuration once, even if it was run several times."""
    first: dict[Any, Row] = {}
    notes = []
    for run in runs:
        kept = first.setdefault((run["case"], run["policy"], run["seed"]), run)
        if kept is not run:
            notes.append(
                f"repeated: {run['policy']} on {run['case']}, seed {run['seed']} in {_name(run['folder'])}, "
                f"counted once as {_name(kept['folder'])}"
            )
    return [*first.values()], notes


def _name(folder: str) -> str:
    return folder.rsplit("/", 1)[-1]


def _partners(
    runs: Sequence[Row], others: Sequence[Row], on: Sequence[str], near: str
) -> Iterator[tuple[Row, list[Row]]]:
    """Find partners of each run that are equal in ``on``: itself, else those equal in ``near``, else any."""
    key, by_key = itemgetter(*on), defaultdict(list)
    for other in others:
        by_key[key(other)].append(other)
    for run in runs:
        equal = by_key[key(run)]
        alike = [other for other in equal if other[near] == run[near]]
        yield run, [other for other in equal if other is run] or alike or equal


def _pair(runs: Sequence[Row], base: Sequence[Row], baseline: str) -> None:
    """Add the time of the baseline's run to each run, and the ratio if both served the same calls."""
    for run, partners in _partners(runs, base, ("case", "seed"), "beside_scheduler"):
        if len({other["time_s"] for other in partners}) > 1:
            raise ValueError(
                f"--baseline {baseline!r} is ambiguous for {run['policy']} on {run['case']}, seed {run['seed']}: "
                f"it must be one of {sorted({other['policy'] for other in partners})}"
            )
        other = partners[0] if partners else None
        run["is_same"] = None if other is None else other["problem_fingerprint"] == run["problem_fingerprint"]
        run["ratio"] = other["time_s"] / run["time_s"] if other is not None and run["is_same"] else None


def _add_changes(runs: Sequence[Row]) -> None:
    """Add the change of accuracy against runs that never skip, if these agree, and against the run itself."""
    never = [run for run in runs if run["gate"] == NEVER and run["accuracy_frac"] is not None]
    same = ("case", "seed", "scheduler", "problem_fingerprint")
    for run, partners in _partners(runs, never, same, "beside_gate"):
        found = {other["accuracy_frac"] for other in partners}
        never_frac = found.pop() if len(found) == 1 else None
        for name, other in ((NEVER, never_frac), (ALWAYS, run["always_aggregate_accuracy_frac"])):
            is_known = None not in (run["accuracy_frac"], other)
            run[name] = 100 * (run["accuracy_frac"] - other) if is_known else None


def _missing(group: Sequence[Row], base: Sequence[Row], baseline: str) -> list[str]:
    """Name the runs of a policy without a partner, and the baseline's without one of the policy."""
    case, policy = group[0]["case"], group[0]["policy"]
    alone = [run["seed"] for run in group if run["is_same"] is None]
    differing = [run["seed"] for run in group if run["is_same"] is False]
    lacking = {run["seed"] for run in base if run["case"] == case} - {run["seed"] for run in group}
    notes = []
    if alone:
        verb = "has" if len(alone) == 1 else "have"
        notes.append(f"no pair: {policy} on {case}, {_seeds(alone)} {verb} no run of {baseline}")
    if differing:
        notes.append(f"no pair: {policy} on {case}, {_seeds(differing)} served other calls than the run of {baseline}")
    if lacking:
        notes.append(f"no pair: {policy} on {case} has no run with {_seeds(sorted(lacking))}")
    return notes


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _row(group: Sequence[Row]) -> Row:
    """Summarise one policy in one world."""

    def known(name: str, runs: Sequence[Row] = group) -> list[Any]:
        return [run[name] for run in runs if run[name] is not None]

    first = group[0]
    graded = [run for run in group if run["accuracy_frac"] is not None]
    never_skips = first["gate"] in (None, NEVER)  # by definition, in every world
    change_from = None if never_skips else next((name for name in (NEVER, ALWAYS) if known(name)), None)
    changes = known(change_from) if change_from else []
    sources = set() if never_skips else set(known("skip_frac_source"))
    times, ratios = known("time_s"), known("ratio")
    speedup = geometric(ratios) if ratios else None
    if speedup is not None and first["is_baseline"]:
        # NOTE: the baseline's ratio to itself is 1 by definition, which is not a measurement with an interval.
        speedup = speedup._replace(low=None, high=None)
    names = ("world", "case", "policy", "scheduler", "gate", "aggregator", "second_stage", "is_baseline")
    return {name: first[name] for name in names} | {
        "num_seeds": len(group),
        "idle_frac": mean(known("gpu_idle_frac")),
        "num_loads": mean(known("num_loads")),
        "num_pairs": len(ratios),
        "num_known": len(graded),
        "skip_frac": mean(known("skip_frac")),
        "skip_frac_source": "/".join(sorted(sources)) or None,
        "change_from": change_from,
        "num_changes": len(changes),
        "times_s": times,
        "ratios": ratios,
        "changes_pp": changes,
        "time_s": estimate(times),
        "speedup": speedup,
        "accuracy_frac": estimate(known("accuracy_frac")) if graded else None,
        "change_pp": estimate(changes) if changes else None,
        "end_to_end_s": estimate(ends) if (ends := known("end_to_end_s", graded)) else None,
    }
