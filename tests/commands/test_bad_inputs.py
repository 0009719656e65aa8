"""Bad input ends with a status of failure and a message that names field, rule and value, and leaves no run behind.

What the configuration refuses is listed in tests/config/test_refusals.py; here is what a command makes of it.
TMP in overrides and messages stands for a folder that holds the files of the case.
"""

import json
import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest

from mosaic.commands.app import main
from mosaic.config import engines
from mosaic.config.errors import exit_with_message
from mosaic.config.run_start import begins_with
from mosaic.core.errors import InUseError
from mosaic.engines.local_launcher import NOT_NEEDED, UNINSTALL
from mosaic.report.run_folder import is_complete
from tests.commands.command_line import QUICK, ROOT, SMALL, Outcome, run_here, run_point, run_process
from tests.engines.fake_batch import batch_line, run_mosaic, write_batch, write_models
from tests.engines.fake_run import run_fake, write_inputs

OF_HYDRA = [
    ("scheduler=foo", "scheduler must be one of ... 'ilp' ... 'round_robin' ... got 'foo'"),
    ("hardware=h100_94gb", "hardware=h100_94gb is now called hardware=flexicache_h100"),
    ("scheduler.foo=1", "scheduler.foo must be a key ... 'max_replicas' ... +scheduler.foo=VALUE adds one"),
    ("seed=[", "override must be KEY=VALUE ... got 'seed=['"),
    ("seed=${nope}", "seed: Interpolation key 'nope' not found"),
    ("seed=???", "seed must be given, as in seed=VALUE"),
    ("~scheduler", "scheduler must be given, got None"),
    ("seed=-1", "seed must be at least 0, got -1"),
]
"""What Hydra refuses, in our words; and two of what the configuration refuses (tests/config/test_refusals.py)."""
IN_PLANNING = [
    (
        "; ".join(["scheduler.max_experts_per_worker=1", *QUICK]),
        "max_experts_per_worker K=1 is too small: 6 experts need 6 places and 4 workers offer 4",
    ),
    (
        "; ".join(["scheduler.max_replicas={Nobody: 1}", *SMALL, *QUICK]),
        "scheduler.max_replicas: expert must be one of ... 'GLM' ... got 'Nobody'",
    ),
    (
        "; ".join(["backend.max_num_batched_tokens=100", *SMALL, *QUICK]),
        "prompt_tokens + output_tokens - 1 must be at most 100 ... got ",
    ),
    (
        "pool.experts.LlamaR1.kv={policy: flexicache}; hardware.host_link_bytes_per_s=null",
        "hardware a100_80gb: host_link_bytes_per_s must be given for expert LlamaR1's kv=flexicache, got null",
    ),
    ("~world.output_tokens.GLM", "must have a length distribution for expert 'GLM' ... add world.output_tokens.GLM"),
    ("profile.path=TMP/profile.json", "profile 'mine' has no lengths for expert 'Gemma' ... it covers []"),
    ("profile.aggregator_path=TMP/profile.json", "profile 'mine' has no entry for expert 'LlamaR1' on 4 x a100_80gb"),
]
"""What shows when the batch is measured and planned."""
IN_A_PROCESS = (OF_HYDRA[0], IN_PLANNING[0])
"""Run once more as a user runs them: the rest goes through the same function in this process."""


def given(overrides: str, tmp_path: Path) -> list[str]:
    return overrides.replace("TMP", str(tmp_path)).split("; ")


def assert_refused(outcome: Outcome, says: str, tmp_path: Path) -> None:
    """Check status and message, and that nothing below the folder looks like a complete run."""
    assert outcome.status == 2
    assert "Traceback" not in outcome.out + outcome.err
    assert outcome.err.startswith("error: ")
    for fragment in says.split(" ... "):
        assert fragment.replace("TMP", str(tmp_path)) in outcome.err
    assert not list(tmp_path.rglob("summary.json"))
    assert not any(is_complete(folder) for folder in (tmp_path, *tmp_path.rglob("*")))


@pytest.mark.parametrize(("overrides", "says"), [*OF_HYDRA, *IN_PLANNING])
def test_bad_input_is_refused_with_a_message(overrides: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_text('{"source": "mine", "entries": []}')
    outcome = run_point(*given(overrides, tmp_path), f"hydra.run.dir={tmp_path / 'run'}")
    assert_refused(outcome, says, tmp_path)
    assert not (tmp_path / "run").exists()


def test_a_name_with_a_slip_gets_the_command_that_is_meant(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["comparr"])
    assert stop.value.code == 2
    assert "Did you mean 'compare'?" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("overrides", "says"), IN_A_PROCESS)
def test_a_command_with_bad_input_fails(overrides: str, says: str, tmp_path: Path) -> None:
    outcome = run_process(*given(overrides, tmp_path), cwd=tmp_path)
    assert_refused(outcome, says, tmp_path)
    assert outcome.out == ""


def test_a_plan_of_other_calls_is_refused(tmp_path: Path) -> None:
    """What else may be wrong with a plan is tested with plan_check."""
    assert run_point(*SMALL, *QUICK, "backend=none", f"hydra.run.dir={tmp_path / 'plan'}").status == 0
    saved = tmp_path / "plan" / "plan.json"
    (plan,) = json.loads(saved.read_text())["layers"]
    plan["sessions"][-1]["shard"].pop()
    short = tmp_path / "short.json"
    short.write_text(json.dumps({"layers": [plan]}))
    for path, override, says in (
        (short, "seed=0", "plan drops call mmlu_pro-"),
        (saved, "workload.template_tokens=7", "plan was made for another problem: fingerprint must be"),
        (saved, "workload=medmcqa", "is not a call of this problem; was the plan made for another?"),
    ):
        outcome = run_point(*SMALL, *QUICK, override, f"plan.path={path}", f"hydra.run.dir={tmp_path / 'run'}")
        assert outcome.status == 2
        assert says in outcome.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("below", [False, True])
