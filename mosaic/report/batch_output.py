"""Writes the output of a batch: one line per question in OpenAI's batch output format, and the files of these lines.

A batch claims its output name before any work by creating the partial file, which two commands cannot both do. So no
batch overwrites results of another one. During the run, ``NAME.partial.jsonl`` gets a line for each finished question;
a resumed run writes them again, from its journal. At the end ``NAME.out.jsonl`` and ``NAME.errors.jsonl`` are written
as complete files, in the order of the input, and the run's summary keeps their digests. The first file has the
questions with a response, the second those with an error. A question that was not aggregated is in both.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b, file_digest
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec

from mosaic.core.commands import Command
from mosaic.core.errors import RunFolderError
from mosaic.core.events import Event, Finished, Stopped
from mosaic.core.json_file import read_json
from mosaic.core.results import CallRecord, CallStatus
from mosaic.core.workload import BadLine, Workload
from mosaic.pipelines.aggregation import prompt_limit
from mosaic.pipelines.call_graph import CallGraph
from mosaic.pipelines.final_answers import AnswerSource, End
from mosaic.pipelines.prompts import visible_text
from mosaic.pipelines.questions import Questions
from mosaic.pipelines.walk import QuestionState
from mosaic.report.run_folder import write_file

MODEL = "mosaic"
"""Name of the model in the output, which stands for the whole pool."""
NO_ANSWER, NOT_AGGREGATED, BAD_LINE, NOT_SENT = "no_answer", "not_aggregated", "bad_line", "not_sent"
"""Codes of errors. In this order: no call left a text; one expert's text replaces an aggregation; a line of the input
is no question; a cap was reached before."""
BEGUN = "begun.json"


class BatchPaths(NamedTuple):
    """Paths of a batch's files."""

    out: Path
    errors: Path
    partial: Path


def paths_of(path: Path, folder: Path | None = None) -> BatchPaths:
    """Return the files of a batch: next to its input, or in a folder.

    Examples
    --------
    >>> [place.name for place in paths_of(Path("questions.jsonl"))]
    ['questions.out.jsonl', 'questions.errors.jsonl', 'questions.partial.jsonl']
    """
    place = path.parent if folder is None else folder
    return BatchPaths(*(place / f"{plain_stem(path)}.{kind}.jsonl" for kind in ("out", "errors", "partial")))


def plain_stem(path: Path) -> str:
    """Return a file's name without its suffix, and without .gz.

    Examples
    --------
    >>> plain_stem(Path("questions.jsonl.gz"))
    'questions'
    """
    return Path(path.name.removesuffix(".gz")).stem


# The start: the output files that belong to the batch.


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchStart:
    """Data about its start in a batch's run folder."""

    created: int
    """Seconds since 1970 at the first start, for any number of interruptions."""
    outputs: tuple[str, ...] = ()
    """Its output files, relative to the folder."""


def check_outputs(folder: Path, paths: BatchPaths) -> None:
    """Check that a batch's output files are its own, or do not exist yet.

    Raises
    ------
    RunFolderError
        If one belongs to another run.
    """
    if not _is_own(read_start(folder), folder, paths):
        for path in paths:
            if path.exists():
                raise _of_another(path, folder)


def start_batch(folder: Path, paths: BatchPaths, now: int) -> BatchStart:
    """Claim a batch's output files and save its start, unless an earlier start did.

    Parameters
    ----------
    folder, paths
        The run folder, which is locked, and the files.
    now
        Seconds since 1970.

    Raises
    ------
    RunFolderError
        If a file belongs to another run, or cannot be written; then nothing is claimed.
    """
    check_outputs(folder, paths)
    before = read_start(folder)
    start, name = before or BatchStart(created=now), os.path.relpath(paths.out, folder)
    if name in start.outputs:
        return start
    start = replace(start, outputs=(*start.outputs, name))
    is_new = not _is_own(before, folder, paths)
    if is_new:
        try:
            paths.partial.open("xb").close()
        except FileExistsError:
            raise _of_another(paths.partial, folder) from None
        except OSError as error:
            raise _cannot(paths.partial, error) from error
    try:
        write_file(folder, BEGUN, msgspec.json.encode(start))
    except RunFolderError:
        if is_new:
            paths.partial.unlink(missing_ok=True)
        raise
    return start


def read_start(folder: Path) -> BatchStart | None:
    """Read the start of a batch from its run folder; None: it has not started.

    Raises
    ------
    RunFolderError
        If the file cannot be read.
    """
    path = folder / BEGUN
    if not path.exists():
        return None
    try:
        return read_json(path, BatchStart, "start of a batch", RunFolderError)
    except RunFolderError as error:
        raise RunFolderError(f"{error}; remove it and start again: answers are in the journal") from error


def _is_own(start: BatchStart | None, folder: Path, paths: BatchPaths) -> bool:
    """Return whether an earlier start has claimed these files; one without names had them next to its input."""
    return start is not None and (not start.outputs or os.path.relpath(paths.out, folder) in start.outputs)


