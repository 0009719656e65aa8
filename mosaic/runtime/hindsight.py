"""What skipping nothing would have given, seen from the end of a run."""

from collections.abc import Sequence

import msgspec

from mosaic.core.results import STOPPED, CallRecord
from mosaic.core.workload import CallKey, Expert, NodeName
from mosaic.pipelines.final_answers import FinalAnswer, accuracy_frac
from mosaic.pipelines.questions import Questions
from mosaic.runtime.job import AlwaysAggregate, Job, Outcome, Reaction, shape_of
from mosaic.runtime.planner import Planner, placed
from mosaic.runtime.stages import backend_of
from mosaic.runtime.static_plan import execute
from mosaic.runtime.unpriced import even_plan


def always_aggregate(
    job: Job, planner: Planner | None, outcome: Outcome, questions: Questions, answers: Sequence[FinalAnswer]
) -> AlwaysAggregate:
    """Tell what skipping nothing gives in the same world: a gate that never skips has done so already.

    On engines nothing can be tried again; without a planner the run was on servers.
    """
    if job.graph.asks_everybody:
        sessions = outcome.result.sessions
        ends = [session.end_ts for session in sessions if session.node in job.graph.first_nodes]
        if Reaction.OVERLAP in job.reactions or planner is None:  # sessions of the first layer serve others too
            first = [record for record in outcome.result.calls if record.key.node in job.graph.first_nodes]
            ends = [record.finished_ts or 0.0 for record in first]
        aggregator_s = max((session.end_ts for session in sessions), default=0.0) - max(ends, default=0.0)
        return AlwaysAggregate(aggregator_s=aggregator_s, accuracy_frac=accuracy_frac(answers))
    if planner is None or job.site.truth is None:
        return AlwaysAggregate()
    first_nodes = job.graph.first_nodes
    records = {record.key: record for record in outcome.result.calls if record.key.node in first_nodes}
    stopped = [call for call in questions.first_calls if _is_stopped(records.get(call.key))]
    if stopped:
        plan = even_plan(stopped, job.experts, job.site.places, job.cluster.num_workers)
        records |= {record.key: record for record in execute(plan, stopped, backend_of(job)).calls}
    layers = [
        [_as_placed(expert, node.name, planner, outcome) for node in layer for expert in node.experts]
        for layer in job.graph.layers[1:]
    ]
    said = sorted(
        (*record.key, record.answer, record.output_tokens, record.visible_tokens) for record in records.values()
    )
    shape = shape_of(job.graph.without_rule())
    decided_by = "always", job.site.truth, shape, job.workload, layers, msgspec.json.encode(said)
    always = job.kept(decided_by, AlwaysAggregate)
    if always is None:
        always = _run_without_gate(job, records, layers)
        job.keep(decided_by, always)
    return always


def _run_without_gate(
    job: Job, records: dict[CallKey, CallRecord], layers: Sequence[Sequence[Expert]]
) -> AlwaysAggregate:
    again = Questions(job.workload, job.graph.without_rule())
    for record in records.values():
        again.note(record)
    aggregator_s = 0.0
    for layer, experts in zip(job.graph.layers[1:], layers, strict=True):
        calls = [call for node in layer for call in again.calls_of(node.name)]
        plan = even_plan(calls, experts, job.site.places, job.cluster.num_workers)
        result = execute(plan, calls, backend_of(job, records))
        aggregator_s += max((session.end_ts for session in result.sessions), default=0.0)
        for record in result.calls:
            records[record.key] = record
            again.note(record)
    accuracy = accuracy_frac(end.answer for end in again.ends())
    return AlwaysAggregate(aggregator_s=aggregator_s, accuracy_frac=accuracy)


def _as_placed(expert: Expert, node: NodeName, planner: Planner, outcome: Outcome) -> Expert:
    """Shape an expert as the run has placed it, or would have."""
    for planned in outcome.planned:
        if any(key.node == node for session in planned.plan.sessions for key in session.shard):
            return planned.problem.expert(expert.name)
    degrees = planner.degrees(node, expert)
    return placed(expert, degrees[0]) if node in planner.by_node else expert


def _is_stopped(record: CallRecord | None) -> bool:
    return record is not None and record.status in STOPPED
