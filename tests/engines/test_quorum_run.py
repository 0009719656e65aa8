"""Early quorum on engines: on the tiny pool's real vLLM, and where a run with it is killed and goes on."""

import json
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from experiments.run import JOURNAL
from mosaic.core.action_lines import decode_action
from mosaic.core.commands import Cancel
from mosaic.runtime.journal_records import read_journal
from tests.engines.executor_runs import has_vllm
from tests.engines.fake_run import run_fake, write_inputs
from tests.engines.test_real_run import answers_of, num_finished, start, summary_of, wait_until_gone
from tests.experiments.command_line import ROOT, run_here

pytestmark = pytest.mark.slow
TINY = ROOT / "checkpoints" / "tiny"
QUORUM = "pipeline.quorum=true"
OVERLAP = ("pipeline.overlap=true", "pipeline.moves=true")


def calls_of(folder: Path) -> dict[tuple, dict]:
    rows = pq.read_table(folder / "calls.parquet").to_pylist()
    calls = {(row["question"], row["node"], row["slot"]): row for row in rows}
    assert len(calls) == len(rows), "none is answered twice"
    return calls


def responses_of(folder: Path) -> dict[tuple, str]:
    lines = [json.loads(line) for line in (folder / "responses.jsonl").read_text().splitlines()]
    return {(line["question"], line["node"], line["slot"]): line["text"] for line in lines}


def final(folder: Path) -> list[tuple]:
    return [(row["question"], row["answer"], row["source"], row["correct"]) for row in answers_of(folder)]


def cancelled_of(folder: Path) -> set[tuple]:
    return {key for key, row in calls_of(folder).items() if row["status"] == "cancelled"}


@pytest.mark.skipif(not has_vllm(), reason="vLLM is not installed")
@pytest.mark.skipif(not TINY.exists(), reason="the tiny pool is not there: python experiments/make_pool.py")
def test_on_real_vllm_third_calls_are_cancelled_and_all_else_is_as_without(tmp_path):
    common = ("workload=tiny_mcq", "pool=tiny", "cluster=local", "backend=vllm", "workload.num_questions=150")
    plain, early = tmp_path / "plain", tmp_path / "early"
    for folder, overrides in ((plain, ()), (early, (QUORUM,))):
        outcome = run_here(*common, *overrides, f"hydra.run.dir={folder}")
        assert outcome.status == 0, outcome.err
    assert final(early) == final(plain)
    cancelled, calls = cancelled_of(early), calls_of(early)
    assert calls.keys() == calls_of(plain).keys()
    assert len(cancelled) > 20
    assert all(node == "propose" for _, node, _ in cancelled)
    for key, text in responses_of(early).items():
        assert key in cancelled or text == responses_of(plain)[key]
    summary = summary_of(early)
    assert (summary["num_cancelled_calls"], summary["num_failed_calls"]) == (len(cancelled), 0)
    assert summary["output_tokens"] < summary_of(plain)["output_tokens"]
    actions = [decode_action(line) for line in (early / "actions.jsonl").read_bytes().splitlines()]
    told = {tuple(action.command.key) for action in actions if isinstance(action.command, Cancel)}
    assert cancelled <= {(question, node, slot) for question, node, slot in told}
    for question, _, slot in cancelled:
        others = [calls[question, "propose", other] for other in range(3) if other != slot]
        assert len({row["answer"] for row in others} - {None}) == 1, "two agreed"


@pytest.mark.parametrize("reactions", [[QUORUM], [QUORUM, *OVERLAP]], ids=["quorum", "all"])
def test_a_run_with_reactions_that_is_killed_ends_with_the_same_answers(tmp_path, reactions):
    inputs = [*write_inputs(tmp_path, num_questions=24, word="slow"), *reactions]
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "killed"
    assert (outcome := run_fake(*inputs, f"hydra.run.dir={undisturbed}")).status == 0, outcome.err
    assert cancelled_of(undisturbed)
    for done_frac in (0.3, 0.7):
        process = start(folder, inputs)
        while num_finished(folder) < done_frac * num_finished(undisturbed) and process.poll() is None:
            time.sleep(0.02)
        process.kill()
        process.communicate()
        wait_until_gone(folder)
    process = start(folder, inputs)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    assert final(folder) == final(undisturbed)
    assert calls_of(folder).keys() == calls_of(undisturbed).keys()
    assert summary_of(folder)["num_failed_calls"] == 0
    finished = [record.key for record in read_journal(folder / JOURNAL / "run").ended if record.status == "finished"]
    assert len(finished) == len(set(finished))
