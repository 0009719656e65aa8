"""Making a pool, in a few steps: the same bytes again, what is missing only, and no trace of an interrupted one."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep

import pytest

pytest.importorskip("transformers", reason="models are trained with transformers, which the vLLM extras bring")

from experiments.make_pool import make_pool, read_pool
from experiments.tiny_pool.checkpoint import MANIFEST, read_manifest
from experiments.tiny_pool.jobs import PoolSettings
from experiments.tiny_pool.responses import EXPERTS
from mosaic.engines.checkpoints import CheckpointError, check_checkpoint
from mosaic.workloads.routing import load_skill_profiles
from tests.engines.executor_runs import hear_ctrl_c
from tests.experiments.tiny_pool.small import ROOT

pytestmark = pytest.mark.slow

NAMES = [*(expert.name for expert in EXPERTS), "TinyJudge"]
SETTINGS = PoolSettings(max_steps=2, num_calibration=6, num_cases=6)
OTHERS = PoolSettings(max_steps=1, num_calibration=6, num_cases=6)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pool") / "made"
    make_pool(out, SETTINGS)
    return out


@pytest.fixture
def pool(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "pool"))


def weights(pool: Path) -> dict[str, bytes]:
    return {name: (pool / name / "model.safetensors").read_bytes() for name in NAMES}


def flip(file: Path, *, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def test_a_pool_is_five_experts_an_aggregator_and_their_skills(made: Path) -> None:
    assert sorted(entry.name for entry in made.iterdir()) == sorted([*NAMES, "manifest.json", "skill_profiles.json"])
    for name in NAMES:
        checkpoint = check_checkpoint(made / name)
        assert checkpoint.context_tokens == (1024 if name == "TinyJudge" else 512)
    assert len(set(weights(made).values())) == 6
    assert load_skill_profiles(made / "skill_profiles.json").skills == ("addition", "digit_sum", "maximum")


def test_what_is_missing_or_damaged_is_made_again_to_the_same_bytes_and_nothing_else(pool: Path, made: Path) -> None:
    flip(pool / "TinyDart" / "model.safetensors", at=-100)
    shutil.rmtree(pool / "TinyJudge")
    (pool / ".unfinished-TinyOwl-x").mkdir()  # as a kill leaves it
    with pytest.raises(CheckpointError, match="its bytes are not those of"):
        check_checkpoint(pool / "TinyDart")
    kept = {name: (pool / name).stat().st_ino for name in ("TinySage", "TinyOwl", "TinyFinch", "TinySwift")}
    assert read_pool(pool, SETTINGS) is None
    manifest = make_pool(pool, SETTINGS)
    assert weights(pool) == weights(made)
    assert manifest == json.loads((made / MANIFEST).read_text())
    assert {name: (pool / name).stat().st_ino for name in kept} == kept
    assert not list(pool.glob(".unfinished*"))


def test_a_complete_pool_is_not_made_again(pool: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file: file.stat().st_mtime_ns for file in pool.rglob("*")}
    assert make_pool(pool, SETTINGS) == json.loads((pool / MANIFEST).read_text())
    assert "already complete" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in pool.rglob("*")} == before


@pytest.mark.parametrize(
    "file", ["TinyOwl/tokenizer.json", "TinyJudge/SHA256SUMS", "TinyOwl/manifest.json", "skill_profiles.json"]
)
def test_a_pool_with_a_damaged_file_is_not_complete(pool: Path, file: str) -> None:
    assert read_pool(pool, SETTINGS) is not None
    flip(pool / file, at=9)
    assert read_pool(pool, SETTINGS) is None


def test_a_pool_of_other_settings_is_not_complete(made: Path) -> None:
    assert read_pool(made, OTHERS) is None
    assert read_pool(made / "elsewhere", SETTINGS) is None


def test_an_expert_knows_how_it_was_made(made: Path) -> None:
    manifest = read_manifest(made / "TinyOwl")
    assert manifest is not None
    assert (manifest["num_steps"], manifest["seed"], manifest["family"]) == (2, 0, "reasoning")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
        ({"num_cases": 2}, "num_cases must be at least 3, got 2"),
        ({"num_calibration": 2.5}, "num_calibration must be"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, object], said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=said):
        PoolSettings(**changes)  # type: ignore[arg-type]


def test_an_interrupt_says_how_to_go_on_and_leaves_no_process(tmp_path: Path) -> None:
    command = [sys.executable, "experiments/make_pool.py", "--out", str(tmp_path / "pool"), "--max-steps", "400"]
    making = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear_ctrl_c,
    )
    assert making.stdout is not None
    assert "step 50 of 400" in making.stdout.readline()
    making.send_signal(signal.SIGINT)
    _, said = making.communicate(timeout=240)  # ends when all that write to it have ended
    assert said.strip().endswith("The same command goes on with the models that are still missing")
    assert making.returncode == 130
    deadline = monotonic() + 30
    while [entry for entry in Path("/proc").glob("[0-9]*") if is_of(entry, making.pid)] and monotonic() < deadline:
        sleep(0.1)
    assert [entry for entry in Path("/proc").glob("[0-9]*") if is_of(entry, making.pid)] == []


def is_of(process: Path, session: int) -> bool:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[3]) == session
    except OSError:
        return False


def test_bad_options_are_said_before_any_work(tmp_path: Path) -> None:
    command = [sys.executable, "experiments/make_pool.py", "--out", str(tmp_path / "pool"), "--seed", "-1"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.strip().endswith("seed must be at least 0, got -1")
    assert not (tmp_path / "pool").exists()
