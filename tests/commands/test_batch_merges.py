"""Questions of `mosaic batch` whose aggregation does not fit, or fails: cut to fit, and else told as no answers."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mosaic.pipelines.final_answers import AnswerSource
from tests.commands.command_line import Outcome
from tests.engines.fake_batch import batch_line, run_mosaic, write_batch

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
        return json.loads((self.folder / "questions.mosaic" / "summary.json").read_text())


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
