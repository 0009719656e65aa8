"""A controller that writes each question's line as soon as its last call has ended, and answers nothing."""

from collections.abc import Sequence
from pathlib import Path

from mosaic.core.commands import Command
from mosaic.core.events import Event, Finished, Started
from mosaic.core.results import CallRecord
from mosaic.core.workload import Call, CallKey, Workload
from mosaic.report.batch_files import PartialFile
from mosaic.report.batch_lines import LineWriter, encode_line


class AnswerStream:
    """Follows the questions of a batch."""

    reacts = False

    def __init__(self, workload: Workload, writer: LineWriter, path: Path) -> None:
        self._writer = writer
        self._path = path
        self._file: PartialFile | None = None
        self._questions = {question.id: question for question in workload.questions}
        self._first: dict[str, list[Call]] = {}
        for call in writer.graph.first_calls(workload):
            self._first.setdefault(call.key.question, []).append(call)
        self._done: dict[str, dict[CallKey, CallRecord]] = {}
        self.num_ended = 0

    @property
    def file(self) -> PartialFile:
        """The lines so far."""
        assert self._file is not None, "the run has begun"
        return self._file

    def close(self) -> None:
        """Close the file, if the run has begun."""
        if self._file is not None:
            self._file.close()

    @property
    def num_questions(self) -> int:
        """All of the batch."""
        return len(self._first)

    @property
    def questions(self) -> Sequence[str]:
        """Those that have calls, in the order of the input."""
        return [name for name in self._questions if name in self._first]

    def on(self, event: Event, view: object) -> tuple[Command, ...]:
        """Take note of a call that has ended; the file is opened by the run that holds the journal alone."""
        if isinstance(event, Started):
            self._file = PartialFile(self._path)
        elif isinstance(event, Finished):
            name = event.record.key.question
            done = self._done.setdefault(name, {})
            done[event.record.key] = event.record
            question, first = self._questions[name], self._first[name]
            if self._writer.graph.step(question, first, done).answer is not None:
                line = self._writer.line(question, first, done)
                self.file.add(name, encode_line(line))
                self.num_ended += 1
                del self._done[name]
        return ()
