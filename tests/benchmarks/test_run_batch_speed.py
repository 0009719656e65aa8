"""`mosaic batch` beside `vllm run-batch` called once a model in a row: the same calls on the same two cores.

Only ``pytest -m slow -s --benchmark-enable tests/benchmarks/test_run_batch_speed.py`` runs it: it takes minutes, and
all that it tells is the ratio, which is printed, not asserted, as a shared machine's clock proves nothing.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from tests.commands.command_line import ROOT, TINY
from tests.commands.tiny_batch import needs_tiny_pool, write_tiny_batch
from tests.engines.executor_runs import has_vllm
from tests.engines.fake_batch import write_batch

NUM_QUESTIONS = 600
CPU = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not has_vllm(), reason="vLLM is not installed"),
    needs_tiny_pool,
]


def run(command: list[object], folder: Path) -> float:
    """Run a command to its end; gives its wall seconds."""
    start = time.monotonic()
    environment = {**os.environ, **CPU, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*map(str, command)], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return time.monotonic() - start


def test_a_batch_beside_run_batch_once_a_model(tmp_path: Path, benchmark: BenchmarkFixture) -> None:
    if benchmark.disabled:
        pytest.skip("--benchmark-enable runs it")
    texts = write_tiny_batch(tmp_path, NUM_QUESTIONS)
    benchmark.pedantic(lambda: None)
    ours_s = run([sys.executable, "-m", "mosaic", "batch", "questions.jsonl", "pool=tiny"], tmp_path)
    calls = pq.read_table(tmp_path / "questions.mosaic" / "calls.parquet").to_pylist()
    theirs_s, experts = 0.0, list(dict.fromkeys(call["expert"] for call in calls))
    for expert in experts:
        mine = [call for call in calls if call["expert"] == expert]
        lines = [
            {
                "custom_id": f"{call['question']}-{call['node']}-{call['slot']}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {
                    "model": expert,
                    "messages": [{"role": "user", "content": texts[call["question"]]}],
                    "temperature": 0.7,
                    "max_tokens": call["output_tokens"],
                    "min_tokens": call["output_tokens"],
                    "ignore_eos": True,
                },
            }
            for call in mine
        ]
        asked = write_batch(tmp_path, lines, f"{expert}.jsonl")
        theirs_s += run(
            [
                sys.executable, "-m", "vllm.entrypoints.openai.run_batch", "-i", asked, "-o", f"{expert}.out",
                "--model", TINY / expert, "--served-model-name", expert, "--dtype", "float32", "--enforce-eager",
                "--max-num-seqs", "64",
            ],
            tmp_path,
        )  # fmt: skip
        answered = [json.loads(line) for line in (tmp_path / f"{expert}.out").read_text().splitlines()]
        assert len(answered) == len(mine)
        failed = [line["error"] or line["response"] for line in answered if line["response"]["status_code"] != 200]
        assert not failed, failed[0]
    print(
        f"\n{len(texts)} questions, {len(calls)} calls: mosaic batch {ours_s:.0f} s, vllm run-batch {len(experts)} "
        f"times in a row {theirs_s:.0f} s, ratio {theirs_s / ours_s:.2f}"
    )
