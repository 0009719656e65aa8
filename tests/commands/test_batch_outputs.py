"""Outputs belong to their run: what is damaged is written again, and what is another's is refused."""

from pathlib import Path

import pytest

from mosaic.runtime.journal import RUN, read_journal
from tests.engines.fake_batch import batch_line, run_mosaic, write_batch


def num_ended(path: Path) -> int:
    return len(read_journal(path.with_suffix(".mosaic") / "journal" / RUN).ended)


@pytest.mark.parametrize(
    "damage", [None, lambda text: b"", lambda text: text[:-30], lambda text: b"of somebody else\n"]
)
def test_a_damaged_or_removed_output_is_refused_by_an_audit_and_written_again(
    done: Path, plan_all: list[str], damage
) -> None:
    out = done.with_name("questions.out.jsonl")
    before, num_before = out.read_bytes(), num_ended(done)
    out.unlink()
    if damage is not None:
        out.write_bytes(damage(before))
    audited = run_mosaic("audit", out)
    assert (audited.status, audited.err.count("\n")) == (2, 1)
    assert str(out) in audited.err
    outcome = run_mosaic("batch", done, *plan_all)
    assert outcome.status == 0, outcome.err
    assert "already complete" not in outcome.err
    assert (out.read_bytes(), num_ended(done)) == (before, num_before), "without a call"
    again = run_mosaic("batch", done, *plan_all)
    assert (again.status, again.out) == (0, "")
    assert "already complete" in again.err
    assert out.read_bytes() == before


def test_an_audit_refuses_the_output_of_another_run(done: Path, tmp_path: Path) -> None:
    text = done.with_name("questions.out.jsonl").read_text()
    other = tmp_path / "other.out.jsonl"
    other.write_text(text.replace('"answer": "A"', '"answer": "B"'))
    audited = run_mosaic("audit", other, "--work", done.with_suffix(".mosaic"))
    assert (audited.status, audited.err.count("\n")) == (2, 1)
    assert "is not what the run in" in audited.err
    other.write_text(text)
    assert "is not what the run in" not in run_mosaic("audit", other, "--work", done.with_suffix(".mosaic")).err


@pytest.mark.slow
def test_two_commands_do_not_share_an_output_name(done: Path, models: list[str], tmp_path: Path) -> None:
    path = write_batch(tmp_path, [batch_line(number) for number in range(2)])
    before = done.with_name("questions.out.jsonl").read_bytes()
    for out in (done.parent, tmp_path / "none"):
        outcome = run_mosaic("batch", path, *models, "--out", out, "--work", tmp_path / "work")
        if out == done.parent:
            assert (outcome.status, outcome.err.count("\n")) == (2, 1)
            assert "questions.out.jsonl: is there already, and not of the run in" in outcome.err
            assert not (tmp_path / "work").exists()
    assert outcome.status == 0, outcome.err
    assert done.with_name("questions.out.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "text", [b"", b"{}", b"\xff\xfe", *(pytest.param(text, marks=pytest.mark.slow) for text in (b"{", b"[]", b"null"))]
)
@pytest.mark.parametrize(
    "name", ["config.yaml", "begun.json", "summary.json", "asked.json", "plan.json", "calls.parquet"]
)
def test_a_damaged_file_of_the_folder_is_written_again_or_named(
    name: str, text: bytes, done: Path, plan_all: list[str], tmp_path: Path
) -> None:
    work = done.with_suffix(".mosaic")
    file, out = work / name, done.with_name("questions.out.jsonl")
    before = file.read_bytes() if file.exists() else None
    try:
        file.write_bytes(text)
        for command in (["batch", done, *plan_all], ["audit", out]):
            outcome = run_mosaic(*command)
            assert "Traceback" not in outcome.err
            assert "mistake" not in outcome.err
            if outcome.status:
                assert outcome.status == 2, outcome.err
                assert str(work) in outcome.err
    finally:
        if before is None:
            file.unlink(missing_ok=True)
        else:
            file.write_bytes(before)
