"""A batch's output files: they are its own, hold whole lines, and a full disk leaves nothing half written."""

import errno
import json
import os
from pathlib import Path

import pytest

from mosaic.core.errors import RunFolderError
from mosaic.core.workload import Question, Workload
from mosaic.report import run_folder
from mosaic.report.batch_output import (
    BEGUN,
    AnswerStream,
    BatchPaths,
    check_outputs,
    finish,
    paths_of,
    read_start,
    start_batch,
)
from tests.factories import make_call
from tests.runtime.jobs import ALONE


def test_the_first_start_claims_its_files_and_the_next_finds_them(tmp_path: Path) -> None:
    work, paths = tmp_path / "q.mosaic", paths_of(tmp_path / "q.jsonl")
    work.mkdir()
    assert start_batch(work, paths, 5).created == 5
    assert paths.partial.read_bytes() == b""
    paths.out.write_text("results")
    assert start_batch(work, paths, 9).created == 5
    moved = paths_of(tmp_path / "q.jsonl", tmp_path / "there")
    paths.out.parent.joinpath("there").mkdir()
    assert start_batch(work, moved, 9).outputs == ("../q.out.jsonl", "../there/q.out.jsonl")


@pytest.mark.parametrize("kind", ["out", "errors", "partial"])
def test_no_run_takes_the_files_of_another(kind: str, tmp_path: Path) -> None:
    work, paths = tmp_path / "q.mosaic", paths_of(tmp_path / "q.jsonl")
    work.mkdir()
    getattr(paths, kind).write_text("")
    for claim in (lambda: check_outputs(work, paths), lambda: start_batch(work, paths, 5)):
        with pytest.raises(RunFolderError, match=rf"q\.{kind}\.jsonl: is there already, and not of the run in"):
            claim()
    assert not (work / BEGUN).exists()


def test_a_start_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    paths = paths_of(tmp_path / "q.jsonl")
    (tmp_path / BEGUN).write_text('{"created": 3}')
    paths.partial.write_text("")
    assert start_batch(tmp_path, paths, 9).created == 3


def test_a_full_disk_leaves_no_start_and_no_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = paths_of(tmp_path / "q.jsonl", tmp_path / "there")
    (tmp_path / "there").mkdir()

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(run_folder.os, "fsync", full)
        with pytest.raises(RunFolderError, match=r"begun\.json: cannot be written \(No space left on device\)"):
            start_batch(tmp_path, paths, 5)
    assert read_start(tmp_path) is None
    assert not any((tmp_path / "there").iterdir())
    assert start_batch(tmp_path, paths, 6).created == 6


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"created": "now"}', '{"created": 1, "out": "x"}'])
def test_a_damaged_start_names_its_file(text: str, tmp_path: Path) -> None:
    (tmp_path / BEGUN).write_text(text)
    with pytest.raises(RunFolderError, match=rf"start of a batch {tmp_path / BEGUN}: "):
        read_start(tmp_path)


READ = {"body": {"mosaic": {"cut_responses": ["Ada"]}}}


def test_lines_stand_as_they_come_and_in_the_end_in_the_order_of_the_input(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    one, other, two = (
        {"custom_id": name, "response": value, "error": error}
        for name, value, error in (("a", None, 1), ("a", READ, 1), ("b", READ, None))
    )
    path.write_bytes(b"of an earlier start")
    calls = (make_call("b"), make_call("a"))
    questions = tuple(Question(id=call.key.question, prompt_tokens=100) for call in calls)
    stream = AnswerStream(Workload(name="two", questions=questions, calls=calls), ALONE, path, 5)
    files = BatchPaths(tmp_path / "o.jsonl", tmp_path / "e.jsonl", path)
    stream.add(one)
    with pytest.raises(RunFolderError, match="1 questions have not ended, 'b' among them"):
        finish(files, stream)
    stream.add(two)
    stream.add(other)
    assert [json.loads(line) for line in path.read_bytes().splitlines()] == [one, two, other]
    assert finish(files, stream) == (1, 1, 0, 2, 0, 0)
    stream.close()
    assert [json.loads(line) for line in files.out.read_bytes().splitlines()] == [two, other]
    assert [json.loads(line) for line in files.errors.read_bytes().splitlines()] == [other], "it is not aggregated"


def test_a_batch_s_files_stand_beside_it(tmp_path: Path) -> None:
    assert paths_of(tmp_path / "q.csv").out == tmp_path / "q.out.jsonl"
    assert paths_of(tmp_path / "q.csv", Path("there")).errors == Path("there/q.errors.jsonl")
