"""`mosaic quote FILE` and then `mosaic batch FILE`: each call of the batch is asked once."""

import json
import time
from pathlib import Path

import pytest

from tests.commands.test_batch_kills import start
from tests.engines.fake_batch import batch_line, question, run_mosaic, write_batch
from tests.run_tables import bodies_of, times_finished

NUM_QUESTIONS, NUM_KILLED = 300, 150
PILOT = ("--pilot", "120")
PATIENT = ("backend.engine.max_num_seqs=2",)


def write_questions(folder: Path, num_questions: int = NUM_QUESTIONS, word: str = "") -> Path:
    folder.mkdir()
    return write_batch(folder, [batch_line(number, question(number, word)) for number in range(num_questions)])


@pytest.fixture(scope="module")
def alone(models: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A batch without a quote."""
    path = write_questions(tmp_path_factory.mktemp("alone") / "batch")
    assert run_mosaic("batch", path, *models).status == 0
    return path


def chosen(path: Path) -> str:
    """Give the line that a batch's plan keeps of why it was taken."""
    work = path.with_suffix(".mosaic")
    notes = json.loads((work / "plan.json").read_text())["layers"][0]["notes"]
    [line] = [note for note in notes if note.startswith("plan: ")]
    assert line.startswith(f"plan: {json.loads((work / 'summary.json').read_text())['scheduler']}")
    assert all(name in line for name in ("ilp (affine)", "ilp (piecewise)", "round_robin", "data_parallel"))
    return line


@pytest.mark.slow
def test_a_batch_without_a_quote_takes_the_best_plan_too(alone: Path) -> None:
    assert ", predicted " in chosen(alone)


@pytest.mark.slow
def test_a_batch_goes_on_from_its_quote(models: list[str], alone: Path, tmp_path: Path) -> None:
    path = write_questions(tmp_path / "quoted")
    quoted = run_mosaic("quote", path, *models, *PILOT, "--gpus", "1,2", "--kind", "a100_80gb", "--json")
    assert quoted.status == 0, quoted.err
    before = times_finished(path)
    assert json.loads(quoted.out)["num_pilot_calls"] == sum(key.node == "propose" for key in before) >= 350
    assert {key.node for key in before} == {"propose", "aggregate"}, "merges too are of the batch"
    done = run_mosaic("batch", path, *models)
    assert done.status == 0, done.err
    num_merges = sum(key.node == "aggregate" for key in before)
    before_plan, _, after = done.err.partition(f"\ncalls: {900 + num_merges} calls on ")
    assert after, "the whole batch is counted, and the merges that were asked"
    assert "loading" not in before_plan, "what the quote did is not shown as if it happened now"
    assert f"calls: {len(before)} calls had ended" in after
    assert f"quote: {len(before):,} calls of the batch have been answered, and are not sent again" in done.err
    assert "pilot: " not in done.err, "the quote's sessions price the batch"
    assert "profiling" not in done.err
    assert "calibrating" not in done.err
    assert chosen(path) in done.err
    counts = times_finished(path)
    assert before.keys() < counts.keys()
    assert set(counts.values()) == {1}
    assert counts.keys() == times_finished(alone).keys()
    assert bodies_of(path) == bodies_of(alone)
    again = run_mosaic("quote", path, *models, *PILOT, "--gpus", "1,2", "--kind", "a100_80gb", "--json")
    assert again.out == quoted.out, "it is told from the journal"
    assert times_finished(path) == counts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("quoted_on", "run_on", "said"),
    [
        pytest.param("1", "3", [], id="a quote from a smaller machine"),
        pytest.param(
            "2",
            "1",
            ["the quote does not price the batch: profile of ", "pilot: "],
            id="sessions on workers that are not there price nothing, and their answers count",
        ),
    ],
)
def test_a_quote_may_come_from_another_machine(
    quoted_on: str, run_on: str, said: list[str], models: list[str], alone: Path, tmp_path: Path
) -> None:
    path = write_questions(tmp_path / "quoted")
    assert run_mosaic("quote", path, *models, *PILOT, "--workers", quoted_on, "--kind", "a100_80gb").status == 0
    before = times_finished(path)
    done = run_mosaic("batch", path, *models, "--workers", run_on)
    assert done.status == 0, done.err
    for message in (f"quote: {len(before):,} calls of the batch have been answered", *said):
        assert message in done.err
    assert set(times_finished(path).values()) == {1}
    assert bodies_of(path) == bodies_of(alone)


def test_a_quote_comes_before_its_batch(models: list[str], alone: Path) -> None:
    refused = run_mosaic("quote", alone, *models, *PILOT)
    assert refused.status == 2
    assert "its batch has begun, and a quote comes before; --work names another folder" in refused.err


@pytest.mark.slow
def test_a_quote_and_a_batch_that_are_killed_ask_each_call_once(models: list[str], tmp_path: Path) -> None:
    paths = [write_questions(tmp_path / name, NUM_KILLED, "slow") for name in ("undisturbed", "killed")]
    assert run_mosaic("batch", paths[0], *models).status == 0
    quote, batch = (*models, *PATIENT, "--pilot", "60", "--kind", "a100_80gb"), (*models, *PATIENT)
    kill_after("quote", [paths[1], *quote], paths[1], 10)
    kill_after("quote", [paths[1], *quote], paths[1], 90)
    kill_after("batch", [paths[1], *batch], paths[1], 95)  # the batch ends what the quote began
    kill_after("batch", [paths[1], *batch], paths[1], 350)
    done = run_mosaic("batch", paths[1], *batch)
    assert done.status == 0, done.err
    counts = times_finished(paths[1])
    assert set(counts.values()) == {1}
    assert counts.keys() == times_finished(paths[0]).keys()
    assert bodies_of(paths[1]) == bodies_of(paths[0])


def kill_after(command: str, words: list[object], path: Path, num_calls: int) -> None:
    """Start a command, and kill its process when so many calls of the batch have ended."""
    process = start(*words, command=command)
    journal = path.with_suffix(".mosaic") / "journal"
    while not journal.exists() or times_finished(path).total() < num_calls:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    process.kill()
    process.communicate()
