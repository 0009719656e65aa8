"""Starts that fail: everything that is missing is said at once, nothing was sent, and no folder is left behind."""

import shutil
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import pytest

from mosaic.config import engines
from mosaic.engines.local_launcher import NOT_NEEDED, UNINSTALL
from tests.commands.command_line import ROOT, run_here
from tests.engines.fake_batch import batch_line, run_mosaic, write_batch, write_models
from tests.engines.fake_run import run_fake, write_inputs

LITTLE_BYTES = 2**20


class Usage(NamedTuple):
    free: int


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    (tmp_path / "here").mkdir()
    return write_batch(tmp_path / "here", [batch_line(number) for number in range(4)])


def refused(questions: Path, *words: object, status: int = 2) -> str:
    """Run a command on the questions that cannot start; gives what it says."""
    outcome = run_mosaic("batch", questions, *words)
    assert outcome.status == status, outcome.err
    assert [path.name for path in questions.parent.iterdir()] == [questions.name], "no folder"
    return outcome.err


def test_without_models_a_batch_asks_for_them(questions: Path) -> None:
    said = refused(questions)
    assert said == "error: --models must be names of checkpoints, A,B,C, or left out beside pool=NAME, got None\n"


def test_all_that_is_missing_is_one_message(questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = write_models(tmp_path)
    (tmp_path / "checkpoints" / "Bob" / "config.json").unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(LITTLE_BYTES))
    words = ["--models", "Nobody,Ada,Bob", "--aggregator", "none", *models[4:]]
    with patch.object(engines, "VLLM_ENGINE", "tests.engines.no_such_engine"):
        said = refused_by_this_engine(questions, *words)
    head, *found = said.splitlines()
    assert head == "error: this run cannot start:"
    parts = (
        "checkpoint Nobody: no such folder",
        "Bob/config.json: no such file",
        "the engine cannot be imported",
        "MiB",
    )
    assert [part in line for part, line in zip(parts, found, strict=True)] == [True] * 4


@pytest.mark.slow
def test_a_job_that_could_be_built_is_checked_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool of conf/pool names checkpoints that nobody has read so far."""
    inputs = write_inputs(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(LITTLE_BYTES))
    outcome = run_fake(*inputs, "aggregator=none", f"hydra.run.dir={tmp_path / 'run'}")
    assert outcome.status == 2
    head, *found = outcome.err.splitlines()
    assert head == "error: this run cannot start:"
    parts = ("SmolLM2: checkpoint", "QwenHalf: checkpoint", "the disk must have 65 MiB free for 36 calls, got 1 MiB")
    assert [part in line for part, line in zip(parts, found, strict=True)] == [True] * 3
    assert not (tmp_path / "run").exists()


def test_a_context_that_the_kv_cache_cannot_hold_is_said_before(questions: Path, tmp_path: Path) -> None:
    said = refused(questions, *write_models(tmp_path), "backend.engine.kv_cache_memory_bytes=65536")
    assert said.count("one call of 4096 tokens needs") == 4, "each of the three, and who merges"


def test_keys_of_all_servers_are_looked_for_before(tmp_path: Path) -> None:
    inputs = [word for word in write_inputs(tmp_path) if not word.startswith(("backend", "profile"))]
    servers = ", ".join(
        f"{{base_url: 'http://localhost:1/v1', expert: {name}, model: m, api_key_env: KEY_OF_{name}}}"
        for name in ("SmolLM2", "QwenHalf")
    )
    words = ("backend=endpoint", f"backend.endpoints=[{servers}]", "cluster.num_workers=2", "aggregator=none")
    outcome = run_here(*inputs, *words, f"hydra.run.dir={tmp_path / 'run'}")
    assert outcome.status == 2
    for name in ("SmolLM2", "QwenHalf"):
        assert f"environment variable KEY_OF_{name} must hold its API key, it is not set" in outcome.err
    assert not (tmp_path / "run").exists()


def test_what_mends_a_torchvision_of_another_build_is_said_and_documented(questions: Path, tmp_path: Path) -> None:
    with patch.object(engines, "VLLM_ENGINE", "tests.engines.torchvision_engine"):
        said = refused_by_this_engine(questions, *write_models(tmp_path))
    assert "operator torchvision::nms does not exist" in said
    assert UNINSTALL in said
    assert UNINSTALL in (ROOT / "mosaic" / "README.md").read_text()
    assert " ".join(NOT_NEEDED) in (ROOT / "README.md").read_text()


def refused_by_this_engine(questions: Path, *words: object) -> str:
    """Refuse with the engine that a test has put in the place of vLLM."""
    with patch("tests.engines.fake_batch.fake_hosts", patch.object(engines, "VLLM_ENGINE", engines.VLLM_ENGINE)):
        return refused(questions, *words)