def _of_another(path: Path, folder: Path) -> RunFolderError:
    return RunFolderError(
        f"{path}: is there already, and not of the run in {folder}; remove it, or --out names another folder"
    )


def _cannot(path: Path, error: OSError) -> RunFolderError:
    return RunFolderError(f"{path}: cannot be written ({error.strerror or error})")


# A question's line.


def line_of(state: QuestionState, created: int) -> dict[str, Any]:
    """Write the result of an ended question: its text, an error, or both.

    ``created`` is the number of seconds since 1970 at the first start of the batch.
    """
    question, done, end = state.question, state.done, state.end()
    names = [node.name for node in state.graph.nodes]
    records = [done[key] for key in sorted(done, key=lambda key: (names.index(key.node), key.slot))]
    chosen = _chosen(state, end, records)
    text = None if chosen is None else visible_text(chosen)
    number = blake2b(question.id.encode(), digest_size=12).hexdigest()
    line: dict[str, Any] = {"id": f"batch_req_{number}", "custom_id": question.id, "response": None, "error": None}
    if chosen is None or text is None:
        return line | {"error": {"code": NO_ANSWER, "message": _why(records)}}
    reason = None if chosen.response is None else chosen.response.finish_reason
    body = {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": created,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": "length" if reason in ("length", "cut") else "stop",
            }
        ],
        "usage": usage_of(records),
        "mosaic": _about(state.graph, end, chosen, records) | {"cut_responses": _cut(state)},
    }
    if end.answer.source is AnswerSource.NOT_AGGREGATED:
        line["error"] = {"code": NOT_AGGREGATED, "message": _why_not_aggregated(state.graph, records)}
    return line | {"response": {"status_code": 200, "request_id": f"req_{number}", "body": body}}


def line_of_bad(bad: BadLine) -> dict[str, Any]:
    """Write why a line of the input was not used."""
    error = {"code": BAD_LINE, "message": bad.reason, "line": bad.number}
    return {"id": f"batch_req_line_{bad.number}", "custom_id": bad.id, "response": None, "error": error}


def unsent_line(question: str, cause: str) -> dict[str, Any]:
    """Write the line of a question that is not over, as no other call is sent."""
    number = blake2b(question.encode(), digest_size=12).hexdigest()
    error = {"code": NOT_SENT, "message": cause}
    return {"id": f"batch_req_{number}", "custom_id": question, "response": None, "error": error}


def _cut(state: QuestionState) -> list[str]:
    """Name the experts whose responses the aggregator read only in part, since its context is too short."""
    done = state.done
    read = (
        state.graph.layout(state.question, call, done).cut_experts
        for call in state.merges
        if call.key in done and done[call.key].status is CallStatus.FINISHED
    )
    return list(dict.fromkeys(name for names in read for name in names))


def _why_not_aggregated(graph: CallGraph, records: Sequence[CallRecord]) -> str:
    """Explain why the responses were not aggregated: the error of the call, or why it was not sent."""
    node = graph.upper_nodes[-1]
    merges = [record for record in records if record.key.node not in graph.first_nodes]
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


def _chosen(state: QuestionState, end: End, records: Sequence[CallRecord]) -> CallRecord | None:
    """Find the response that provides the question's text: one that counts and has the final answer."""
    upper = [node.name for node in state.graph.upper_nodes]
    is_merged = end.answer.source is AnswerSource.AGGREGATOR
    able = [
        record
        for record in records
        if record.status is CallStatus.FINISHED and (record.key.node in upper) == is_merged and visible_text(record)
    ]
    if is_merged and able:
        able = [record for record in able if record.key.node == able[-1].key.node]
    same, answer = state.graph.compare[state.question.answer_kind], end.answer.answer
    for record in able:
        if answer is None or record.answer is None:
            continue
        if record.answer == answer or (same is not None and same(record.answer, answer)):
            return record
    return able[0] if able else None


