"""Runs `mosaic batch` with engines that have no model, here or in a process that tests can kill.

python -m tests.engines.fake_batch batch FILE ...
"""

import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from unittest.mock import patch

from mosaic.commands.app import main
from tests.commands.command_line import Outcome
from tests.engines.fake_run import fake_hosts
from tests.engines.kept_launcher import kept_launchers
from tests.engines.tiny_checkpoint import write_tiny_checkpoint

NAMES = ("Ada", "Bob", "Cyd", "Dan")
CONTEXT = 4096


def write_models(folder: Path) -> list[str]:
    """Write four checkpoints; gives the options that name them, the last as the aggregator."""
    for seed, name in enumerate(NAMES):
        write_tiny_checkpoint(folder / "checkpoints" / name, seed=seed)
        config = folder / "checkpoints" / name / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": CONTEXT}))
        (folder / "checkpoints" / name / "SHA256SUMS").unlink(missing_ok=True)
    return [
        "--models", ",".join(NAMES[:3]), "--aggregator", NAMES[3], "--checkpoints", str(folder / "checkpoints"),
        "backend.device=cpu", "profile.sweep={shard_sizes: [2, 4], num_repeats: 1}", "profile.max_batch_frac=0.01",
    ]  # fmt: skip


def question(number: int, word: str = "") -> str:
    return f"Question {number} {word}?\nOptions:\n(A) 1\n(B) 2\n(C) 3\n(D) 4"


def batch_line(number: int, text: str | None = None, **body: object) -> dict[str, object]:
    body = {"model": "any", "messages": [{"role": "user", "content": text or question(number)}]} | body
    return {"custom_id": f"q{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def write_batch(folder: Path, lines: list[dict[str, object]], name: str = "questions.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run_mosaic(*arguments: object) -> Outcome:
    """Run the command in this process."""
    out, err, status = StringIO(), StringIO(), 0
    words = ["mosaic", *map(str, arguments)]
    with fake_hosts, kept_launchers, patch.object(sys, "argv", words), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            status = int(stop.code or 0)
    return Outcome(status, out.getvalue(), err.getvalue())


if __name__ == "__main__":
    with fake_hosts:
        main()
