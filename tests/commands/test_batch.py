"""`mosaic batch` from a file to OpenAI's batch output; the engines have no model."""

import json
import urllib.request
from collections import Counter
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import pyarrow.parquet as pq
import pytest

from mosaic.runtime.journal import read_journal
from tests.commands.tiny_batch import read_completions
from tests.engines.fake_batch import NAMES, batch_line, question, run_mosaic, write_batch
from tests.engines.fake_run import run_fake


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def body_of(line: dict) -> dict:
    return line["response"]["body"]


def test_every_question_has_a_line_in_the_order_of_the_input(done: Path) -> None:
    lines = lines_of(done.parent / "questions.out.jsonl")
    assert [line["custom_id"] for line in lines] == [f"q{number}" for number in range(24)]
    assert (done.parent / "questions.errors.jsonl").read_bytes() == b""
    assert not (done.parent / "questions.partial.jsonl").exists()


def test_openai_s_own_types_read_the_output(done: Path) -> None:
    out = done.parent / "questions.out.jsonl"
    for line, read in zip(lines_of(out), read_completions(out).values(), strict=True):
        assert read.choices[0].message.content == body_of(line)["choices"][0]["message"]["content"] != ""
        assert read.usage.total_tokens == read.usage.prompt_tokens + read.usage.completion_tokens


def test_usage_is_that_of_all_calls_and_votes_are_the_experts(done: Path) -> None:
    calls = pq.read_table(done.parent / "questions.mosaic" / "calls.parquet").to_pylist()
    written, asked = Counter(), Counter()
    for call in calls:
        written[call["question"]] += call["output_tokens"]
        asked[call["question"]] += 1
    lines = lines_of(done.parent / "questions.out.jsonl")
    for line in lines:
        body = body_of(line)
        assert body["usage"]["completion_tokens"] == written[line["custom_id"]]
        assert body["mosaic"]["num_calls"] == asked[line["custom_id"]]
        assert [vote["expert"] for vote in body["mosaic"]["votes"]] == list(NAMES[:3])
    sources = {(body_of(line)["mosaic"]["source"], body_of(line)["mosaic"]["num_calls"]) for line in lines}
    assert sources == {("majority", 3), ("aggregator", 4)}


def test_the_text_says_the_final_answer(done: Path) -> None:
    answers = {
        row["question"]: row for row in pq.read_table(done.parent / "questions.mosaic" / "answers.parquet").to_pylist()
    }
    for line in lines_of(done.parent / "questions.out.jsonl"):
        body, answer = body_of(line), answers[line["custom_id"]]
        assert body["mosaic"]["answer"] == answer["answer"]
        assert body["mosaic"]["source"] == answer["source"]
        assert body["choices"][0]["message"]["content"] == f"The answer is {answer['answer']}.", "without its thinking"


