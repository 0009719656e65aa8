"""The files of a batch: finished questions as they come, and in the end all of them in the order of the input.

While the batch runs, ``NAME.partial.jsonl`` gets a line for each finished question. A run that goes on keeps the lines
that are there; a question that is answered anew gets another line, and the last one counts. In the end
``NAME.out.jsonl`` and ``NAME.errors.jsonl`` are put in place whole, and the run's summary keeps their digests: what has
a response stands in the first, what has an error in the second, and a question that was not aggregated in both.
"""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from hashlib import file_digest
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mosaic.core.errors import RunFolderError


class BatchPaths(NamedTuple):
    """Where a batch's files are."""

    out: Path
    errors: Path
    partial: Path


class Finished(NamedTuple):
    """How many questions ended which way."""

    num_answered: int
    num_not_aggregated: int
    """One expert's text stands for what was to be merged: no answer, and an error."""
    num_errors: int
    """Of questions without a text."""
    num_cut_to_fit: int
    """Answered, and the aggregator has read the end alone of some responses."""

    @property
    def num_unanswered(self) -> int:
        """How many stand in the errors file."""
        return self.num_not_aggregated + self.num_errors


def paths_of(path: Path, folder: Path | None = None) -> BatchPaths:
    """Name the files of a batch: beside its input, or in a folder.

    Examples
    --------
    >>> [place.name for place in paths_of(Path("questions.jsonl"))]
    ['questions.out.jsonl', 'questions.errors.jsonl', 'questions.partial.jsonl']
    """
    place = path.parent if folder is None else folder
    return BatchPaths(*(place / f"{path.stem}.{kind}.jsonl" for kind in ("out", "errors", "partial")))


class PartialFile:
    """The lines of finished questions, in the order in which they came; one process writes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._spans: dict[str, tuple[int, int]] = {}
        """By question: where its last line begins, and how long it is."""
        try:
            self._file: BinaryIO = path.open("a+b")
        except OSError as error:
            raise _cannot(path, error) from error
        self._end = 0
        self._file.seek(0)
        for line in self._file:
            name = _question_of(line)
            if name is not None:
                self._spans[name] = (self._end, len(line))
            if not line.endswith(b"\n"):
                break
            self._end += len(line)
        self._file.truncate(self._end)

    def __len__(self) -> int:
        return len(self._spans)

    def add(self, question: str, line: bytes) -> None:
        """Put a question's line there, unless it is.

        Raises
        ------
        RunFolderError
            If it cannot be written.
        """
        if self.read(question) == line:
            return
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise _cannot(self._path, error) from error
        self._spans[question] = (self._end, len(line))
        self._end += len(line)

    def read(self, question: str) -> bytes | None:
        """Give a question's last line; None: it has none."""
        if question not in self._spans:
            return None
        start, length = self._spans[question]
        return os.pread(self._file.fileno(), length, start)

    def close(self) -> None:
        self._file.close()


def finish(paths: BatchPaths, partial: PartialFile, questions: Sequence[str]) -> Finished:
    """Put the final files in place, in the order of the questions; the partial one stays until all else is written.

    Raises
    ------
    RunFolderError
        If a question has no line, or a file cannot be written.
    """
    missing = [question for question in questions if partial.read(question) is None]
    if missing:
        raise RunFolderError(f"{paths.partial}: {len(missing)} questions have not ended, {missing[0]!r} among them")
    in_errors = write_whole(paths.errors, partial, questions, has_error)
    in_out = write_whole(paths.out, partial, questions, has_response)
    num_cut_to_fit = sum(is_cut(partial.read(question) or b"") for question in questions)
    num_errors = len(questions) - in_out
    num_not_aggregated = in_errors - num_errors
    return Finished(in_out - num_not_aggregated, num_not_aggregated, num_errors, num_cut_to_fit)


def digests(paths: BatchPaths) -> dict[str, str]:
    """Give the SHA-256 of a batch's final files that exist, by name."""
    return {path.name: digest_of(path) for path in (paths.out, paths.errors) if path.is_file()}


def digest_of(path: Path) -> str:
    """Give the SHA-256 of a file."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, partial: PartialFile, questions: Iterable[str], wanted: Callable[[bytes], bool]) -> int:
    """Write the lines that are wanted under a temporary name, flush them to the disk and rename; gives their number."""
    temporary, num_lines = path.with_name(f".{path.name}.part"), 0
    try:
        with temporary.open("wb") as file:
            for question in questions:
                line = partial.read(question) or b""
                if wanted(line):
                    file.write(line)
                    num_lines += 1
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise _cannot(path, error) from error
    return num_lines


def has_error(line: bytes) -> bool:
    """Tell whether a question has no text, or one that was not merged."""
    return json.loads(line)["error"] is not None


def has_response(line: bytes) -> bool:
    """Tell whether a question has a text."""
    return json.loads(line)["response"] is not None


def is_cut(line: bytes) -> bool:
    """Tell whether the aggregator has read the end alone of some responses."""
    return has_response(line) and bool(json.loads(line)["response"]["body"]["mosaic"]["cut_responses"])


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a batch's output.

    Raises
    ------
    RunFolderError
        If it cannot be read, or a line is none of a batch's output.
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


def _question_of(line: bytes) -> str | None:
    try:
        return str(json.loads(line)["custom_id"]) if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError):
        return None


def _cannot(path: Path, error: OSError) -> RunFolderError:
    return RunFolderError(f"{path}: cannot be written ({error.strerror or error})")
