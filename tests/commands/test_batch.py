"""`mosaic batch` from a file to OpenAI's batch output; the engines have no model."""

import json
import urllib.request
from collections import Counter
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pyarrow.parquet as pq
import pytest

from mosaic.pipelines.final_answers import AnswerSource
from mosaic.runtime.journal import RUN, read_journal
from tests.commands.command_line import Outcome
from tests.commands.tiny_batch import read_completions
from tests.engines.fake_batch import NAMES, batch_line, question, run_mosaic, write_batch
from tests.engines.fake_run import run_fake
from tests.run_tables import bodies_of, rows, summary_of


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_question_has_a_line_in_the_order_of_the_input(done: Path) -> None:
    lines = lines_of(done.parent / "questions.out.jsonl")
    assert [line["custom_id"] for line in lines] == [f"q{number}" for number in range(24)]
    assert (done.parent / "questions.errors.jsonl").read_bytes() == b""
    assert not (done.parent / "questions.partial.jsonl").exists()


def test_openai_s_own_types_read_the_output(done: Path) -> None:
    out = done.parent / "questions.out.jsonl"
    for body, read in zip(bodies_of(done).values(), read_completions(out).values(), strict=True):
        assert read.choices[0].message.content == body["choices"][0]["message"]["content"] != ""
        assert read.usage.total_tokens == read.usage.prompt_tokens + read.usage.completion_tokens


def test_usage_is_that_of_all_calls_and_votes_are_the_experts(done: Path) -> None:
    written, asked = Counter(), Counter()
    for call in rows(done.with_suffix(".mosaic"), "calls"):
        written[call["question"]] += call["output_tokens"]
        asked[call["question"]] += 1
    bodies = bodies_of(done)
    for name, body in bodies.items():
        assert body["usage"]["completion_tokens"] == written[name]
        assert body["mosaic"]["num_calls"] == asked[name]
        assert [vote["expert"] for vote in body["mosaic"]["votes"]] == list(NAMES[:3])
    sources = {(body["mosaic"]["source"], body["mosaic"]["num_calls"]) for body in bodies.values()}
    assert sources == {("majority", 3), ("aggregator", 4)}


def test_the_text_says_the_final_answer(done: Path) -> None:
    bodies = bodies_of(done)
    for answer in rows(done.with_suffix(".mosaic"), "answers"):
        body = bodies[answer["question"]]
        assert (body["mosaic"]["answer"], body["mosaic"]["source"]) == (answer["answer"], answer["source"])
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
    assert "pilot" in summary_of(tmp_path / "questions.mosaic")
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
    num_tries = num_ended(path)
    assert run_mosaic("batch", path, *models).status == 4
    assert num_tries < num_ended(path) <= num_tries + 4, "the failed calls and no other"


def test_request_parameters_reach_the_engine(models: list[str], tmp_path: Path) -> None:
    path = write_batch(tmp_path, [batch_line(number, max_tokens=3) for number in range(6)])
    assert run_mosaic("batch", path, *models).status == 0
    assert max(call["output_tokens"] for call in rows(path.with_suffix(".mosaic"), "calls")) == 3
    assert {body["choices"][0]["finish_reason"] for body in bodies_of(path).values()} <= {"stop", "length"}


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
    assert {vote["expert"] for vote in bodies_of(path)["q0"]["mosaic"]["votes"]} == {"ada", "bob", "cyd"}


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


def num_ended(path: Path) -> int:
    return len(read_journal(path.with_suffix(".mosaic") / "journal" / RUN).ended)


@pytest.mark.parametrize(
    "damage", [None, lambda text: b"", lambda text: text[:-30], lambda text: b"of somebody else\n"]
)
def test_a_damaged_or_removed_output_is_refused_by_an_audit_and_written_again(
    done: Path, plan_all: list[str], damage
) -> None:
    out = done.with_name("questions.out.jsonl")
    before, num_before = out.read_bytes(), num_ended(done)
    out.unlink()
    if damage is not None:
        out.write_bytes(damage(before))
    audited = run_mosaic("audit", out)
    assert (audited.status, audited.err.count("\n")) == (2, 1)
    assert str(out) in audited.err
    outcome = run_mosaic("batch", done, *plan_all)
    assert outcome.status == 0, outcome.err
    assert "already complete" not in outcome.err
    assert (out.read_bytes(), num_ended(done)) == (before, num_before), "without a call"
    again = run_mosaic("batch", done, *plan_all)
    assert (again.status, again.out) == (0, "")
    assert "already complete" in again.err
    assert out.read_bytes() == before


def test_an_audit_refuses_the_output_of_another_run(done: Path, tmp_path: Path) -> None:
    text = done.with_name("questions.out.jsonl").read_text()
    other = tmp_path / "other.out.jsonl"
    other.write_text(text.replace('"answer": "A"', '"answer": "B"'))
    audited = run_mosaic("audit", other, "--work", done.with_suffix(".mosaic"))
    assert (audited.status, audited.err.count("\n")) == (2, 1)
    assert "is not what the run in" in audited.err
    other.write_text(text)
    assert "is not what the run in" not in run_mosaic("audit", other, "--work", done.with_suffix(".mosaic")).err


