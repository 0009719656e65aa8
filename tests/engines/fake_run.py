"""Runs experiments/run.py with engines that have no model, here or in a process that tests can kill.

python -m tests.engines.fake_run OVERRIDES
"""

import json
import sys
from pathlib import Path
from unittest.mock import patch

from mosaic.commands.run import run_command
from mosaic.config import engines
from tests.commands.command_line import Outcome
from tests.engines.executor_runs import FAKE_ENGINE
from tests.engines.kept_launcher import run_kept
from tests.engines.tiny_checkpoint import write_tiny_checkpoint

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


if __name__ == "__main__":
    with fake_hosts:
        sys.argv[0] = "run.py"
        run_command()
