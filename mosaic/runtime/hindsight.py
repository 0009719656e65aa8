"""Computes, at the end of a run, the result without any skipping."""

from collections.abc import Callable, Iterator, Sequence

import msgspec

from mosaic.core.addition import add_in_order
from mosaic.core.errors import BackendError
from mosaic.core.plan import Expected
from mosaic.core.results import STOPPED, CallRecord, RunResult
from mosaic.core.workload import CallKey, Expert, NodeName
from mosaic.pipelines.final_answers import FinalAnswer, accuracy_frac
from mosaic.pipelines.questions import Questions
from mosaic.runtime.backend import Backend
from mosaic.runtime.controller import Show, show_nothing
from mosaic.runtime.job import AlwaysAggregate, Job, Outcome, Reaction, shape_of
from mosaic.runtime.planner import Planner, placed
from mosaic.runtime.stages import backend_of
from mosaic.runtime.static_plan import execute
from mosaic.runtime.unpriced import even_plan


def always_aggregate(
    job: Job, planner: Planner | None, outcome: Outcome, questions: Questions, answers: Sequence[FinalAnswer]
) -> AlwaysAggregate:
    """Return the result without skipping in the same world; a gate that never skips already gives it.

    On engines nothing can be repeated; without a planner the run was on servers. It takes as long as the run itself, so
    for large batches the job must request it.
    """
    if job.graph.skips_nothing:
        sessions = outcome.result.sessions
        ends = [session.end_ts for session in sessions if session.node in job.graph.first_nodes]
        if Reaction.OVERLAP in job.reactions or planner is None:  # sessions of the first layer serve other layers too
            first = [record for record in outcome.result.calls if record.key.node in job.graph.first_nodes]
            ends = [record.finished_ts or 0.0 for record in first]
        aggregator_s = max((session.end_ts for session in sessions), default=0.0) - max(ends, default=0.0)
        return AlwaysAggregate(aggregator_s=aggregator_s, accuracy_frac=accuracy_frac(answers))
    if planner is None or job.site.world_key is None or not job.reruns_without_gate:
        return AlwaysAggregate()
    first_nodes = job.graph.first_nodes
    ended = (record for record in outcome.result.calls if record.key.node in first_nodes)
    records = {record.key: record for record in ended if record.status not in STOPPED}
    layers = [
        [_as_placed(expert, node.name, planner, outcome) for node in layer for expert in node.experts]
        for layer in job.graph.layers[1:]
    ]
    said = sorted(
        (*record.key, record.answer, record.output_tokens, record.visible_tokens) for record in records.values()
    )
    shape = shape_of(job.graph.without_rule())
    decided_by = "always", job.site.world_key, shape, job.workload, layers, msgspec.json.encode(said)
    always = job.kept(decided_by, AlwaysAggregate)
    if always is None:
        again = Questions(job.workload, job.graph.without_rule())
        results = ask_unskipped(job, again, records, [job.experts, *layers], lambda depth: backend_of(job, records))
        lasted_s = [max(one.end_ts for one in result.sessions) if depth else 0.0 for depth, result in results]
        accuracy = accuracy_frac(end.answer for end in again.ends())
        always = AlwaysAggregate(aggregator_s=add_in_order(lasted_s), accuracy_frac=accuracy)
        job.keep(decided_by, always)
    return always


def ask_unskipped(
    job: Job,
    questions: Questions,
    records: dict[CallKey, CallRecord],
    experts: Sequence[Sequence[Expert]],
    backend_at: Callable[[int], Backend],
    show: Show = show_nothing,
) -> Iterator[tuple[int, RunResult]]:
    """Run, layer by layer, the calls without a record; yields the depth of each layer, and its result.

    Parameters
    ----------
    job
        The job that they run in.
    questions, records
        The questions without a gate, and the records of their ended calls; both are updated.
    experts, backend_at
        Of each layer, by its depth.
    show
        Displays the progress.

    Raises
    ------
    BackendError
        If lost workers leave unended calls.
    """
    for record in records.values():
        questions.record(record)
    for depth, layer in enumerate(questions.graph.layers):
        needed = [call for node in layer for call in questions.calls_of(node.name)] if depth else questions.first_calls
        calls = [call for call in needed if call.key not in records]
        if not calls:
            continue
        plan = even_plan(calls, experts[depth], job.site.places, job.cluster.num_workers)
        with show("audit", Expected()) as shown:
            result = execute(plan, calls, backend_at(depth), shown)
        if num_left := len(calls) - len(result.calls):
            causes = "; ".join(f"worker {loss.worker}: {loss.cause}" for loss in result.lost_workers)
            raise BackendError(f"workers are lost and {num_left} calls of the audit are left ({causes})")
        for record in result.calls:
            records[record.key] = record
            questions.record(record)
        yield depth, result


def _as_placed(expert: Expert, node: NodeName, planner: Planner, outcome: Outcome) -> Expert:
    """Return an expert with the degree that the run gave it, or would have given it."""
    for planned in outcome.planned:
        if any(key.node == node for session in planned.plan.sessions for key in session.shard):
            return planned.problem.expert(expert.name)
    degrees = planner.degrees(node, expert)
    return placed(expert, degrees[0]) if node in planner.by_node else expert