@pytest.mark.slow
def test_run_py_answers_the_same_with_the_same_plan(done: Path, models: list[str], tmp_path: Path) -> None:
    checkpoints = Path(models[models.index("--checkpoints") + 1])
    entries = ", ".join(
        f"{name}: {{_target_: mosaic.engines.named_models.expert_of_checkpoint, name: {name}, "
        f"checkpoint: {checkpoints / name}}}"
        for name in NAMES
    )
    pool = tmp_path / "conf" / "pool"
    pool.mkdir(parents=True)
    (pool / "named.yaml").write_text(f"name: named\naggregator: Dan\nexperts: {{{entries}}}\n")
    outcome = run_fake(
        f"hydra.searchpath=[file://{tmp_path / 'conf'}]", "workload=file", f"workload.path={done}",
        "workload.experts=[Ada,Bob,Cyd]", "pool=named", "cluster=local", "costs=affine", "backend=vllm",
        "backend.device=cpu", f"plan.path={done.with_suffix('.mosaic') / 'plan.json'}",
        f"hydra.run.dir={tmp_path / 'run'}",
        "profile.sweep={shard_sizes: [2, 4], num_repeats: 1}", "profile.max_batch_frac=0.01",
        "profile.source=calibration",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    there, here = (
        pq.read_table(folder / "answers.parquet") for folder in (done.parent / "questions.mosaic", tmp_path / "run")
    )
    assert there.equals(here)


@pytest.mark.slow
def test_a_batch_is_measured_on_its_own_calls_and_goes_on_from_them(models: list[str], tmp_path: Path) -> None:
    path = write_batch(tmp_path, [batch_line(number) for number in range(60)])
    assert run_mosaic("batch", path, *models).status == 0
    journals = sorted((tmp_path / "questions.mosaic" / "journal").glob("*/"))
    assert "pilot" in json.loads((tmp_path / "questions.mosaic" / "summary.json").read_text())
    out = tmp_path / "questions.out.jsonl"
    before, num_calls = out.read_bytes(), [len(read_journal(journal).ended) for journal in journals]
    out.unlink()
    assert run_mosaic("batch", path, *models).status == 0
    assert out.read_bytes() == before
    assert [len(read_journal(journal).ended) for journal in journals] == num_calls


@pytest.mark.slow
def test_a_question_without_a_text_goes_to_the_errors_and_is_tried_again(models: list[str], tmp_path: Path) -> None:
    lines = [batch_line(number) for number in range(12)]
    lines[10] = batch_line(10, text="refuse\nOptions:\n(A) 1\n(B) 2")  # behind those that are measured
    path = write_batch(tmp_path, lines)
    outcome = run_mosaic("batch", path, *models)
    assert outcome.status == 4, outcome.err
    (error,) = lines_of(tmp_path / "questions.errors.jsonl")
    assert (error["custom_id"], error["response"], error["error"]["code"]) == ("q10", None, "no_answer")
    assert "the engine likes" in error["error"]["message"]
    answered = [line["custom_id"] for line in lines_of(tmp_path / "questions.out.jsonl")]
    assert answered == [f"q{number}" for number in range(12) if number != 10]
    num_tries = len(read_journal(tmp_path / "questions.mosaic" / "journal" / "run").ended)
    assert run_mosaic("batch", path, *models).status == 4
    again = len(read_journal(tmp_path / "questions.mosaic" / "journal" / "run").ended)
    assert num_tries < again <= num_tries + 4, "the failed calls and no other"


def test_request_parameters_reach_the_engine(models: list[str], tmp_path: Path) -> None:
    path = write_batch(tmp_path, [batch_line(number, max_tokens=3) for number in range(6)])
    assert run_mosaic("batch", path, *models).status == 0
    calls = pq.read_table(tmp_path / "questions.mosaic" / "calls.parquet").to_pylist()
    assert max(call["output_tokens"] for call in calls) == 3
    lines = lines_of(tmp_path / "questions.out.jsonl")
    assert {body_of(line)["choices"][0]["finish_reason"] for line in lines} <= {"stop", "length"}


def test_models_may_come_from_a_litellm_file(models: list[str], tmp_path: Path) -> None:
    checkpoints = models[models.index("--checkpoints") + 1]
    listed = [{"model_name": name.lower(), "litellm_params": {"model": f"hosted_vllm/{name}"}} for name in NAMES[:3]]
    models_file = tmp_path / "litellm.yaml"
    models_file.write_text(json.dumps({"model_list": listed}))
    path = write_batch(tmp_path, [batch_line(number) for number in range(4)])
    outcome = run_mosaic(
        "batch", path, "--models", models_file, "--aggregator", "none", "--checkpoints", checkpoints, *models[6:]
    )
    assert outcome.status == 0, outcome.err
    votes = [body_of(line)["mosaic"]["votes"] for line in lines_of(tmp_path / "questions.out.jsonl")]
    assert {vote["expert"] for vote in votes[0]} == {"ada", "bob", "cyd"}


@pytest.mark.slow
def test_metrics_have_vllm_s_names(models: list[str], tmp_path: Path) -> None:
    path = write_batch(tmp_path, [batch_line(number, question(number, "slow")) for number in range(30)])
    seen: list[str] = []

    class Listening(StringIO):
        """Asks for the metrics when the batch's first sessions load."""

        def write(self, text: str) -> int:
            for line in text.splitlines():
                if line.startswith("metrics: "):
                    self.url = line.removeprefix("metrics: ")
                    assert self.url.startswith("http://127.0.0.2:")
                if line.startswith("worker") and "calls ended" in line:
                    seen.append(urllib.request.urlopen(self.url, timeout=5).read().decode())
            return len(text)

    with (
        patch("sys.stderr", Listening()),
        patch("tests.engines.fake_batch.redirect_stderr", lambda stream: patch("os.sep", "/")),
    ):
        host = ("--metrics-host", "127.0.0.2")
        assert run_mosaic("batch", path, *models, "--metrics-port", "0", *host).status == 0
    assert "# TYPE vllm:num_requests_running gauge" in seen[-1]
    assert 'mosaic:phase{phase="calls"} 1' in seen[-1]
    last = dict(line.rsplit(" ", 1) for line in seen[-1].splitlines() if not line.startswith("#"))
    assert sum(int(count) for name, count in last.items() if name.startswith("vllm:request_success_total")) > 60
