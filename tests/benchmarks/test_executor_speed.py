"""What the executor costs beside plain vLLM; run with ``pytest tests/benchmarks --benchmark-enable -s`` to see it.

The ratios are printed, not asserted: a shared machine's clock proves nothing.
"""

import json
import os
import pickle
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest

from mosaic.core.realization import Outcome, uniform
from mosaic.engines.local_launcher import VLLM_ENGINE
from mosaic.engines.requests import RunContent
from mosaic.engines.vllm_engines import VllmEngines
from tests.engines.executor_runs import OPTIONS, Runs, has_vllm, make_checkpoint, running_host
from tests.engines.tiny_checkpoint import tiny_expert
from tests.factories import make_call, make_cluster, make_plan, make_session

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not has_vllm(), reason="vLLM is not installed")]
ROOT = Path(__file__).resolve().parents[2]
NUM_PAIRS, NUM_CALLS = 5, 256
SETTINGS = replace(OPTIONS, max_num_seqs=64)


def outcome(call, inputs) -> Outcome:
    return Outcome(20 + int(200 * uniform(0, "benchmark", call.key)))


@contextmanager
def raw_vllm(folder: Path, expert, calls):
    served, content = VllmEngines(options=SETTINGS, with_tokenizer=False), RunContent(outcomes=outcome)
    jobs = [content.request(call, served.served(expert), {}, outcome(call, {})) for call in calls]
    path = folder / "jobs.pickle"
    path.write_bytes(pickle.dumps((served.spec(expert, make_cluster(1).workers), jobs)))
    core = min(os.sched_getaffinity(0))
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.raw_vllm", str(path), str(core)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    with process:
        try:
            yield process
        finally:
            process.kill()


def hear(process) -> dict[str, float]:
    for line in process.stdout:
        if line.startswith("RAW "):
            return json.loads(line.removeprefix("RAW "))
    raise AssertionError("vLLM ended")


def test_serving_beside_one_raw_batch(benchmark, tmp_path):
    """The same shard in pairs, one after the other: a session of the executor, and LLM.generate with all of it."""
    num_pairs, num_calls = (NUM_PAIRS, NUM_CALLS) if benchmark.enabled else (1, 8)
    calls = [make_call(f"q{i}", prompt_tokens=40 + i % 60) for i in range(num_calls)]
    expert = tiny_expert("A", make_checkpoint(tmp_path, "A"), max_output_tokens=256)
    plan = make_plan(make_session(0, calls), num_workers=1)
    ours, theirs = [], []
    with running_host(VLLM_ENGINE) as host, raw_vllm(tmp_path, expert, calls) as process:
        for number in range(num_pairs + 1):
            executor = Runs(
                tmp_path,
                host,
                experts=[expert],
                num_workers=1,
                outcomes=outcome,
                options=SETTINGS,
                journal=tmp_path / f"run-{number}",
            )
            (session,) = executor.execute(plan, calls).sessions
            process.stdin.write("go\n")
            process.stdin.flush()
            answer = hear(process)
            assert answer["output_tokens"] == session.output_tokens
            ours.append((session.load_s, session.end_ts - session.start_ts))
            theirs.append((answer["load_s"], answer["serve_s"]))
    benchmark.pedantic(lambda: None)
    assert session.num_calls == num_calls
    if benchmark.enabled:
        pairs = list(zip(ours[1:], theirs[1:], strict=True))  # the first of each is a warm-up
        ratios = [mine[1] / raw[1] for mine, raw in pairs]
        more_s = [mine[0] - raw[0] for mine, raw in pairs]
        print(
            f"\nserving {num_calls} calls: {median(mine[1] for mine, _ in pairs):.2f} s, raw vLLM "
            f"{median(raw[1] for _, raw in pairs):.2f} s, median ratio {median(ratios):.3f} of "
            f"{[f'{ratio:.3f}' for ratio in ratios]}; a load takes {median(more_s):+.2f} s more than vLLM's own "
            f"{median(raw[0] for _, raw in pairs):.2f} s"
        )
