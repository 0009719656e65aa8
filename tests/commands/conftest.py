"""What tests of `mosaic batch` share: checkpoints without a model behind them, and a batch that is complete."""

from pathlib import Path

import pytest

from tests.engines.fake_batch import batch_line, run_mosaic, write_batch, write_models

NUM_QUESTIONS = 24


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that name four checkpoints; a test that changes one writes its own."""
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def plan_all(models: list[str]) -> list[str]:
    """Options of the complete batch: its plan is of all calls, so that another command can run it too."""
    return [*models, "profile.source=calibration"]


@pytest.fixture(scope="session")
def done(plan_all: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a batch that is complete; what a test damages, it lets the batch write again."""
    folder = tmp_path_factory.mktemp("done")
    path = write_batch(folder, [batch_line(number) for number in range(NUM_QUESTIONS)])
    outcome = run_mosaic("batch", path, *plan_all, "--price", "2")
    assert outcome.status == 0, outcome.err
    assert f"{NUM_QUESTIONS} questions answered, 0 errors" in outcome.out
    assert "cost" in outcome.out
    return path
