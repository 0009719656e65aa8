"""Writes a run's folder and its summary.json."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mosaic.config.job import RunSpec
from mosaic.core.addition import add_in_order
from mosaic.core.plan import Plan
from mosaic.core.results import CallStatus
from mosaic.pipelines.final_answers import accuracy_frac
from mosaic.planning.plan_file import replans_to_jsonl
from mosaic.report.metrics import Summary, summarise
from mosaic.report.responses import answer_files
from mosaic.report.run_folder import Content, describe_run_conditions, write_run
from mosaic.runtime.job import Outcome
from mosaic.runtime.promise import Promise


def leave(
    folder: Path,
    spec: RunSpec,
    recorded: Mapping[str, Any],
    summary: Summary,
    plans: Sequence[Plan],
    outcome: Outcome | None = None,
    *,
    wall_s_by_step: Mapping[str, float] | None = None,
    files: Mapping[str, Content] | None = None,
) -> None:
    """Write a run's folder.

    Parameters
    ----------
    folder
        Where to.
    spec, recorded
        What was run, and its configuration as the folder has it.
    summary, plans, outcome
        The outcome of the run; without one a plan was made, and not run.
    wall_s_by_step
        For meta.json.
    files
        More files.
    """
    job, written = spec.job, dict(files or {})
    if outcome is not None:
        written |= answer_files(job.workload, job.graph, outcome.result.calls, outcome.ballots, spec.setting)
        if outcome.replans:
            written["replans.jsonl"] = replans_to_jsonl(outcome.replans)
    write_run(
        folder,
        config=recorded,
        plans=plans,
        result=outcome.result if outcome else None,
        summary=summary,
        meta=describe_run_conditions(
            wall_s_by_step=wall_s_by_step or {},
            solver_s=plans[0].solve.wall_s,
            reacting_s=outcome.reacting_s if outcome else None,
        ),
        files=written,
        answers=outcome.answers if outcome else None,
        roles={node.name: node.role or node.name for node in job.graph.nodes},
    )


def summary_of(
    spec: RunSpec,
    config: Mapping[str, Any],
    plans: Sequence[Plan],
    outcome: Outcome | None = None,
    promise: Promise | None = None,
) -> Summary:
    """Build the contents of summary.json; without an outcome, of a plan that was not run."""
    job, costs = spec.job, spec.job.site.costs()
    spending = {"spending": {name: cost.as_dict() for name, cost in costs.items()}} if costs else {}
    summary = summarise(
        plans,
        outcome.result if outcome else None,
        workload=job.workload.name,
        backend=config["backend"]["name"],
        gate=job.graph.rule.name if job.graph.upper_nodes else None,
        seed=spec.seed,
        num_questions=len(job.workload.questions),
        experts=[expert.name for expert in job.experts],
        answers=_answered(spec, outcome, promise) if outcome else {},
    )
    return summary | spending


def _answered(spec: RunSpec, outcome: Outcome, promise: Promise | None) -> dict[str, Any]:
    """Return the values of ``ANSWER_KEYS``: the sources of the answers, and the second stage."""
    graph, source, accuracy = spec.job.graph, spec.job.site.answers_source, accuracy_frac(outcome.answers or ())
    if not graph.upper_nodes:
        return {"accuracy_frac": accuracy, "skip_frac_source": None if accuracy is None else source}
    planned, first_nodes = outcome.planned[1:], graph.first_nodes
    degrees = {len(session.workers) for made in planned for session in made.plan.sessions}
    predicted_s = add_in_order(made.plan.predicted_makespan_s for made in planned)
    num_calls = sum(record.key.node not in first_nodes for record in outcome.result.calls)
    return {
        "aggregator": spec.aggregator,
        "aggregator_expert": "+".join(dict.fromkeys(e.name for node in graph.upper_nodes for e in node.experts)),
        "aggregator_tp_degree": degrees.pop() if len(degrees) == 1 else None,
        "aggregator_scheduler": "+".join(dict.fromkeys(made.plan.scheduler for made in planned)) or None,
        "aggregator_costs": "+".join(dict.fromkeys(made.plan.costs for made in planned)) or None,
        "predicted_aggregator_s": predicted_s if planned or not num_calls else None,
        "num_aggregator_calls": num_calls,
        "num_too_long": outcome.num_too_long,
        "skip_frac": outcome.skip_frac or 0.0,
        "skip_frac_source": source,
        "accuracy_frac": accuracy,
        "always_aggregate_s": outcome.always.aggregator_s,
        "always_aggregate_accuracy_frac": outcome.always.accuracy_frac,
        "gate_report": _gate_report(spec, outcome, promise),
    }


def _gate_report(spec: RunSpec, outcome: Outcome, promise: Promise | None) -> Mapping[str, Any] | None:
    """List the numbers behind the promise of gate and budgets, and whether it holds; None: there is no promise."""
    graph, calibration = spec.job.graph, spec.calibration
    report = graph.rule.report()
    if calibration is not None:
        num_cut = sum(record.status is CallStatus.CUT for record in outcome.result.calls)
        report = {**(report or {}), "budgets": {**calibration.report(), "num_cut_calls": num_cut}}
    return report if report is None or promise is None else {**report, "promise": promise.report()}
