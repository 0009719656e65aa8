"""The page and the figure of plans that choose KV caches, from the tables of their runs."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from experiments.lab.estimate import Estimate, estimate
from experiments.studies.kv_monitor import Seen, Sight, fall, sights
from experiments.studies.kv_plans import PAPER, ExpertRun, PlanRun, PlanShape
from experiments.studies.paper_tables import Table, to_markdown
from experiments.studies.rows import read_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WATCHED = "0.5% accepted"
"""The plan under which the monitor is looked at: all reasoning calls are sparse."""
NUM_QUESTIONS = 2100
"""Of MMLU-Pro's batch."""
WATCHED_NAMES = {"skip_frac": "skipped at tau = 2/3", "unanimous_frac": "all agree"}


class Tables(NamedTuple):
    """What a study wrote."""

    plans: list[PlanShape]
    runs: list[PlanRun]
    experts: list[ExpertRun]
    monitor: list[Seen]


def read_tables(folder: Path) -> Tables:
    """Read the tables of a folder."""
    return Tables(
        read_rows(folder / "plans.csv", PlanShape),
        read_rows(folder / "runs.csv", PlanRun),
        read_rows(folder / "experts.csv", ExpertRun),
        read_rows(folder / "monitor.csv", Seen),
    )


def against(tables: Tables, policy: str, measured: str, base: str = PAPER) -> Estimate:
    """Divide a policy's runs by those of another, seed by seed."""
    first = {run.seed: getattr(run, measured) for run in tables.runs if run.policy == base}
    return estimate([getattr(run, measured) / first[run.seed] for run in tables.runs if run.policy == policy])


def changed(tables: Tables, policy: str, measured: str) -> Estimate:
    """Subtract the runs of the paper's plan, seed by seed."""
    first = {run.seed: getattr(run, measured) for run in tables.runs if run.policy == PAPER}
    return estimate([getattr(run, measured) - first[run.seed] for run in tables.runs if run.policy == policy])


def plans_table(tables: Tables) -> Table:
    """Set every policy beside the paper's ILP."""
    head = (
        "plan", "expert stage s", "against the ILP", "end to end s", "against the ILP", "preemptions",
        "right answers lost, believed (bounds)", "skipped, points", "accuracy, points",
    )  # fmt: skip
    rows: list[Sequence[str]] = [head]
    for shape in tables.plans:
        policy = shape.policy
        mine = [run for run in tables.runs if run.policy == policy]
        rows.append(
            (
                policy,
                f"{_mean(run.expert_stage_s for run in mine):,.0f}",
                _ratio(against(tables, policy, "expert_stage_s")),
                f"{_mean(run.end_to_end_s for run in mine):,.0f}",
                _ratio(against(tables, policy, "end_to_end_s")),
                f"{_mean(run.num_preemptions for run in mine):,.0f}",
                f"{shape.expected_loss_frac:.2%} ({shape.low_frac:.2%} to {shape.high_frac:.2%})",
                _points(changed(tables, policy, "skip_frac")),
                _points(changed(tables, policy, "accuracy_frac")),
            )
        )
    return rows


def caches_table(tables: Tables) -> Table:
    """Say which caches each plan chose."""
    head = ("plan", "predicted s", "calls by KV budget in tokens")
    return [head, *((shape.policy, f"{shape.predicted_s:,.0f}", shape.calls) for shape in tables.plans)]


def experts_table(tables: Tables, policies: Sequence[str]) -> Table:
    """Say what each expert's sessions took, against the paper's ILP with the same luck."""
    head = (
        "plan",
        "expert",
        "GPU s, the ILP",
        "GPU s",
        "against the ILP",
        "last call ends, against the ILP",
        "preemptions",
    )
    first = {(run.seed, run.expert): run for run in tables.experts if run.policy == PAPER}
    rows: list[Sequence[str]] = [head]
    for policy in policies:
        for name in dict.fromkeys(run.expert for run in tables.experts):
            mine = [run for run in tables.experts if (run.policy, run.expert) == (policy, name)]
            base = [first[run.seed, name] for run in mine]
            pairs = list(zip(mine, base, strict=True))
            rows.append(
                (
                    policy,
                    name,
                    f"{_mean(run.gpu_s for run in base):,.0f}",
                    f"{_mean(run.gpu_s for run in mine):,.0f}",
                    _ratio(estimate([run.gpu_s / other.gpu_s for run, other in pairs])),
                    _ratio(estimate([run.finished_s / other.finished_s for run, other in pairs])),
                    f"{_mean(run.num_preemptions for run in base):,.0f} -> "
                    f"{_mean(run.num_preemptions for run in mine):,.0f}",
                )
            )
    return rows


def monitor_table(seen: Sequence[Seen]) -> Table:
    """Say what falls where sparse calls lose right answers."""
    head = (
        "right answers lost, of long sparse calls", "experts' accuracy, points", "accuracy, points",
        "skipped at tau = 2/3, points", "all agree, points",
    )  # fmt: skip
    measures = ("expert_accuracy_frac", "accuracy_frac", "skip_frac", "unanimous_frac")
    losses = sorted({one.loss_frac for one in seen} - {0.0})
    return [
        head,
        *((f"{loss:.1%}", *(_points(_less(estimate(fall(seen, it, loss)))) for it in measures)) for loss in losses),
    ]


