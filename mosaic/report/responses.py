"""Writes the responses of calls as lines, and graded answers that calibrate gates, budgets and exits."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from mosaic.core.results import CallRecord, CallStatus
from mosaic.core.workload import Workload
from mosaic.pipelines.call_graph import CallGraph
from mosaic.pipelines.final_answers import Comparisons
from mosaic.pipelines.node import Node
from mosaic.pipelines.rules.ballot import Ballot
from mosaic.pipelines.rules.calibration_answers import CalibrationQuestion, grade_ballot, with_observed
from mosaic.pipelines.rules.calibration_file import CalibrationContext, encode_calibration_answers
from mosaic.report.run_folder import Content


def answer_files(
    workload: Workload,
    graph: CallGraph,
    calls: Sequence[CallRecord],
    ballots: Sequence[Ballot],
    context: CalibrationContext,
) -> dict[str, Content]:
    """Encode the texts of real responses and, for a run that skipped nothing, the graded answers for calibration."""
    files: dict[str, Content] = {}
    said = (record.response for record in calls if record.response is not None)
    if any(response.content is not None or response.error is not None for response in said):
        files["responses.jsonl"] = responses_jsonl(workload, graph, calls)
    is_graded = graph.skips_nothing and graph.upper_nodes
    if is_graded and (graded := graded_answers(ballots, calls, graph.upper_nodes[-1], graph.compare)):
        files["calibration_answers.parquet"] = encode_calibration_answers(graded, context)
    return files


def graded_answers(
    ballots: Iterable[Ballot], records: Iterable[CallRecord], last: Node, compare: Comparisons
) -> list[CalibrationQuestion]:
    """Grade the questions that the last node answered, if gold is known and answers can be compared.

    Further observations are added to questions whose calls have all finished.
    """
    first: dict[str, dict[int, CallRecord]] = defaultdict(dict)
    upper: dict[str, dict[int, CallRecord]] = defaultdict(dict)
    for record in records:
        if record.status is CallStatus.FINISHED:
            (upper if record.key.node == last.name else first)[record.key.question][record.key.slot] = record
    graded = []
    for ballot in ballots:
        question, same = ballot.question, compare[ballot.question.answer_kind]
        votes, merged, num_votes = first[question.id], upper[question.id], len(ballot.votes)
        answers = [record.answer for slot, record in sorted(merged.items()) if slot < len(last.experts)]
        if answers and question.answer is not None and same is not None:
            known = grade_ballot(ballot, answers[-1], same)
            if last.leaves_one_out and len(votes) == num_votes and len(merged) == 1 + num_votes:
                whole, *left_out = (merged[slot] for slot in range(1 + num_votes))
                known = with_observed(known, [votes[slot] for slot in range(num_votes)], whole, left_out, same)
            graded.append(known)
    return graded


def responses_jsonl(workload: Workload, graph: CallGraph, calls: Iterable[CallRecord]) -> Iterator[bytes]:
    """Write the responses, one line per call, in the order of the workload: independent of the schedule."""
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
