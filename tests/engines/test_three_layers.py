"""Three layers of calls, given as YAML alone: simulated and on engines without a model."""

from collections import Counter, defaultdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mosaic.config import engines
from mosaic.report.run_folder import read_summary
from tests.engines.executor_runs import FAKE_ENGINE
from tests.engines.kept_launcher import run_kept
from tests.engines.tiny_checkpoint import write_tiny_checkpoint
from tests.experiments.tiny_pool.small import write_scores

THREE_LAYERS = """
nodes:
  propose: {experts: [TinySage, TinyOwl, TinyDart, TinyFinch]}
  merge: {experts: [TinyJudge, TinyOwl], after: [propose], min_output_tokens: 48}
  final: {experts: [TinyJudge], after: [merge], when: unsettled, min_output_tokens: 48}
barrier: true
"""
POOL = ("TinySage", "TinyOwl", "TinyDart", "TinyFinch", "TinyJudge")
ENGINES = ("backend=vllm", "backend.device=cpu")
NUM_QUESTIONS = 16


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "pipeline").mkdir()
    (folder / "pipeline" / "three_layers.yaml").write_text(THREE_LAYERS)
    checkpoints = [
        f"pool.experts.{name}.checkpoint={write_tiny_checkpoint(folder / name, seed=number)}"
        for number, name in enumerate(POOL)
    ]
    return [
        "--config-dir", str(folder), "pipeline=three_layers", "aggregator=none",
        "workload=tiny_mcq", f"workload.profiles={write_scores(folder)}", f"workload.num_questions={NUM_QUESTIONS}",
        "pool=tiny", "pool.experts.TinyJudge.context_tokens=512", "cluster=local",
        "profile.sweep={shard_sizes: [4, 8], num_repeats: 1}", *checkpoints,
    ]  # fmt: skip


def calls_of(folder: Path, *overrides: str) -> list[dict]:
    outcome = run_kept(*overrides, f"hydra.run.dir={folder}")
    assert outcome.status == 0, outcome.err
    return pq.read_table(folder / "calls.parquet").to_pylist()


def said(calls: list[dict]) -> list[tuple]:
    return sorted(
        (call["question"], call["node"], call["slot"], call["output_tokens"], call["answer"]) for call in calls
    )


def check_layers(folder: Path) -> None:
    """Four propose, two merge, and where these two differ a third node has the last word; a pilot comes before."""
    calls = pq.read_table(folder / "calls.parquet").to_pylist()
    num_pilot_sessions = read_summary(folder).get("pilot", {}).get("num_sessions", 0)
    assert {call["status"] for call in calls} == {"finished"}
    answers = defaultdict(list)
    for call in calls:
        answers[call["question"], call["node"]].append(call["answer"])
    nodes = Counter(call["node"] for call in calls)
    assert (nodes["propose"], nodes["merge"]) == (4 * NUM_QUESTIONS, 2 * NUM_QUESTIONS)
    unsettled = {
        question for (question, node), merged in answers.items() if node == "merge" and len({*merged} - {None}) != 1
    }
    assert {question for question, node in answers if node == "final"} == unsettled
    assert 0 < len(unsettled) < NUM_QUESTIONS
    for before, behind in (("propose", "merge"), ("merge", "final")):
        batch = [call for call in calls if call["session"] >= num_pilot_sessions]
        last_ts = max(call["finished_ts"] for call in batch if call["node"] == before)
        assert last_ts <= min(call["queued_ts"] for call in batch if call["node"] == behind)


def test_the_simulator_runs_three_layers(inputs, tmp_path):
    calls_of(tmp_path / "run", *inputs, "seed=2", "question_seed=2")
    check_layers(tmp_path / "run")


@pytest.mark.slow
def test_engines_run_three_layers_and_say_the_same_without_a_barrier(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "VLLM_ENGINE", FAKE_ENGINE)
    calls = calls_of(tmp_path / "run", *inputs, *ENGINES)
    check_layers(tmp_path / "run")
    assert said(calls_of(tmp_path / "free", *inputs, *ENGINES, "pipeline.barrier=false")) == said(calls)
