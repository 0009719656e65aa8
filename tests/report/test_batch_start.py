"""A batch's start: its output files are its own, and a disk that is full leaves nothing half written."""

import errno
import os
from pathlib import Path

import pytest

from mosaic.core.errors import RunFolderError
from mosaic.report import run_folder
from mosaic.report.batch_files import paths_of
from mosaic.report.batch_start import BEGUN, check_outputs, read_start, start_batch


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
