"""What calls said: responses as lines, and answers graded to calibrate gates, budgets and exits."""

import json
from collections.abc import Iterable, Iterator, Sequence

from mosaic.core.results import CallRecord, CallStatus
from mosaic.core.workload import Workload
from mosaic.pipelines.call_graph import CallGraph
from mosaic.pipelines.final_answers import Comparisons
from mosaic.pipelines.node import Node
from mosaic.pipelines.rules.ballot import Ballot
from mosaic.pipelines.rules.calibration_answers import CalibrationQuestion, grade_ballots, with_observed
from mosaic.pipelines.rules.calibration_file import CalibrationContext, encode_calibration_answers
from mosaic.report.run_folder import Content


def answer_files(
    workload: Workload,
    graph: CallGraph,
    calls: Sequence[CallRecord],
    ballots: Sequence[Ballot],
    context: CalibrationContext,
) -> dict[str, Content]:
    """Encode the texts of real responses, and of a run that skipped nothing the graded answers that calibrate gates."""
    files: dict[str, Content] = {}
    said = (record.response for record in calls if record.response is not None)
    if any(response.text is not None or response.error is not None for response in said):
        files["responses.jsonl"] = responses_jsonl(workload, graph, calls)
    if graph.asks_everybody and graph.upper_nodes:
        last = graph.upper_nodes[-1]
        answers = {
            record.key.question: record.answer
            for record in calls
            if record.key.node == last.name and record.key.slot < len(last.experts) and record.status == "finished"
        }
        graded = grade_ballots(ballots, answers, graph.compare)
        if last.leaves_one_out:
            graded = observed(graded, calls, last, graph.compare)
        if graded:
            files["calibration_answers.parquet"] = encode_calibration_answers(graded, context)
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


def responses_jsonl(workload: Workload, graph: CallGraph, calls: Iterable[CallRecord]) -> Iterator[bytes]:
    """Tell what was said, a line a call, in the order of the workload: when and where something ran is no matter."""
    questions = {question.id: place for place, question in enumerate(workload.questions)}
    nodes = {node.name: place for place, node in enumerate(graph.nodes)}

    def place(record: CallRecord) -> tuple[int, int, int]:
        return nodes.get(record.key.node, len(nodes)), questions[record.key.question], record.key.slot

    return map(_response_line, sorted(calls, key=place))


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
