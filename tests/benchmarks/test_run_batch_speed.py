"""`mosaic batch` beside `vllm run-batch` called once a model in a row: the same calls on the same two cores.

Run with ``pytest -m slow -s tests/benchmarks/test_run_batch_speed.py``; the ratio is printed, not asserted, as a shared
machine's clock proves nothing.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from experiments.config.compose import compose_config
from experiments.config.job import job_from
from tests.engines.executor_runs import has_vllm
from tests.engines.fake_batch import batch_line, write_batch
from tests.experiments.command_line import ROOT, TINY

NUM_QUESTIONS = 600
CPU = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.alone,
    pytest.mark.skipif(not has_vllm(), reason="vLLM is not installed"),
    pytest.mark.skipif(not TINY.exists(), reason="the tiny pool is not there: python experiments/make_pool.py"),
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


def write_calls(folder: Path, lines: list[dict[str, object]], name: str) -> Path:
    return write_batch(folder, lines, f"{name}.jsonl")


def test_a_batch_beside_run_batch_once_a_model(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    wanted = ["workload=tiny_mcq", "pool=tiny", "cluster=local", f"workload.num_questions={NUM_QUESTIONS}"]
    config = compose_config(wanted)
    config["workload"]["profiles"] = str(TINY / "skill_profiles.json")
    questions = {question.id: question for question in job_from(config).job.workload.questions}
    path = write_batch(
        tmp_path, [batch_line(0, question.text) | {"custom_id": name} for name, question in questions.items()]
    )
    ours_s = run([sys.executable, "-m", "mosaic", "batch", path, "pool=tiny"], tmp_path)
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
                    "messages": [{"role": "user", "content": questions[call["question"]].text}],
                    "temperature": 0.7,
                    "max_tokens": call["output_tokens"],
                    "min_tokens": call["output_tokens"],
                    "ignore_eos": True,
                },
            }
            for call in mine
        ]
        asked = write_calls(tmp_path, lines, expert)
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
        f"\n{NUM_QUESTIONS} questions, {len(calls)} calls: mosaic batch {ours_s:.0f} s, vllm run-batch {len(experts)} "
        f"times in a row {theirs_s:.0f} s, ratio {theirs_s / ours_s:.2f}"
    )