def _about(graph: CallGraph, end: End, chosen: CallRecord, records: Sequence[CallRecord]) -> dict[str, Any]:
    first = [record for record in records if record.key.node in graph.first_nodes]
    return {
        "answer": end.answer.answer,
        "source": end.answer.source.value,
        "expert": chosen.expert,
        "skipped_aggregator": bool(graph.upper_nodes) and end.decision.skip,
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


def _why(records: Sequence[CallRecord]) -> str:
    errors = [record.response.error for record in records if record.response is not None and record.response.error]
    return errors[0] if errors else "no call of this question left a text"


# The lines so far.


class _Line(NamedTuple):
    """Position of a question's last line, and the files that it belongs to."""

    start: int
    num_bytes: int
    has_response: bool
    has_error: bool
    is_cut: bool
    """The aggregator read only the end of some responses."""


class AnswerStream:
    """A controller that writes each question's line as soon as its last call has ended, and sends no commands.

    A resumed run receives earlier ends again, and so writes the lines again.

    Parameters
    ----------
    workload, graph
        Of the batch.
    path
        The file of lines, in the order of their arrival; the run holds the lock of its folder.
    created
        Seconds since 1970 when the batch began.

    Raises
    ------
    RunFolderError
        If the file cannot be written.
    """

    reacts = False

    def __init__(self, workload: Workload, graph: CallGraph, path: Path, created: int) -> None:
        self._created = created
        self._path = path
        self._questions = Questions(workload, graph)
        self.questions = [question.id for question in self._questions]
        """Questions with calls, in the order of the input."""
        self.bad_lines = workload.bad_lines
        self.lines: dict[str, _Line] = {}
        """By ended question."""
        self.stopped: str | None = None
        """Why no other call is sent: questions that have not ended have no line; None: the run goes on to its end."""
        self._end = 0
        try:
            self._file: BinaryIO = path.open("w+b")
        except OSError as error:
            raise _cannot(path, error) from error

    def on(self, event: Event, view: object) -> tuple[Command, ...]:
        """Record an ended call.

        Raises
        ------
        RunFolderError
            If a line cannot be written.
        """
        if isinstance(event, Stopped):
            self.stopped = event.cause
        elif isinstance(event, Finished) and self.stopped is None:
            self._questions.record(event.record)
            state = self._questions.state_of(event.record.key.question)
            if state.is_over:
                self.add(line_of(state, self._created))
                self._questions.forget(state.question.id)
        return ()

    def add(self, line: Mapping[str, Any]) -> None:
        """Write a question's line; of several lines the last one counts."""
        text = json.dumps(line, ensure_ascii=False).encode() + b"\n"
        try:
            self._file.write(text)
            self._file.flush()
        except OSError as error:
            raise _cannot(self._path, error) from error
        response, has_error = line["response"], line["error"] is not None
        is_cut = response is not None and bool(response["body"]["mosaic"]["cut_responses"])
        self.lines[line["custom_id"]] = _Line(self._end, len(text), response is not None, has_error, is_cut)
        self._end += len(text)

    def read(self, question: str) -> bytes:
        """Return a question's line."""
        line = self.lines[question]
        return os.pread(self._file.fileno(), line.num_bytes, line.start)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


# The final files.


class Ended(NamedTuple):
    """Numbers of questions by their end."""

    num_answered: int
    num_not_aggregated: int
    """One expert's text replaces an aggregation: no answer, and an error."""
    num_errors: int
    """Questions without a text."""
    num_cut_to_fit: int
    """Answered questions whose aggregator read only the end of some responses."""
    num_bad_lines: int
    """Of the input, which were not used."""
    num_not_sent: int
    """Of the errors: questions with calls that a cap kept from being sent."""

    @property
    def num_unanswered(self) -> int:
        """Number of questions in the errors file."""
        return self.num_not_aggregated + self.num_errors + self.num_bad_lines


def finish(paths: BatchPaths, stream: AnswerStream) -> Ended:
    """Write the final files in the order of the questions; the partial file is removed after all others are written.

    Bad lines of the input stand at the end of the errors file.

    Raises
    ------
    RunFolderError
        If a question has no line though the run went to its end, or a file cannot be written.
    """
    missing = [question for question in stream.questions if question not in stream.lines]
    if stream.stopped is not None:
        for question in missing:
            stream.add(unsent_line(question, stream.stopped))
    elif missing:
        raise RunFolderError(f"{paths.partial}: {len(missing)} questions have not ended, {missing[0]!r} among them")
    lines = {question: stream.lines[question] for question in stream.questions}
    in_out = [question for question, line in lines.items() if line.has_response]
    in_errors = [question for question, line in lines.items() if line.has_error]
    bad = [json.dumps(line_of_bad(line), ensure_ascii=False).encode() + b"\n" for line in stream.bad_lines]
    write_file(paths.errors.parent, paths.errors.name, chain(map(stream.read, in_errors), bad))
    write_file(paths.out.parent, paths.out.name, map(stream.read, in_out))
    num_errors = len(lines) - len(in_out)
    num_not_aggregated = len(in_errors) - num_errors
    num_cut = sum(line.is_cut for line in lines.values())
    return Ended(len(in_out) - num_not_aggregated, num_not_aggregated, num_errors, num_cut, len(bad), len(missing))


def digests(paths: BatchPaths) -> dict[str, str]:
    """Return the SHA-256 of a batch's existing final files, by name."""
    return {path.name: digest_of(path) for path in (paths.out, paths.errors) if path.is_file()}


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a batch's output.

    Raises
    ------
    RunFolderError
        If it cannot be read, or a line is not part of a batch's output.
    """
    try:
        texts = path.read_bytes().splitlines()
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be read ({error.strerror})") from error
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
            line["custom_id"], line["response"]["body"]["mosaic"]
        except (ValueError, KeyError, TypeError):
            raise RunFolderError(f"{path}, line {number}: must be a line of mosaic batch's output") from None
        lines.append(line)
    return lines
