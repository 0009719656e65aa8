"""What a policy's runs say beyond the expert stage: skips, accuracy, its paired change, and end-to-end time."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from experiments.analysis.labels import settings_agree
from experiments.analysis.pairing import Row, t_interval
from experiments.analysis.run_points import RunPoint

NEVER = "never"
ALWAYS = "always_aggregate"
"""What an accuracy change is measured against: a run that never skips, or the same run had it never skipped."""


class Estimate(NamedTuple):
    """A mean over seeds with its 95% interval, None for a single seed."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One policy in one world, over its seeds. Whatever its runs do not tell is None."""

    case: str
    policy: str
    scheduler: str
    gate: str | None
    aggregator: str | None
    num_seeds: int
    end_to_end_s: Estimate | None
    """Of the runs with an accuracy."""
    accuracy_frac: Estimate | None
    skip_frac: float | None
    skip_frac_source: str | None
    """How the skip share came about: fitted, assumed or measured; None where nothing could be skipped."""
    change_pp: Estimate | None
    """Accuracy change in percentage points, paired by seed; None for the reference itself."""
    change_from: str | None
    """NEVER or ALWAYS."""
    num_changes: int

    @property
    def setting(self) -> str:
        """The policy's name without its scheduler."""
        return self.policy.removeprefix(self.scheduler).strip()


def measure_outcomes(rows: Sequence[Row]) -> tuple[Outcome, ...]:
    """Sum up the second stage of every row, in the order of the rows."""
    never: defaultdict[tuple[str, str, int], list[RunPoint]] = defaultdict(list)
    for row in rows:
        for run in row.runs:
            if run.gate == NEVER and run.number("accuracy_frac") is not None:
                never[row.case, run.scheduler, run.seed].append(run)
    return tuple(_outcome(row, [never[row.case, run.scheduler, run.seed] for run in row.runs]) for row in rows)


def can_be_drawn(outcomes: Sequence[Outcome]) -> tuple[Outcome, ...]:
    """Keep what has both coordinates; nothing where no world has two policies to trade between."""
    shown = [outcome for outcome in outcomes if outcome.accuracy_frac is not None and outcome.end_to_end_s is not None]
    cases = [outcome.case for outcome in shown]
    return tuple(shown) if len(set(cases)) < len(cases) else ()


def _outcome(row: Row, never: Sequence[Sequence[RunPoint]]) -> Outcome:
    first = row.runs[0]
    known = [run for run in row.runs if run.number("accuracy_frac") is not None]
    changes, change_from = _changes(row.runs, never)
    never_skips = first.gate == NEVER  # by definition, whatever the world was fitted to
    sources = {None if never_skips else run.summary.get("skip_frac_source") for run in row.runs} - {None}
    skip = _estimate(row.runs, "skip_frac")
    return Outcome(
        case=row.case,
        policy=row.policy,
        scheduler=first.scheduler,
        gate=first.gate,
        aggregator=first.aggregator,
        num_seeds=len(known or row.runs),
        end_to_end_s=_estimate(known, "end_to_end_s"),
        accuracy_frac=_estimate(known, "accuracy_frac"),
        skip_frac=None if skip is None else skip.mean,
        skip_frac_source="/".join(sorted(map(str, sources))) or None,
        change_pp=_interval(changes),
        change_from=change_from,
        num_changes=len(changes),
    )


def _changes(runs: Sequence[RunPoint], never: Sequence[Sequence[RunPoint]]) -> tuple[list[float], str | None]:
    """Subtract the accuracy of the runs that never skip, where any seed has one, else that of always aggregating."""
    if runs[0].gate == NEVER:
        return [], None
    references = [_reference(run, others) for run, others in zip(runs, never, strict=True)]
    if any(reference is not None for reference in references):
        change_from, others = NEVER, [other and other.number("accuracy_frac") for other in references]
    else:
        change_from, others = ALWAYS, [run.number("always_aggregate_accuracy_frac") for run in runs]
    pairs = zip((run.number("accuracy_frac") for run in runs), others, strict=True)
    changes = [100 * (own - other) for own, other in pairs if own is not None and other is not None]
    return changes, change_from if changes else None


def _reference(run: RunPoint, never: Sequence[RunPoint]) -> RunPoint | None:
    """Find the run that never skips on the same calls: with all else equal, or else where all such runs agree."""
    same = [other for other in never if other.summary["problem_fingerprint"] == run.summary["problem_fingerprint"]]
    near = [other for other in same if settings_agree(run, other, outside="gate")] or same
    return near[0] if len({other.number("accuracy_frac") for other in near}) == 1 else None


def _estimate(runs: Sequence[RunPoint], key: str) -> Estimate | None:
    return _interval([value for run in runs if (value := run.number(key)) is not None])


def _interval(values: Sequence[float]) -> Estimate | None:
    return Estimate(sum(values) / len(values), *t_interval(values)) if values else None