@pytest.mark.slow
def test_two_commands_do_not_share_an_output_name(done: Path, models: list[str], tmp_path: Path) -> None:
    path = write_batch(tmp_path, [batch_line(number) for number in range(2)])
    before = done.with_name("questions.out.jsonl").read_bytes()
    for out in (done.parent, tmp_path / "none"):
        outcome = run_mosaic("batch", path, *models, "--out", out, "--work", tmp_path / "work")
        if out == done.parent:
            assert (outcome.status, outcome.err.count("\n")) == (2, 1)
            assert "questions.out.jsonl: is there already, and not of the run in" in outcome.err
            assert not (tmp_path / "work").exists()
    assert outcome.status == 0, outcome.err
    assert done.with_name("questions.out.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "text", [b"", b"{}", b"\xff\xfe", *(pytest.param(text, marks=pytest.mark.slow) for text in (b"{", b"[]", b"null"))]
)
@pytest.mark.parametrize(
    "name", ["config.yaml", "begun.json", "summary.json", "asked.json", "plan.json", "calls.parquet"]
)
def test_a_damaged_file_of_the_folder_is_written_again_or_named(
    name: str, text: bytes, done: Path, plan_all: list[str], tmp_path: Path
) -> None:
    work = done.with_suffix(".mosaic")
    file, out = work / name, done.with_name("questions.out.jsonl")
    before = file.read_bytes() if file.exists() else None
    try:
        file.write_bytes(text)
        for command in (["batch", done, *plan_all], ["audit", out]):
            outcome = run_mosaic(*command)
            assert "Traceback" not in outcome.err
            assert "mistake" not in outcome.err
            if outcome.status:
                assert outcome.status == 2, outcome.err
                assert str(work) in outcome.err
    finally:
        if before is None:
            file.unlink(missing_ok=True)
        else:
            file.write_bytes(before)


CONTEXT = 4096
"""Of every model, in tokens; a token of a ``narrow`` prompt is a character."""
OPTIONS = ("aggregator.min_output_tokens=64", "backend.num_calibration_questions=4")
"""A prompt may take 4,032 tokens; the first four questions show what merges cost."""


class Ran(NamedTuple):
    outcome: Outcome
    folder: Path

    def rows(self, kind: str) -> dict[str, dict[str, Any]]:
        lines = (self.folder / f"questions.{kind}.jsonl").read_text().splitlines()
        return {line["custom_id"]: line for line in map(json.loads, lines)}

    @property
    def summary(self) -> dict[str, Any]:
        return summary_of(self.folder / "questions.mosaic")


@pytest.fixture(scope="module")
def ran(models: list[str], tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Four free texts whose merges fit by estimates alone, one that cannot be cut to fit, and one that never fits."""
    folder = tmp_path_factory.mktemp("merges")
    texts = [f"Tell me {number} long and narrow tales. {'Tell. ' * 40}" for number in range(4)]
    texts += [f"Tell me narrow tales. {'Tell. ' * 600}", f"Tell me tales. {'Tell. ' * 2500}"]
    write_batch(folder, [batch_line(number, text) for number, text in enumerate(texts)])
    return Ran(run_mosaic("batch", folder / "questions.jsonl", *models, *OPTIONS), folder)


def test_a_merge_is_cut_to_fit_and_the_row_names_whose_responses(ran: Ran) -> None:
    rows = ran.rows("out")
    for name in ("q0", "q1", "q2", "q3"):
        about = rows[name]["response"]["body"]["mosaic"]
        assert (about["source"], about["cut_responses"]) == (AnswerSource.AGGREGATOR, ["Ada", "Bob", "Cyd"])


def test_a_question_that_could_not_be_aggregated_has_its_own_source(ran: Ran) -> None:
    rows = ran.rows("out")
    for name in ("q4", "q5"):
        body = rows[name]["response"]["body"]
        assert body["mosaic"]["source"] == AnswerSource.NOT_AGGREGATED
        assert body["choices"][0]["message"]["content"], "one expert's text stands there"


@pytest.mark.parametrize(("name", "reason"), [("q4", f"must leave room in {CONTEXT}"), ("q5", "Dan can read 4,032")])
def test_the_errors_file_says_why_it_could_not_be_aggregated(ran: Ran, name: str, reason: str) -> None:
    errors = ran.rows("errors")
    assert set(errors) == {"q4", "q5"}
    assert errors[name]["error"]["code"] == "not_aggregated"
    assert reason in errors[name]["error"]["message"]


def test_the_screen_the_summary_and_the_status_tell_it(ran: Ran) -> None:
    assert ran.outcome.status == 4, ran.outcome.err
    assert "4 questions answered, 2 not aggregated, 0 errors" in ran.outcome.out
    assert "cut       4 questions" in ran.outcome.out
    names = ("num_answered", "num_not_aggregated", "num_errors", "num_cut_to_fit")
    assert [ran.summary[name] for name in names] == [4, 2, 0, 4]


def test_the_same_command_tries_again_what_could_not_be_aggregated(ran: Ran, models: list[str]) -> None:
    before = {path.name: path.read_bytes() for path in ran.folder.glob("questions.*.jsonl")}
    assert run_mosaic("batch", ran.folder / "questions.jsonl", *models, *OPTIONS).status == 4
    assert {path.name: path.read_bytes() for path in ran.folder.glob("questions.*.jsonl")} == before
