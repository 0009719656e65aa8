"""A batch's results in OpenAI's batch output format: a line a question, whoever answered it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from mosaic.core.results import CallRecord, CallStatus
from mosaic.core.workload import Call, CallKey, Question
from mosaic.pipelines.aggregation import prompt_limit
from mosaic.pipelines.call_graph import CallGraph
from mosaic.pipelines.final_answers import AnswerSource
from mosaic.pipelines.node import cut_for
from mosaic.pipelines.prompts import visible_text
from mosaic.pipelines.steps import End, Progress

MODEL = "mosaic"
"""Who answered, as a client reads it: the pool."""
NO_ANSWER, NOT_AGGREGATED = "no_answer", "not_aggregated"
"""Codes of errors: no call left a text; or one expert's text stands for those that were to be merged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LineWriter:
    """Writes the line of a question whose calls have all ended."""

    graph: CallGraph
    created: int
    """Seconds since 1970 when the batch began: the same however often it is interrupted."""

    def line(self, question: Question, first: Sequence[Call], done: Mapping[CallKey, CallRecord]) -> dict[str, Any]:
        """Write the result of a question: the text that counts, an error, or both where it was not aggregated."""
        progress = self.graph.progress(question, first, done)
        end = self.graph.end(question, first, done, progress)
        records = [done[key] for key in sorted(done, key=self._place)]
        said = self._chosen(question, end, records)
        text = None if said is None else visible_text(said)
        number = blake2b(question.id.encode(), digest_size=12).hexdigest()
        line: dict[str, Any] = {"id": f"batch_req_{number}", "custom_id": question.id, "response": None, "error": None}
        if said is None or text is None:
            return line | {"error": {"code": NO_ANSWER, "message": _why(records)}}
        body = {
            "id": f"chatcmpl-{number}",
            "object": "chat.completion",
            "created": self.created,
            "model": MODEL,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text, "refusal": None},
                    "logprobs": None,
                    "finish_reason": "length" if _reason(said) in ("length", "cut") else "stop",
                }
            ],
            "usage": usage_of(records),
            "mosaic": self._about(end, said, records) | {"cut_responses": self._cut(question, progress, done)},
        }
        if end.answer.source is AnswerSource.NOT_AGGREGATED:
            line["error"] = {"code": NOT_AGGREGATED, "message": self._why_not_aggregated(records)}
        return line | {"response": {"status_code": 200, "request_id": f"req_{number}", "body": body}}

    def _cut(self, question: Question, progress: Progress, done: Mapping[CallKey, CallRecord]) -> list[str]:
        """Name the experts of whose responses an aggregator has read the end alone, as its context is too short."""
        has_places = self.graph.read_ahead is not None
        read = (
            cut_for(self.graph.node(call.key.node), question, call, done, has_places=has_places)
            for call in progress.merges
            if done[call.key].status is CallStatus.FINISHED
        )
        return list(dict.fromkeys(name for names in read for name in names))

    def _why_not_aggregated(self, records: Sequence[CallRecord]) -> str:
        """Say why the responses were not merged: the error of the call that was to do it, or that it was not sent."""
        node = self.graph.upper_nodes[-1]
        merges = [record for record in records if record.key.node not in self.graph.first_nodes]
        if any(record.status is CallStatus.FAILED for record in merges):
            return _why(merges)
        limits = [
            f"{expert.name} can read {prompt_limit(expert, min_output_tokens=node.min_output_tokens):,} tokens"
            for expert in node.experts
        ]
        return (
            f"the question and its responses do not fit: {', '.join(limits)}; take an aggregator with more context, or "
            "leave less room for its answer (aggregator.min_output_tokens)"
        )

    def _place(self, key: CallKey) -> tuple[int, int]:
        names = [node.name for node in self.graph.nodes]
        return names.index(key.node), key.slot

    def _chosen(self, question: Question, end: End, records: Sequence[CallRecord]) -> CallRecord | None:
        """Find the response whose text is the question's: of those that count, one that says the final answer."""
        upper = [node.name for node in self.graph.upper_nodes]
        is_merged = end.answer.source is AnswerSource.AGGREGATOR
        able = [
            record
            for record in records
            if record.status is CallStatus.FINISHED and (record.key.node in upper) == is_merged and visible_text(record)
        ]
        if is_merged and able:
            able = [record for record in able if record.key.node == able[-1].key.node]
        same = self.graph.compare[question.answer_kind]
        answer = end.answer.answer
        for record in able:
            if (
                answer is not None
                and record.answer is not None
                and (record.answer == answer or (same is not None and same(record.answer, answer)))
            ):
                return record
        return able[0] if able else None

    def _about(self, end: End, said: CallRecord, records: Sequence[CallRecord]) -> dict[str, Any]:
        first = [record for record in records if record.key.node in self.graph.first_nodes]
        return {
            "answer": end.answer.answer,
            "source": end.answer.source.value,
            "expert": said.expert,
            "skipped_aggregator": bool(self.graph.upper_nodes) and end.decision.skip,
            "confidence": end.answer.confidence,
            "votes": [{"expert": record.expert, "answer": record.answer} for record in first],
            "num_calls": len(records),
            "num_failed_calls": sum(record.status is CallStatus.FAILED for record in records),
        }


def usage_of(records: Iterable[CallRecord]) -> dict[str, int]:
    """Sum the tokens of all calls of a question."""
    records = tuple(records)
    read = sum(record.prompt_tokens for record in records)
    written = sum(record.output_tokens for record in records)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def encode_line(line: Mapping[str, Any]) -> bytes:
    """Write a line of a file."""
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"


def _reason(record: CallRecord) -> str | None:
    return None if record.response is None else record.response.finish_reason


def _why(records: Sequence[CallRecord]) -> str:
    errors = [record.response.error for record in records if record.response is not None and record.response.error]
    return errors[0] if errors else "no call of this question left a text"
