"""Trees of agents on engines: on the tiny pool's real vLLM, and where workers are killed."""

import os
import random
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from tests.commands.command_line import TINY, simulated_profiles
from tests.engines.executor_runs import has_vllm, workers_of
from tests.engines.fake_run import run_fake, write_inputs
from tests.engines.interrupted_run import start
from tests.engines.kept_launcher import run_kept
from tests.run_tables import answers_of, calls_of, final, finished_of, responses_of, summary_of

pytestmark = pytest.mark.slow
ALL_STAY = ("exit=never",)
SEATS = {"tree": (9, 3, 1), "all_to_all": (9, 9, 1)}
NUM_QUESTIONS = 16
COMMON = ("workload=tiny_mcq", "pool=tiny", "cluster=local", f"workload.num_questions={NUM_QUESTIONS}")


def answered_once(folder: Path, topology: str, num_questions: int) -> None:
    """Every agent has spoken once of each question, and the last one has the last word."""
    calls = calls_of(folder)
    assert {row["status"] for row in calls.values()} == {"finished"}
    spoken = Counter(row["role"] for row in calls.values())
    wanted = {f"layer_{depth}": num_questions * number for depth, number in enumerate(SEATS[topology], start=1)}
    assert spoken == wanted
    answers = answers_of(folder)
    assert len({row["question"] for row in answers}) == len(answers) == num_questions
    assert {row["source"] for row in answers} == {"aggregator"}
    assert all(row["answer"] == calls[row["question"], "layer_3", 0]["answer"] for row in answers)


def upper_layers_read(folder: Path) -> None:
    """Who reads others gets the question twice, and between the two what they wrote."""
    alone = {row["question"]: row["prompt_tokens"] for row in calls_of(folder).values() if row["role"] == "layer_1"}
    upper = [row for row in calls_of(folder).values() if row["role"] != "layer_1"]
    assert all(row["prompt_tokens"] > 2 * alone[row["question"]] for row in upper)


@pytest.fixture(scope="module")
def profiles(tmp_path_factory) -> dict[str, list[str]]:
    """Prices from the simulator: a run on engines then has nothing to measure."""
    folders = {topology: tmp_path_factory.mktemp(topology) for topology in SEATS}
    return {
        topology: simulated_profiles(folder, *COMMON, f"topology={topology}", *ALL_STAY)
        for topology, folder in folders.items()
    }


@pytest.mark.skipif(not has_vllm(), reason="vLLM is not installed")
@pytest.mark.skipif(not TINY.exists(), reason="the tiny pool is not there: python experiments/make_pool.py")
@pytest.mark.parametrize("topology", list(SEATS))
def test_real_vllm_answers_every_question_once_with_a_barrier_and_without(tmp_path, profiles, topology):
    folders = {"barrier": tmp_path / "barrier", "free": tmp_path / "free"}
    for folder, option in zip(folders.values(), ("pipeline.barrier=true", "pipeline.barrier=false"), strict=True):
        inputs = [*COMMON, f"topology={topology}", *ALL_STAY, "backend=vllm", option]
        given = profiles[topology] if option.endswith("true") else profiles[topology][:1]
        outcome = run_kept(*inputs, *given, f"hydra.run.dir={folder}")
        assert outcome.status == 0, outcome.err
        answered_once(folder, topology, NUM_QUESTIONS)
    assert final(folders["free"]) == final(folders["barrier"]), "who waits for whom changes no answer"
    assert responses_of(folders["free"]) == responses_of(folders["barrier"])
    upper_layers_read(folders["free"])
    assert summary_of(folders["free"])["num_failed_calls"] == 0


def fake_inputs(folder: Path, topology: str, *options: str) -> list[str]:
    """Engines without a model, so that runs can be killed often."""
    inputs = write_inputs(folder, num_questions=12, word="slow")
    contexts = [f"pool.experts.{name}.context_tokens=2048" for name in ("SmolLM2", "QwenHalf")]
    return [*inputs, *contexts, f"topology={topology}", "topology.min_output_tokens=64", *ALL_STAY, *options]


def test_workers_that_are_killed_change_no_answer_of_a_tree(tmp_path):
    inputs = fake_inputs(tmp_path, "tree", "pipeline.barrier=false")
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "killed"
    assert (outcome := run_fake(*inputs, f"hydra.run.dir={undisturbed}")).status == 0, outcome.err
    patient = [*inputs, "backend.patience.max_retries=50", "backend.patience.max_restarts=50"]
    rng = random.Random(1)
    process, num_killed = start(folder, patient), 0
    while process.poll() is None:
        time.sleep(0.1 + 0.2 * rng.random())
        is_in_batch = (folder / "journal" / "run").exists() and len(finished_of(folder)) > 5
        if num_killed < 8 and is_in_batch and (workers := workers_of(folder)):
            with suppress(ProcessLookupError):
                os.kill(rng.choice(workers), signal.SIGKILL)
                num_killed += 1
    out, _ = process.communicate()
    assert process.returncode == 0, out
    assert num_killed >= 2
    answered_once(folder, "tree", 12)
    assert final(folder) == final(undisturbed)