def test_a_file_in_the_place_of_the_folder_is_refused(below: bool, tmp_path: Path) -> None:
    path = tmp_path / "in_the_way"
    path.write_text("mine")
    folder = path / "run" if below else path
    outcome = run_here(f"hydra.run.dir={folder}")
    assert_refused(outcome, "folder must be one that can be made ... in_the_way ... a file is in the way", tmp_path)
    assert path.read_text() == "mine"


def test_a_folder_of_too_long_a_name_is_refused(tmp_path: Path) -> None:
    outcome = run_point(f"hydra.run.dir={tmp_path / ('x' * 300)}")
    assert_refused(outcome, "folder must have a shorter name ... xxx ... hydra.sweep.subdir", tmp_path)


def test_a_complete_run_is_not_overwritten_by_another_configuration(tmp_path: Path) -> None:
    where = f"hydra.run.dir={tmp_path / 'run'}"
    assert run_point(*SMALL, *QUICK, "backend=none", where).status == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    outcome = run_point(*SMALL, *QUICK, "backend=none", "seed=7", where)
    assert outcome.status == 2
    assert "holds the complete run of another configuration" in outcome.err
    assert "seed is 0 there and 7 here" in outcome.err
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


@pytest.mark.slow
def test_a_bad_point_does_not_stop_a_sweep_and_fails_it(tmp_path: Path) -> None:
    outcome = run_here(
        "-m", *SMALL, *QUICK, "backend=none", "aggregator=dp", "cluster.num_workers=0,2",
        f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=${hydra:job.num}",
    )  # fmt: skip
    assert outcome.status == 2
    assert "error: 0: cluster a100x4: num_workers must be at least 1, got 0" in outcome.err
    assert "Traceback" not in outcome.err
    assert [is_complete(tmp_path / number) for number in "01"] == [False, True]


def test_a_traceback_is_shown_to_those_who_ask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOSAIC_TRACEBACK", "1")
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        run_point("seed=-1", f"hydra.run.dir={tmp_path / 'run'}")
    with pytest.raises(KeyError, match="our own mistake"), exit_with_message():
        raise KeyError("our own mistake")


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (b"a\nb\n", b"a\nb\nc\n", True),
        (b"a\nb", b"a\nb\nc", True),
        (b"a\r\nb\r\n", b"a\r\nb\r\nc", True),
        (b"a\nb", b"a\nbc\n", False),
        (b"a\nb\n", b"a\nB\nc\n", False),
        (b"a\nb\n", b"b\na\nb\n", False),
        (b"a\nb\n", b"a\n", False),
    ],
)
def test_lines_were_appended_where_the_first_ones_are_the_same(
    before: bytes, now: bytes, expected: bool, tmp_path: Path
) -> None:
    (tmp_path / "q").write_bytes(now)
    assert begins_with(tmp_path / "q", sha256(before).hexdigest()) is expected


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ValueError("seed must be 0"), 2, "error: seed must be 0\n"),
        (InUseError("there"), 6, "error: there\n"),
        (KeyError("x"), 1, "error: a mistake of mosaic's own (KeyError: 'x' at test_bad_inputs.py:"),
        (RecursionError("too\ndeep"), 1, "error: a mistake of mosaic's own (RecursionError: too deep at"),
        (BrokenPipeError(32, "Broken pipe"), 2, "error: [Errno 32] Broken pipe\n"),  # of a process, not of the reader
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (
            KeyboardInterrupt("40 of 180 calls are kept"),
            130,
            "interrupted: 40 of 180 calls are kept\n",
        ),
    ],
)
def test_no_traceback_reaches_a_user(
    error: BaseException, status: int, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MOSAIC_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as stop, exit_with_message():
        raise error
    err = capsys.readouterr().err
    assert (stop.value.code, err.count("\n")) == (status, 1)
    assert err.startswith(said)


def test_a_command_whose_reader_has_gone_ends_without_a_word() -> None:
    code = "from mosaic.config.errors import exit_with_message\nwith exit_with_message(): print('row', flush=True)"
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, b"")


LITTLE_BYTES = 2**20


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
    rule = "names of checkpoints, A,B,C, or left out beside --server URL or pool=NAME"
    assert said == f"error: --models must be {rule}, got None\n"


def test_all_that_is_missing_is_one_message(questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = write_models(tmp_path)
    (tmp_path / "checkpoints" / "Bob" / "config.json").unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=LITTLE_BYTES))
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
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=LITTLE_BYTES))
    outcome = run_fake(*inputs, "aggregator=none", f"hydra.run.dir={tmp_path / 'run'}")
    assert outcome.status == 2
    guess, head, *found = outcome.err.splitlines()
    assert guess == "answers: choices (guessed; --answers number|text says otherwise)"
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
    assert UNINSTALL in (ROOT / "docs" / "how-to" / "vllm.md").read_text()
    assert " ".join(NOT_NEEDED) in (ROOT / "README.md").read_text()


def refused_by_this_engine(questions: Path, *words: object) -> str:
    """Refuse with the engine that a test has put in the place of vLLM."""
    with patch("tests.engines.fake_batch.fake_hosts", patch.object(engines, "VLLM_ENGINE", engines.VLLM_ENGINE)):
        return refused(questions, *words)
