"""A file in OpenAI's batch format for the tiny pool, and what comes back."""

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.tiny_pool.questions import Part, draw_questions
from tests.commands.command_line import ROOT, TINY
from tests.engines.fake_batch import batch_line, write_batch

needs_tiny_pool = pytest.mark.skipif(
    not TINY.exists(), reason="the tiny pool is not there: python experiments/make_pool.py"
)


def write_tiny_batch(folder: Path, num_questions: int) -> dict[str, str]:
    """Write questions.jsonl, and let `pool=tiny` find its checkpoints there; gives the questions' texts by id."""
    (folder / "checkpoints").symlink_to(ROOT / "checkpoints")
    drawn = draw_questions(num_questions, Part.TEST, seed=0)
    texts = {f"q{number}": question.text for number, question in enumerate(drawn)}
    write_batch(folder, [batch_line(number, text) for number, text in enumerate(texts.values())])
    return texts


def read_completions(out: Path) -> dict[str, Any]:
    """Read a batch's output with OpenAI's own types; gives completions by id."""
    chat = pytest.importorskip("openai.types.chat")
    completions = {}
    for line in map(json.loads, out.read_text().splitlines()):
        assert (line["error"], line["response"]["status_code"]) == (None, 200)
        completions[line["custom_id"]] = chat.ChatCompletion.model_validate(line["response"]["body"], strict=True)
    return completions
