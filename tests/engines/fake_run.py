"""Runs experiments/run.py with engines that have no model, here or in a process that tests can kill.

python -m tests.engines.fake_run OVERRIDES
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import patch

from mosaic.commands.run import run_command
from mosaic.config import engines
from tests.commands.command_line import ROOT, Outcome
from tests.engines.executor_runs import FAKE_ENGINE, hear_ctrl_c, processes_of
from tests.engines.kept_launcher import run_kept
from tests.engines.tiny_checkpoint import write_tiny_checkpoint
from tests.run_tables import num_finished

CHECKPOINTS = {"SmolLM2": "HuggingFaceTB/SmolLM2-135M-Instruct", "QwenHalf": "Qwen/Qwen2.5-0.5B-Instruct"}
fake_hosts = patch.object(engines, "VLLM_ENGINE", FAKE_ENGINE)


def write_inputs(folder: Path, *, num_questions: int = 12, word: str = "") -> list[str]:
    """Write questions and checkpoints; gives the overrides that use them."""
    for seed, name in enumerate(CHECKPOINTS.values()):
        write_tiny_checkpoint(folder / "checkpoints" / name, seed=seed)
    lines = [
        {
            "id": f"q{i}",
            "question": f"Question {i} {word}?\nOptions:\n(A) 1\n(B) 2\n(C) 3\n(D) 4",
            "answer": "ABCD"[i % 4],
            "experts": ["SmolLM2", "QwenHalf", "SmolLM2"],
        }
        for i in range(num_questions)
    ]
    questions = folder / "questions.jsonl"
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [
        "workload=file",
        f"workload.path={questions}",
        "pool=demo",
        "cluster=local",
        "backend=vllm",
        "backend.device=cpu",
        f"backend.checkpoints={folder / 'checkpoints'}",
        "profile.sweep={shard_sizes: [2, 6], num_repeats: 1}",
    ]


def without_sweep(inputs: list[str]) -> list[str]:
    """Leave out what has no effect beside a profile."""
    return [value for value in inputs if not value.startswith("profile.sweep")]


def run_fake(*overrides: str) -> Outcome:
    with fake_hosts:
        return run_kept(*overrides)


def run_in(folder: Path, *overrides: str, run=run_fake, status: int = 0) -> Outcome:
    """Run in a folder, and check how it ends."""
    outcome = run(*overrides, f"hydra.run.dir={folder}")
    assert outcome.status == status, outcome.err
    return outcome


def start(folder: Path, inputs: list[str]) -> subprocess.Popen:
    """Start a run in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.engines.fake_run", *inputs, f"hydra.run.dir={folder}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=hear_ctrl_c,
    )


def kill_after(folder: Path, inputs: list[str], num_done: float, wait_s: float = 0.0) -> None:
    """Start a run and kill it ``wait_s`` seconds after ``num_done`` calls have finished, while it is at work."""
    process = start(folder, inputs)
    while num_finished(folder) < num_done and process.poll() is None:
        time.sleep(0.02)
    time.sleep(wait_s)
    assert process.poll() is None, "it is still at work"
    process.kill()
    process.communicate()
    wait_until_gone(folder)


def go_on(folder: Path, inputs: list[str]) -> None:
    """Run to the end what earlier kills have left."""
    process = start(folder, inputs)
    out, _ = process.communicate(timeout=180)
    assert process.returncode == 0, out


def wait_until_gone(folder: Path) -> None:
    """Workers end by themselves when nobody is there to hear them."""
    for _ in range(100):
        if not processes_of(folder):
            return
        time.sleep(0.05)
    raise AssertionError(f"processes outlived their run: {processes_of(folder)}")


if __name__ == "__main__":
    with fake_hosts:
        sys.argv[0] = "run.py"
        run_command()
