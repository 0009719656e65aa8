"""What summary.json says of a run, and the files that come of its answers."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mosaic.config.exits import calibrated_gate
from mosaic.config.job import Prepared
from mosaic.config.promise import Promise
from mosaic.core.addition import add_in_order
from mosaic.core.plan import Plan
from mosaic.core.results import CallRecord, CallStatus, RunResult
from mosaic.pipelines.final_answers import Comparisons, accuracy_frac
from mosaic.pipelines.gates.calibrated import Calibrated
from mosaic.pipelines.gates.calibration_answers import CalibrationQuestion, grade_ballots, with_observed
from mosaic.pipelines.gates.calibration_file import encode_calibration_answers
from mosaic.pipelines.node import Node
from mosaic.planning.plan_file import plans_to_json
from mosaic.report.metrics import StageSummary, Summary, summarise
from mosaic.report.run_folder import Content
from mosaic.runtime.job import Job, Outcome


def summary_of(
    prepared: Prepared,
    config: Mapping[str, Any],
    plans: Sequence[Plan],
    outcome: Outcome | None = None,
    promise: Promise | None = None,
) -> Summary:
    """Build the contents of summary.json; without an outcome, of a plan that was not run."""
    job = prepared.job
    return summarise(
        plans,
        outcome.result if outcome else None,
        workload=job.workload.name,
        backend=config["backend"]["name"],
        gate=job.graph.decider.name if job.graph.upper_nodes else None,
        costs=plans[0].costs,
        seed=prepared.seed,
        num_questions=len(job.workload.questions),
        experts=[expert.name for expert in job.experts],
        stage=upper_summary(prepared, outcome, promise) if outcome else None,
        accuracy_frac=accuracy_frac((outcome.answers if outcome else None) or ()),
        answers_source=job.site.answers_source,
    )


def upper_summary(prepared: Prepared, outcome: Outcome, promise: Promise | None) -> StageSummary | None:
    """Say what summary.json holds of the nodes that read others; None: there are none."""
    graph = prepared.job.graph
    if not graph.upper_nodes:
        return None
    planned = outcome.planned[1:]
    degrees = {len(session.workers) for made in planned for session in made.plan.sessions}
    always = outcome.always
    predicted_s = add_in_order(made.plan.predicted_makespan_s for made in planned)
    num_calls = sum(record.key.node not in graph.first_nodes for record in outcome.result.calls)
    return StageSummary(
        aggregator=prepared.aggregator,
        aggregator_expert="+".join(dict.fromkeys(e.name for node in graph.upper_nodes for e in node.experts)),
        aggregator_tp_degree=degrees.pop() if len(degrees) == 1 else None,
        aggregator_scheduler="+".join(dict.fromkeys(made.plan.scheduler for made in planned)) or None,
        aggregator_costs="+".join(dict.fromkeys(made.plan.costs for made in planned)) or None,
        predicted_aggregator_s=predicted_s if planned or not num_calls else None,
        num_aggregator_calls=num_calls,
        num_too_long=outcome.num_too_long,
        skip_frac=outcome.skip_frac or 0.0,
        skip_frac_source=prepared.job.site.answers_source,
        accuracy_frac=accuracy_frac(outcome.answers or ()),
        always_aggregate_s=always.aggregator_s,
        always_aggregate_accuracy_frac=always.accuracy_frac,
        gate_report=gate_report(prepared, outcome, promise),
    )


def gate_report(prepared: Prepared, outcome: Outcome, promise: Promise | None) -> Mapping[str, Any] | None:
    """List the numbers behind what gate and budgets promise, and whether it holds; None: there is nothing of it."""
    graph, calibration = prepared.job.graph, prepared.calibration
    gate = calibrated_gate(graph.exit) or graph.gate
    report = gate.report() if isinstance(gate, Calibrated) else None
    if calibration is not None:
        num_cut = sum(record.status is CallStatus.CUT for record in outcome.result.calls)
        report = {**(report or {}), "budgets": {**calibration.choice.report(), "num_cut_calls": num_cut}}
    return report if report is None or promise is None else {**report, "promise": promise.report()}


def answer_files(prepared: Prepared, outcome: Outcome) -> dict[str, Content]:
    """Encode the texts of real responses, and of a run that skipped nothing the graded answers that calibrate gates."""
    files: dict[str, Content] = {}
    said = (record.response for record in outcome.result.calls if record.response is not None)
    if any(response.text is not None or response.error is not None for response in said):
        files["responses.jsonl"] = responses_jsonl(prepared.job, outcome.result)
    graph = prepared.job.graph
    if graph.asks_everybody and graph.upper_nodes:
        last = graph.upper_nodes[-1]
        answers = {
            record.key.question: record.answer
            for record in outcome.result.calls
            if record.key.node == last.name and record.key.slot < len(last.experts) and record.status == "finished"
        }
        graded = grade_ballots(outcome.ballots, answers, graph.compare)
        if last.leaves_one_out:
            graded = observed(graded, outcome.result.calls, last, graph.compare)
        if graded:
            files["calibration_answers.parquet"] = encode_calibration_answers(graded, prepared.setting)
    return files


def observed(
    graded: Sequence[CalibrationQuestion], records: Sequence[CallRecord], last: Node, compare: Comparisons
) -> list[CalibrationQuestion]:
    """Add what was seen beside the answers, to the questions all of whose calls have finished."""
    first: dict[str, dict[int, CallRecord]] = {}
    upper: dict[str, dict[int, CallRecord]] = {}
    for record in records:
        if record.status is CallStatus.FINISHED:
            of_node = upper if record.key.node == last.name else first
            of_node.setdefault(record.key.question, {})[record.key.slot] = record
    seen = []
    for question in graded:
        slots = range(len(question.ballot.votes))
        votes, merged = first.get(question.id, {}), upper[question.id]
        same = compare[question.ballot.question.answer_kind]
        if same is not None and len(votes) == len(slots) and len(merged) == 1 + len(slots):
            left_out = [merged[1 + slot] for slot in slots]
            question = with_observed(question, [votes[slot] for slot in slots], merged[0], left_out, same)
        seen.append(question)
    return seen


def responses_jsonl(job: Job, result: RunResult) -> Iterator[bytes]:
    """Tell what was said, a line a call, in the order of the workload: when and where something ran is no matter."""
    questions = {question.id: place for place, question in enumerate(job.workload.questions)}
    nodes = {node.name: place for place, node in enumerate(job.graph.nodes)}

    def place(record: CallRecord) -> tuple[int, int, int]:
        return nodes.get(record.key.node, len(nodes)), questions[record.key.question], record.key.slot

    return map(_response_line, sorted(result.calls, key=place))


def _response_line(record: CallRecord) -> bytes:
    said = record.response
    line = {
        "question": record.key.question,
        "node": record.key.node,
        "slot": record.key.slot,
        "expert": record.expert,
        "status": record.status.value,
        "finish_reason": said.finish_reason if said else None,
        "output_tokens": record.output_tokens,
        "text": said.text if said else None,
        "error": said.error if said else None,
    }
    if record.confidence is not None:
        line["confidence"] = record.confidence
    return f"{json.dumps(line, ensure_ascii=False)}\n".encode()


def replans_jsonl(replans: Sequence[tuple[Plan, Mapping[int, str]]]) -> bytes:
    """Encode new plans, one a line, with the workers that were lost."""
    lines = ({"lost_workers": lost, "plan": json.loads(plans_to_json([plan]))["layers"][0]} for plan, lost in replans)
    return "".join(json.dumps(line) + "\n" for line in lines).encode()