def sights_table(found: Sequence[Sight]) -> Table:
    """Say how small a loss is seen."""
    head = (
        "watched share",
        "compared with",
        "fall that is seen, points",
        "right answers lost by then",
        "accuracy lost, points",
    )
    return [
        head,
        *(
            (
                WATCHED_NAMES[it.watched],
                it.compared,
                f"{100 * it.least_fall_frac:.2f}",
                "above all tried" if it.loss_frac is None else f"{it.loss_frac:.1%}",
                "" if it.accuracy_fall_frac is None else f"{100 * it.accuracy_fall_frac:.2f}",
            )
            for it in found
        ),
    ]


def report(tables: Tables) -> str:
    """Write the page."""
    seeds = len({run.seed for run in tables.runs})
    shown = [shape.policy for shape in tables.plans if shape.policy in ("0.25% accepted", WATCHED)]
    seen = tables.monitor
    full = [one for one in seen if one.loss_frac == 0]
    parts = [
        "# Plans that choose KV caches",
        "Made by `python experiments/kv_plans.py --out results/kv_plans`.",
        f"MMLU-Pro, hybrid pool, four simulated A100s, {seeds} seeds, in each of which all plans meet the same luck; "
        "95% intervals over seeds, of paired ratios and differences. What a sparse KV cache costs in right answers is "
        "assumed, with assumed bounds (`conf/policy/kv_plans.yaml`): 0.5% (0 to 2%) at a budget of 2,048 tokens, 1% (0 "
        "to 5%) at 1,024. The simulated world loses 0.5% and 1% of the right answers of calls that outgrow their "
        "budget. Lengths are those of the full cache. No GPU was measured.",
        "![Seconds by accepted loss, and what the gate shows](kv_plans.png)",
        "## The plans",
        to_markdown(plans_table(tables)),
        "With the paper's prices (a constant per call) a plan believes more than it gets: what is left of a session is "
        "its longest answers, which a sparse cache hardly shortens. `prices by iterations` steps the sessions over "
        "calibration lengths (`scheduler.prices=iterations`); its own base is the row in which it accepts no loss.",
        to_markdown(caches_table(tables)),
        "## Who gains what",
        "GPU seconds are those of all sessions of an expert, loads included.",
        to_markdown(experts_table(tables, shown)),
        "## The gate as quality monitor",
        f"All calls of the reasoning experts with a budget of 1,024 tokens (the plan `{WATCHED}`), in worlds that lose "
        "more and more. With the full cache the gate skips "
        f"{_mean(one.skip_frac for one in full):.1%}, all experts agree on "
        f"{_mean(one.unanimous_frac for one in full):.1%}, and accuracy is "
        f"{_mean(one.accuracy_frac for one in full):.2%}.",
        to_markdown(monitor_table(seen)),
        f"What a batch of {NUM_QUESTIONS:,} questions shows: a one-sided test that cries wolf in 5% of the batches "
        "and sees the loss in 80% of them. `The long-run share, new questions` is what a user has who watches "
        "the skip share from batch to batch (the error of the long-run share left out); `the same questions` "
        "asks the batch twice.",
        to_markdown(sights_table(sights(seen, NUM_QUESTIONS))),
        "Losses as small as those assumed are far below what one batch can show: the monitor tells a broken cache "
        "from a sound one, and cannot confirm an accepted loss of a fraction of a per cent.",
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def figure(tables: Tables) -> "Figure":
    """Draw seconds by plan, and what falls with the loss."""
    from experiments.figures.kv_plans import draw_kv_plans

    stages = {shape.policy: against(tables, shape.policy, "expert_stage_s") for shape in tables.plans}
    stages = {policy: found for policy, found in stages.items() if policy != PAPER}
    losses = sorted({one.loss_frac for one in tables.monitor} - {0.0})
    curves = {
        label: {loss: estimate(fall(tables.monitor, measured, loss)) for loss in losses}
        for label, measured in (
            ("skipped at tau = 2/3", "skip_frac"),
            ("all experts agree", "unanimous_frac"),
            ("accuracy", "accuracy_frac"),
        )
    }
    limits = {
        WATCHED_NAMES[it.watched]: it.least_fall_frac
        for it in sights(tables.monitor, NUM_QUESTIONS)
        if it.compared.startswith("the long-run")
    }
    return draw_kv_plans(stages, curves, limits)


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def _less(found: Estimate) -> Estimate:
    """Turn a fall into a change."""
    low = None if found.high is None else -found.high
    high = None if found.low is None else -found.low
    return Estimate(-found.mean, low, high, found.num)


def _ratio(found: Estimate) -> str:
    ends = found.shown()
    return f"x {found.mean:.3f}" + ("" if ends is None else f" ({ends[0]:.3f} to {ends[1]:.3f})")


def _points(found: Estimate) -> str:
    ends = found.shown()
    return f"{100 * found.mean:+.2f}" + ("" if ends is None else f" ({100 * ends[0]:+.2f} to {100 * ends[1]:+.2f})")
