"""Pairs runs by world and seed, and sums up, policy by policy, times, ratios to the baseline, skips and accuracy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from mosaic.comparison.estimate import Estimate, estimate, geometric
from mosaic.comparison.labels import label_runs
from mosaic.comparison.run_table import RunPoint, run_table

if TYPE_CHECKING:
    import polars as pl

METRICS = {"expert_makespan_s": "expert stage", "end_to_end_s": "end to end"}
"""Times to compare, and what they are of."""
NEVER = "never"
ALWAYS = "always_aggregate"
"""What an accuracy change is measured against: a run that never skips, or the same run had it never skipped."""

Row: TypeAlias = dict[str, Any]
"""What is known of a policy, by name: means as ``Estimate``, and None where nothing is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A row a policy and world, over its seeds, and by name whatever could not be compared."""

    baseline: str
    metric: str
    rows: Sequence[Row]
    scaling: Sequence[Row]
    """Policies that were run on several numbers of workers, each against itself on the fewest."""
    notes: tuple[str, ...]


def compare_runs(runs: Sequence[RunPoint], *, baseline: str, metric: str = "expert_makespan_s") -> Comparison:
    """Compare policies, each with the baseline's run in the same world with the same seed.

    The baseline is a scheduler, or the full name of a policy where a scheduler was run with several settings.

    Raises
    ------
    ValueError
        If the baseline has no run, is ambiguous, or shares no world and seed with any other policy.
    """
    import polars as pl

    labels = pl.DataFrame([label._asdict() for label in label_runs(runs)])
    table = pl.concat([run_table(runs), labels], how="horizontal").with_columns(time_s=pl.col(metric))
    table = table.sort("case", "policy", "seed", "folder").with_row_index("run")
    table, notes = _distinct(table)
    table = table.with_columns(is_baseline=(pl.col("scheduler") == baseline) | (pl.col("policy") == baseline))
    base = table.filter("is_baseline")
    if base.is_empty():
        policies = table["policy"].unique().sort().to_list()
        raise ValueError(f"--baseline must be one of the complete policies {policies}, got {baseline!r}")
    partners = _partners(table, base, ["case", "seed"], "beside_scheduler", "time_s", "policy", "problem_fingerprint")
    _refuse_ambiguous(partners, baseline)
    partners = partners.unique("run").select("run", "time_s_other", "problem_fingerprint_other")
    table = table.join(partners, on="run", how="left").with_columns(
        is_same=pl.col("problem_fingerprint") == pl.col("problem_fingerprint_other"),
    )
    table = table.with_columns(ratio=pl.when("is_same").then(pl.col("time_s_other") / pl.col("time_s")))
    table = _with_changes(table)
    groups = [group for _, group in table.group_by("case", "policy", maintain_order=True)]
    for group in groups:
        notes += _missing(group, base, baseline)
    rows = [_row(group) for group in groups]
    others = [row for row in rows if not row["is_baseline"]]
    if others and not any(row["num_pairs"] for row in others):
        raise ValueError(f"no run shares workload, machines and seed with a run of {baseline}: " + "; ".join(notes[:3]))
    rows.sort(key=lambda row: (row["case"], not row["is_baseline"], row["policy"]))
    return Comparison(baseline=baseline, metric=metric, rows=rows, scaling=scale_runs(table), notes=tuple(notes))


def scale_runs(table: "pl.DataFrame") -> list[Row]:
    """Compare every policy with itself on the fewest workers it was run on, paired by seed on equal calls."""
    import polars as pl

    place = ["world", "policy", "num_workers", "seed"]
    known = table.filter(pl.col("num_workers").is_not_null() & ~pl.struct(place).is_duplicated())
    least = pl.col("num_workers").min().over("world", "policy")
    fewest = known.filter(pl.col("num_workers") == least).select("world", "policy", "seed", "num_calls", "time_s")
    keys = ["world", "policy", "seed", "num_calls"]
    paired = known.filter(pl.col("num_workers").max().over("world", "policy") > least).join(
        fewest, on=keys, how="left", suffix="_fewest", nulls_equal=True
    )
    rows = []
    for (world, policy, num_workers), group in paired.sort(place).group_by(place[:3], maintain_order=True):
        ratios = (group["time_s_fewest"] / group["time_s"]).drop_nulls().to_list()
        rows.append(
            {"world": world, "policy": policy, "scheduler": group["scheduler"][0], "num_workers": num_workers}
            | {"num_seeds": len(group), "num_pairs": len(ratios), "time_s": estimate(group["time_s"].to_list())}
            | {"speedup": geometric(ratios) if ratios else None}
        )
    return rows


def _distinct(table: "pl.DataFrame") -> "tuple[pl.DataFrame, list[str]]":
    """Count a configuration once, however often it was run."""
    import polars as pl

    key = ["case", "policy", "seed"]
    repeated = table.with_columns(first=pl.col("folder").first().over(key)).filter(pl.col("folder") != pl.col("first"))
    notes = [
        f"repeated: {row['policy']} on {row['case']}, seed {row['seed']} in {_name(row['folder'])}, "
        f"counted once as {_name(row['first'])}"
        for row in repeated.iter_rows(named=True)
    ]
    return table.unique(key, keep="first", maintain_order=True), notes


def _name(folder: str) -> str:
    return folder.rsplit("/", 1)[-1]


def _partners(
    table: "pl.DataFrame", others: "pl.DataFrame", on: Sequence[str], near: str, *values: str
) -> "pl.DataFrame":
    """Join to each run those that equal it in ``on``: itself, else those alike in ``near``, else any."""
    import polars as pl

    joined = table.select("run", near, "policy", *on).join(
        others.select(*on, pl.col("run", near, *values).name.suffix("_other")), on=on
    )
    is_self, is_near = pl.col("run") == pl.col("run_other"), pl.col(near) == pl.col(f"{near}_other")
    distance = pl.when(is_self).then(0).when(is_near).then(1).otherwise(2)
    nearest = joined.filter(distance == distance.min().over("run"))
    return nearest.select("run", "policy", *on, *(f"{value}_other" for value in values))


def _refuse_ambiguous(partners: "pl.DataFrame", baseline: str) -> None:
    import polars as pl

    for row in partners.filter(pl.col("time_s_other").n_unique().over("run") > 1).iter_rows(named=True):
        names = partners.filter(pl.col("run") == row["run"])["policy_other"].unique().sort().to_list()
        raise ValueError(
            f"--baseline {baseline!r} is ambiguous for {row['policy']} on {row['case']}, seed {row['seed']}: "
            f"it must be one of {names}"
        )


def _with_changes(table: "pl.DataFrame") -> "pl.DataFrame":
    """Add the change of accuracy against a run that never skips, where all such runs agree, and against itself."""
    import polars as pl

    never = table.filter((pl.col("gate") == NEVER) & pl.col("accuracy_frac").is_not_null())
    same = ["case", "seed", "scheduler", "problem_fingerprint"]
    found = _partners(table, never, same, "beside_gate", "accuracy_frac")
    agreeing = found.filter(pl.col("accuracy_frac_other").n_unique().over("run") == 1).unique("run")
    table = table.join(agreeing.select("run", never_frac="accuracy_frac_other"), on="run", how="left")
    accuracy = pl.col("accuracy_frac")
    return table.with_columns(
        (100 * (accuracy - pl.col("never_frac"))).alias(NEVER),
        (100 * (accuracy - pl.col("always_aggregate_accuracy_frac"))).alias(ALWAYS),
    )


def _missing(group: "pl.DataFrame", base: "pl.DataFrame", baseline: str) -> list[str]:
    """Name the runs of a policy without a partner, and the baseline's without one of the policy."""
    import polars as pl

    case, policy = group["case"][0], group["policy"][0]
    alone = group.filter(pl.col("time_s_other").is_null())["seed"].to_list()
    differing = group.filter(~pl.col("is_same"))["seed"].to_list()
    lacking = base.filter((pl.col("case") == case) & ~pl.col("seed").is_in(group["seed"].to_list()))["seed"]
    notes = []
    if alone:
        verb = "has" if len(alone) == 1 else "have"
        notes.append(f"no pair: {policy} on {case}, {_seeds(alone)} {verb} no run of {baseline}")
    if differing:
        notes.append(f"no pair: {policy} on {case}, {_seeds(differing)} served other calls than the run of {baseline}")
    if len(lacking):
        notes.append(f"no pair: {policy} on {case} has no run with {_seeds(lacking.unique().sort().to_list())}")
    return notes


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _row(group: "pl.DataFrame") -> Row:
    """Sum up one policy in one world."""
    import polars as pl

    first = group.row(0, named=True)
    known = group.filter(pl.col("accuracy_frac").is_not_null())
    never_skips = first["gate"] in (None, NEVER)  # by definition, whatever the world was fitted to
    change_from = None if never_skips else next((name for name in (NEVER, ALWAYS) if group[name].count()), None)
    changes = group[change_from].drop_nulls().to_list() if change_from else []
    sources = set() if never_skips else set(group["skip_frac_source"].drop_nulls())
    times, ratios = group["time_s"].to_list(), group["ratio"].drop_nulls().to_list()
    speedup = geometric(ratios) if ratios else None
    if speedup is not None and first["is_baseline"]:
        # NOTE: the baseline's ratio to itself is 1 by definition, which is not a measurement with an interval.
        speedup = speedup._replace(low=None, high=None)
    names = ("world", "case", "policy", "scheduler", "gate", "aggregator", "second_stage", "is_baseline")
    return {name: first[name] for name in names} | {
        "num_seeds": len(group),
        "idle_frac": group["gpu_idle_frac"].mean(),
        "num_loads": group["num_loads"].mean(),
        "num_pairs": len(ratios),
        "num_known": len(known),
        "skip_frac": group["skip_frac"].mean(),
        "skip_frac_source": "/".join(sorted(sources)) or None,
        "change_from": change_from,
        "num_changes": len(changes),
        "times_s": times,
        "ratios": ratios,
        "changes_pp": changes,
        "time_s": estimate(times),
        "speedup": speedup,
        "accuracy_frac": _known_mean(known["accuracy_frac"]),
        "change_pp": estimate(changes) if changes else None,
        "end_to_end_s": _known_mean(known["end_to_end_s"]),
    }


def _known_mean(values: "pl.Series") -> Estimate | None:
    known = values.drop_nulls().to_list()
    return estimate(known) if known else None
