"""What a validation says: one screen, a report in Markdown, and all numbers as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from experiments.figures.validation import Point
from experiments.studies.validation import (
    MAKESPAN_TARGET_FRAC,
    SESSION_TARGET_FRAC,
    ComparedPlan,
    ComparedTime,
    margins,
    mean_makespan_error_frac,
    mean_of,
    worst_session_error_frac,
)

BASELINE = "round_robin"
"""Whose makespan the others are compared with."""
BIASED_FRAC = 0.8
"""Share of the sessions on one side from which the simulator is said to be biased."""
BUSY_CPU_FRAC = 0.9
"""Below it a worker did not have its core to itself."""

Row = tuple[str, ...]


def describe(plans: Sequence[ComparedPlan]) -> str:
    """Lay out a validation as one screen."""
    blocks = [
        _table(("plan", *_MAKESPAN_HEAD), [_makespan_row(plan) for plan in plans]),
        _table(("plan", *_SESSION_HEAD), [_sessions_row(plan) for plan in plans]),
        verdict(plans),
    ]
    return "\n\n".join(blocks)


def verdict(plans: Sequence[ComparedPlan]) -> str:
    """Say in words how the targets were met, and whether the machine was quiet enough to tell."""
    makespan, session = mean_makespan_error_frac(plans), worst_session_error_frac(plans)
    sessions = [each for plan in plans for each in plan.sessions]
    within = sum(abs(each.whole.error_frac) <= SESSION_TARGET_FRAC for each in sessions)
    spread = mean_of(plan.makespan.spread_frac for plan in plans)
    lines = [
        f"Makespans are predicted within {makespan:.1%} on average (target {MAKESPAN_TARGET_FRAC:.0%}: "
        f"{_met(makespan <= MAKESPAN_TARGET_FRAC)}); a repeat of the same plan differs by {_percent(spread)}.",
        f"{within} of {len(sessions)} sessions are within {SESSION_TARGET_FRAC:.0%} (target all: "
        f"{_met(within == len(sessions))}); the worst is off by {session:.1%}.",
    ]
    lines += [
        f"{name} is {_side(measured)} {BASELINE}'s makespan, predicted {_side(simulated)} "
        f"({100 * (simulated - measured):+.1f} points)."
        for name, (simulated, measured) in margins(plans, BASELINE).items()
    ]
    lines += bias_lines(plans)
    lowest = min((frac for plan in plans for frac in plan.cpu_frac), default=None)
    if lowest is not None and lowest < BUSY_CPU_FRAC:
        lines.append(
            f"The machine was busy: in one run the workers had {lowest:.0%} of their cores' time, so part of the "
            "error is not the model's."
        )
    return "\n".join(lines)


def _side(margin_frac: float) -> str:
    return f"{abs(margin_frac):.1%} {'below' if margin_frac >= 0 else 'above'}"


def bias_lines(plans: Sequence[ComparedPlan]) -> list[str]:
    """Say whether the simulator errs to one side, and in what: nothing where sessions lie on both sides."""
    sessions = [each for plan in plans for each in plan.sessions]
    below = sum(each.whole.error_frac < 0 for each in sessions)
    if max(below, len(sessions) - below) < BIASED_FRAC * len(sessions):
        return []
    side, number = ("less", below) if 2 * below >= len(sessions) else ("more", len(sessions) - below)
    loads = _total_error_frac([each.load for each in sessions])
    serves = _total_error_frac([each.serve for each in sessions])
    cpu = mean_of(frac for plan in plans for frac in plan.cpu_frac)
    cores = "" if cpu is None else f" The workers had a core for {cpu:.0%} of their time, which is not the model's."
    return [
        f"Biased: {number} of {len(sessions)} sessions take {side} time in the simulator than measured; over all of "
        f"them serving differs by {serves:+.1%} and loading by {loads:+.1%}.{cores}"
    ]


def _total_error_frac(times: Sequence[ComparedTime]) -> float:
    measured_s = sum(each.mean_s for each in times)
    return sum(each.simulated_s for each in times) / measured_s - 1 if measured_s else 0.0


def figure_points(plans: Sequence[ComparedPlan]) -> list[Point]:
    """List what the figure shows: every session, load and serving together, and every makespan."""
    return [
        Point(plan.plan, is_makespan, times.simulated_s, times.measured_s)
        for plan in plans
        for is_makespan, times in ((True, plan.makespan), *((False, each.whole) for each in plan.sessions))
    ]


def to_markdown(plans: Sequence[ComparedPlan], *, title: str, command: str, conditions: Sequence[str]) -> str:
    """Write the report: verdict, makespans, workers, sessions."""
    parts = [
        f"# {title}",
        f"    {command}",
        "\n".join(f"- {line}" for line in conditions),
        verdict(plans),
        "![Simulated against measured seconds](validation.png)",
        "## Makespans",
        _markdown(("plan", *_MAKESPAN_HEAD), [_makespan_row(plan) for plan in plans]),
        "`error` is the simulator's, `planned error` that of the session costs which the schedulers plan with. "
        "`repeat` is the mean error of predicting a repeat by the others: no model can do better. `cpu` is the share "
        "of their wall time for which the workers had a core, in the run where it was least.",
        "## Workers",
        _markdown(("plan", "worker", *_PREDICTED_HEAD), _worker_rows(plans)),
        "## Sessions",
        _markdown(("plan", *_SESSION_HEAD), [_sessions_row(plan) for plan in plans]),
        _markdown(
            ("plan", "session", "expert", "calls", "part", *_PREDICTED_HEAD, "order tau", "repeat tau"),
            [row for plan in plans for row in _session_rows(plan)],
        ),
        "`order tau` is Kendall's rank correlation (tau-b) between the orders in which a session's calls finish, "
        "simulated and measured; `repeat tau` is that of two measured runs.",
    ]
    return "\n\n".join(parts) + "\n"


def to_json(plans: Sequence[ComparedPlan], *, command: str, conditions: Sequence[str]) -> str:
    """Write all numbers."""
    summary: dict[str, Any] = {
        "command": command,
        "conditions": list(conditions),
        "mean_makespan_error_frac": mean_makespan_error_frac(plans),
        "worst_session_error_frac": worst_session_error_frac(plans),
        "makespan_spread_frac": mean_of(plan.makespan.spread_frac for plan in plans),
        f"below_{BASELINE}_frac": {
            name: {"simulated": simulated, "measured": measured}
            for name, (simulated, measured) in margins(plans, BASELINE).items()
        },
        "plans": [_with_errors(asdict(plan), plan) for plan in plans],
    }
    return json.dumps(summary, indent=1) + "\n"


def _with_errors(values: dict[str, Any], plan: ComparedPlan) -> Mapping[str, Any]:
    """Add what follows from the times, for readers that do not compute."""
    values["makespan"] |= _errors(plan.makespan)
    for kept, session in zip(values["sessions"], plan.sessions, strict=True):
        for part in ("load", "serve", "whole"):
            kept[part] |= _errors(getattr(session, part))
    for kept, worker in zip(values["workers"], plan.workers, strict=True):
        kept |= _errors(worker)
    return values


def _errors(times: ComparedTime) -> dict[str, float | None]:
    return {
        "error_frac": times.error_frac,
        "planned_error_frac": times.planned_error_frac,
        "spread_frac": times.spread_frac,
    }


_PREDICTED_HEAD = ("measured s", "simulated s", "error", "planned s", "planned error", "repeat")
_MAKESPAN_HEAD = (*_PREDICTED_HEAD, "cpu")
_SESSION_HEAD = ("sessions", "mean error", "worst", "loads", "serving", "repeat", "order tau", "repeat tau")


def _predicted(times: ComparedTime) -> Row:
    return (
        f"{times.mean_s:.2f}",
        f"{times.simulated_s:.2f}",
        f"{times.error_frac:+.1%}",
        f"{times.planned_s:.2f}",
        f"{times.planned_error_frac:+.1%}",
        _percent(times.spread_frac),
    )


def _makespan_row(plan: ComparedPlan) -> Row:
    cpu = f"{min(plan.cpu_frac):.0%}" if plan.cpu_frac else "-"
    return (plan.plan, *_predicted(plan.makespan), cpu)


def _worker_rows(plans: Sequence[ComparedPlan]) -> list[Row]:
    return [
        (plan.plan, str(number), *_predicted(worker)) for plan in plans for number, worker in enumerate(plan.workers)
    ]


def _sessions_row(plan: ComparedPlan) -> Row:
    errors = [abs(session.whole.error_frac) for session in plan.sessions]
    loads = [session.load for session in plan.sessions if session.load.mean_s > 0]
    return (
        plan.plan,
        str(len(errors)),
        _percent(mean_of(errors)),
        _percent(max(errors)),
        _percent(mean_of(abs(load.error_frac) for load in loads)),
        _percent(mean_of(abs(session.serve.error_frac) for session in plan.sessions)),
        _percent(mean_of(session.whole.spread_frac for session in plan.sessions)),
        _tau(mean_of(session.order_tau for session in plan.sessions)),
        _tau(mean_of(session.repeat_tau for session in plan.sessions)),
    )


def _session_rows(plan: ComparedPlan) -> list[Row]:
    rows = []
    for session in plan.sessions:
        head = (plan.plan, str(session.session), session.expert, str(session.num_calls))
        rows.append((*head, "load", *_predicted(session.load), "", ""))
        tails = _tau(session.order_tau), _tau(session.repeat_tau)
        rows.append((*head, "serve", *_predicted(session.serve), *tails))
    return rows


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _tau(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _met(is_met: bool) -> str:
    return "met" if is_met else "missed"


def _table(head: Row, rows: Sequence[Row]) -> str:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (head, *rows)
    )


def _markdown(head: Row, rows: Sequence[Row]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)
