"""A batch that goes on: with a checkpoint that changed, with more questions, and beside a second start of it."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from mosaic.core.errors import InUseError
from mosaic.core.events import Finished
from mosaic.report.batch_output import AnswerStream
from mosaic.runtime.run_lock import hold
from tests.engines.fake_batch import CONTEXT, NAMES, batch_line, run_mosaic, write_batch, write_models
from tests.engines.tiny_checkpoint import write_tiny_checkpoint
from tests.run_tables import bodies_of, times_finished


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    return write_models(tmp_path / "models")


def lines(number: int) -> list[dict[str, object]]:
    return [batch_line(i) for i in range(number)]


def change_checkpoint(models: list[str], name: str) -> None:
    """Put other weights there, which also answer otherwise."""
    folder = Path(models[models.index("--checkpoints") + 1]) / name
    write_tiny_checkpoint(folder, seed=77)
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": CONTEXT}))
    (folder / "SHA256SUMS").unlink(missing_ok=True)
    (folder / "voice").write_text("1")


def stop_after(monkeypatch: pytest.MonkeyPatch, name: str, num_calls: int) -> None:
    """Let Ctrl-C come when the run has told of so many calls of an expert."""
    tell, told = AnswerStream.on, iter(range(num_calls))

    def on(self: AnswerStream, event: Any, view: object) -> Any:
        if isinstance(event, Finished) and event.record.expert == name and next(told, None) is None:
            raise KeyboardInterrupt
        return tell(self, event, view)

    monkeypatch.setattr(AnswerStream, "on", on)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "num_calls", "source"),
    [
        (NAMES[1], 35, "profile.source=auto"),
        pytest.param(NAMES[3], 5, "profile.source=auto", marks=pytest.mark.slow),
        pytest.param(NAMES[1], 35, "profile.source=calibration", marks=pytest.mark.slow),
        pytest.param(NAMES[3], 5, "profile.source=calibration", marks=pytest.mark.slow),
    ],
)
def test_calls_of_a_checkpoint_that_changes_in_mid_batch_are_sent_again(
    name: str, num_calls: int, source: str, models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_batch(tmp_path, lines(48))
    with monkeypatch.context() as patch:
        stop_after(patch, name, num_calls)
        assert run_mosaic("batch", path, *models, source).status == 130
    before = times_finished(path)
    change_checkpoint(models, name)
    outcome = run_mosaic("batch", path, *models, source)
    assert outcome.status == 0, outcome.err
    said = [line for line in outcome.err.splitlines() if f"{name}: its checkpoint or its engine's options" in line]
    assert said, "the screen says how many"
    again = {key for key, count in times_finished(path).items() if count > 1}
    assert {key for key in again if key.node == "propose"} <= before.keys()
    assert len(again) >= num_calls, "those that had ended"
    fresh = write_batch(tmp_path / "models", lines(48))
    assert run_mosaic("batch", fresh, *models, source).status == 0
    assert bodies_of(path) == bodies_of(fresh), "as if it had always been there"


@pytest.mark.slow
def test_appended_questions_are_added_and_no_call_is_sent_twice(models: list[str], tmp_path: Path) -> None:
    path = write_batch(tmp_path, lines(40))
    path.write_text(path.read_text().rstrip())  # as an editor may leave it
    assert run_mosaic("batch", path, *models).status == 0
    before = bodies_of(path)
    write_batch(tmp_path, lines(64))
    outcome = run_mosaic("batch", path, *models)
    assert outcome.status == 0, outcome.err
    assert "64 questions answered, 0 errors" in outcome.out
    after = bodies_of(path)
    assert list(after) == [f"q{number}" for number in range(64)]
    assert {name: after[name] for name in before} == before
    assert set(times_finished(path).values()) == {1}
    assert "already complete" in run_mosaic("batch", path, *models).err


def test_another_file_is_another_configuration_unless_nothing_was_answered(models: list[str], tmp_path: Path) -> None:
    path = write_batch(tmp_path, lines(6))
    assert run_mosaic("batch", path, *models).status == 0
    write_batch(tmp_path, lines(7)[1:])
    outcome = run_mosaic("batch", path, *models)
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert "workload.path_sha256 is" in outcome.err


@pytest.mark.slow
def test_a_folder_without_an_answer_blocks_no_other_configuration(
    models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_batch(tmp_path, lines(6))
    with monkeypatch.context() as patch:
        patch.setattr("mosaic.commands.batch.execute", interrupted)
        assert run_mosaic("batch", path, *models).status == 130
    assert (tmp_path / "questions.mosaic" / "config.yaml").exists()
    outcome = run_mosaic("batch", path, *models, "gate=never")
    assert outcome.status == 0, outcome.err
    outcome = run_mosaic("batch", path, *models)
    assert outcome.status == 2, "now there are answers"
    assert "holds the complete run of another configuration" in outcome.err


def interrupted(*anything: object) -> None:
    raise KeyboardInterrupt


def test_a_second_start_ends_with_a_status_of_its_own_and_changes_nothing(models: list[str], tmp_path: Path) -> None:
    path = write_batch(tmp_path, lines(6))
    work = tmp_path / "questions.mosaic"
    with hold(work / "journal"):
        for command in (["batch", path, *models], ["quote", path, *models, "--kind", "a100_80gb"]):
            outcome = run_mosaic(*command)
            assert (outcome.status, outcome.out, outcome.err.count("\n")) == (6, "", 1)
            assert f"{work / 'journal'}: another command is at work there" in outcome.err
        assert [entry.name for entry in work.rglob("*")] == ["journal", "lock"]
    assert run_mosaic("batch", path, *models).status == 0


def test_the_lock_is_held_in_all_stages_and_while_the_files_are_written(
    models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, refused = write_batch(tmp_path, lines(30)), []

    def with_second_start(place: str) -> None:
        module, _, name = place.rpartition(".")
        real = getattr(import_module(module), name)

        def also(*given: Any, **named: Any) -> Any:
            with pytest.raises(InUseError), hold(tmp_path / "questions.mosaic" / "journal"):
                pass
            refused.append(name)
            return real(*given, **named)

        monkeypatch.setattr(place, also)

    for place in ("mosaic.runtime.stages.drive", "mosaic.runtime.stages.pilot_of", "mosaic.commands.batch.leave"):
        with_second_start(place)
    assert run_mosaic("batch", path, *models).status == 0
    assert list(dict.fromkeys(refused)) == ["drive", "pilot_of", "leave"]
