"""`mosaic audit` of a batch's output; the engines have no model."""

import json
from pathlib import Path
from shutil import copytree, rmtree

import msgspec
import pytest
from msgspec.structs import replace

from mosaic.core.commands import Action
from mosaic.core.results import CallStatus
from mosaic.core.workload import PROPOSE
from mosaic.runtime.journal import FILE_NAME, EndedCall, Entry, read_entries, read_journal
from mosaic.runtime.log import frame
from tests.engines.fake_batch import batch_line, run_mosaic, write_batch
from tests.run_tables import bodies_of

NUM_QUESTIONS = 80


@pytest.fixture(scope="module")
def done(models: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audited")
    path = write_batch(folder, [batch_line(number) for number in range(NUM_QUESTIONS)])
    assert run_mosaic("batch", path, *models).status == 0
    return folder / "questions.out.jsonl"


@pytest.fixture(scope="module")
def unskipped(models: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the same batch answers when nothing is skipped: the truth that an audit bounds."""
    folder = tmp_path_factory.mktemp("unskipped")
    path = write_batch(folder, [batch_line(number) for number in range(NUM_QUESTIONS)])
    assert run_mosaic("batch", path, *models, "gate=never").status == 0
    return {name: about["answer"] for name, about in answers_of(folder / "questions.out.jsonl").items()}


def answers_of(path: Path) -> dict[str, dict]:
    return {name: body["mosaic"] for name, body in bodies_of(path.with_name("questions.jsonl")).items()}


def num_asked(out: Path) -> int:
    journals = (out.parent / "questions.mosaic" / "journal").glob("audit*")
    return sum(len(read_journal(path).ended) for path in journals)


@pytest.mark.slow
def test_an_audit_of_all_knows_the_truth_and_a_sample_bounds_it(done: Path, unskipped: dict[str, str]) -> None:
    kept = {name: about for name, about in answers_of(done).items() if about["skipped_aggregator"]}
    truth = sum(unskipped[name] != about["answer"] for name, about in kept.items())
    assert 0 < truth < len(kept)
    sampled = run_mosaic("audit", done, "--sample", "15", "--json")
    assert sampled.status == 0, sampled.err
    some = json.loads(sampled.out)
    assert (some["num_skipped"], some["num_audited"]) == (len(kept), 15)
    assert some["most_changes"] >= truth
    assert num_asked(done) == 15
    whole = json.loads(run_mosaic("audit", done, "--sample", str(len(kept)), "--json").out)
    assert (whole["num_audited"], whole["num_changed"], whole["most_changes"]) == (len(kept), truth, truth)
    assert num_asked(done) == len(kept), "what was asked before is not asked again"


def ended_as(entry: Entry | None, status: CallStatus) -> Entry | None:
    """End a third call of the first layer in another way; other entries are as they were."""
    if not isinstance(entry, EndedCall) or entry.record.key.node != PROPOSE or entry.record.key.slot != 2:
        return entry
    return EndedCall(replace(entry.record, status=status))


def copy_with(status: CallStatus, done: Path, folder: Path) -> Path:
    """Copy a batch, in whose journal every third call of the first layer has ended in another way."""
    copytree(done.parent, folder)
    for audited in (folder / "questions.mosaic" / "journal").glob("audit*"):
        rmtree(audited)
    path = folder / "questions.mosaic" / "journal" / "run" / FILE_NAME
    entries = [ended_as(entry, status) for entry in read_entries(path.parent) if not isinstance(entry, Action)]
    path.write_bytes(b"".join(frame(msgspec.json.encode(entry)) for entry in entries))
    return folder / done.name


@pytest.mark.slow
@pytest.mark.parametrize("status", [CallStatus.CANCELLED, CallStatus.CUT])
def test_calls_that_a_batch_stopped_are_sent_before_an_audit_aggregates(
    status: CallStatus, done: Path, unskipped: dict[str, str], tmp_path: Path
) -> None:
    kept = {name: about for name, about in answers_of(done).items() if about["skipped_aggregator"]}
    truth = sum(unskipped[name] != about["answer"] for name, about in kept.items())
    out = copy_with(status, done, tmp_path / "stopped")
    audited = run_mosaic("audit", out, "--sample", str(len(kept)), "--json")
    assert audited.status == 0, audited.err
    assert json.loads(audited.out)["num_changed"] == truth
    assert num_asked(out) == 2 * len(kept)


@pytest.mark.slow
def test_a_question_of_which_a_call_failed_is_audited_with_the_others(done: Path, tmp_path: Path) -> None:
    num_skipped = sum(about["skipped_aggregator"] for about in answers_of(done).values())
    out = copy_with(CallStatus.FAILED, done, tmp_path / "failed")
    audited = run_mosaic("audit", out, "--sample", str(num_skipped), "--json")
    assert audited.status == 0, audited.err
    assert 0 < json.loads(audited.out)["num_changed"] < num_skipped
    assert num_asked(out) == num_skipped


@pytest.mark.slow
def test_an_audit_goes_on_until_its_bound_is_good_enough(done: Path) -> None:
    said = run_mosaic("audit", done, "--sample", "5", "--until", "99%")
    assert said.status == 0, said.err
    assert "with 95% confidence at whichever moment you stop" in said.out
    never = run_mosaic("audit", done, "--until", "0.001%")
    assert never.status == 5
    assert "no audit will" in never.out


def test_the_text_says_what_was_found_and_what_more_takes(done: Path) -> None:
    said = run_mosaic("audit", done, "--sample", "8", "--most", "8")
    assert "questions skipped the aggregator" in said.out
    assert "audited   8 of them, drawn uniformly" in said.out


def test_free_text_says_that_it_needs_a_comparison(models: list[str], tmp_path: Path) -> None:
    path = write_batch(tmp_path, [batch_line(number, f"Say {number}") for number in range(12)])
    assert run_mosaic("batch", path, *models).status == 0
    said = run_mosaic("audit", tmp_path / "questions.out.jsonl")
    assert (said.status, said.err) == (0, "")
    assert "nothing to audit, no question skipped the aggregator (12 of 12 ask for free text" in said.out
    assert "aggregator.comparison=module.function" in said.out


def test_an_input_that_has_changed_is_refused(models: list[str], tmp_path: Path) -> None:
    path = write_batch(tmp_path, [batch_line(number) for number in range(12)])
    assert run_mosaic("batch", path, *models).status == 0
    write_batch(tmp_path, [batch_line(number) for number in range(13)])
    said = run_mosaic("audit", tmp_path / "questions.out.jsonl")
    assert said.status == 2
    assert "workload.path_sha256: the file is no longer what the batch read" in said.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["questions.jsonl"], "OUT must be a file that mosaic batch wrote, NAME.out.jsonl"),
        (["nothing.out.jsonl"], "nothing.out.jsonl: cannot be read (No such file or directory)"),
        (["bad.out.jsonl"], "bad.out.jsonl, line 1: must be a line of mosaic batch's output"),
        (["bad.out.jsonl", "--until", "many"], "--until must be a share such as 2% or 0.02, got 'many'"),
        (["bad.out.jsonl", "--until", "200%"], "--until must be a share between 0 and 1"),
        (["bad.out.jsonl", "--sample", "0"], "Input should be greater than or equal to 1"),
    ],
)
def test_bad_input_ends_with_a_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.out.jsonl").write_text('{"custom_id": "a"}\n')
    said = run_mosaic("audit", tmp_path / arguments[0], *arguments[1:])
    assert said.status == 2
    assert message in said.err
    assert said.err.count("\n") == 1
