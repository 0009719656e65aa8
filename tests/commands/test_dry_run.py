"""`mosaic batch --dry-run` says what would be sent, and `mosaic batch -` keeps what standard input has."""

import json
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest

from tests.engines.fake_batch import run_mosaic
from tests.engines.fake_server import FakeServer, serving

QUESTIONS = 'Question;answer;source\nWhat is 2 + 2?;4;exam\n"Red; or blue?";5;exam\nhalf a row\n'
SERVED = """
model_list:
- {model_name: small, litellm_params: {model: openai/s, api_base: "URL", max_tokens: 1000,
   input_cost_per_token: 1.0e-6, output_cost_per_token: 2.0e-6}}
- {model_name: large, litellm_params: {model: openai/l, api_base: "URL", max_tokens: 500,
   input_cost_per_token: 0.001, output_cost_per_token: 0.002}}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "questions.csv"
    path.write_text(QUESTIONS)
    return path


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_what_would_be_asked_is_counted_and_shown_and_nothing_is_written(models: list[str], path: Path) -> None:
    outcome = run_mosaic("batch", path, *models, "--per-question", "2", "--dry-run")
    assert outcome.status == 0, outcome.err
    said, messages = outcome.out.split(" would get it:\n")
    lines = said.splitlines()
    assert lines[0] == "questions.csv: 2 questions, 4 calls; nothing was sent or written"
    assert sum(int(part.split()[1]) for part in lines[1].removeprefix("  experts   ").split(", ")) == 4
    assert lines[2].strip() == "merged by Dan, at most 2 calls, where the answers do not agree"
    assert lines[4].strip() == "cost      that of the machines' time: mosaic quote measures it"
    (message,) = json.loads(messages)
    assert message["role"] == "user"
    assert message["content"].startswith("What is 2 + 2?\n\nFinish with your final answer")
    assert outcome.err == (
        "questions.csv: ignored source\nanswers: numbers (guessed; --answers choice|text says otherwise)\n"
        f"left out of 3 questions: {path}, line 4: must have 3 columns, like the header, got 1\n"
    )
    assert names_in(path.parent) == ["questions.csv"]


def test_on_servers_the_prompts_have_a_price_and_answers_a_bound(path: Path) -> None:
    served = path.parent / "models.yaml"
    with serving(FakeServer("small")) as (server,):
        server.models = {"data": [{"id": "s"}, {"id": "l"}]}
        listed = SERVED.replace("URL", f"http://127.0.0.1:{server.port}/v1")
        served.write_text(listed)
        dry = ("batch", path, "--models", served, "--dry-run")
        outcome = run_mosaic(*dry, "--aggregator", "none", "--answers", "text")
        served.write_text(listed.replace("input_cost_per_token: 1.0e-6, output_cost_per_token: 2.0e-6", ""))
        without_price = run_mosaic(*dry)
    assert not server.posts
    assert outcome.status == without_price.status == 0, outcome.err + without_price.err
    # 14 and 13 characters are 4 tokens each: 2 calls of each model, of 1,000 and of 500 tokens at most.
    assert "  prompts   about 16 tokens that experts read (4 characters a token)\n" in outcome.out
    assert "  cost      $0.008008 to read prompts, at most $2.00 for what experts write (mosaic quote" in outcome.out
    assert "  cost      not known, as small has no price: --price gives one\n" in without_price.out
    assert "  merged by small, at most 2 calls, where the answers do not agree\n" in without_price.out


def piped(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(text.encode())))


def test_standard_input_is_kept_and_the_same_command_goes_on(
    models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = '{"question": "What is 2 + 2?", "answer": "4"}\n'
    piped(monkeypatch, questions)
    outcome = run_mosaic("batch", "-", *models, "--out", tmp_path / "out")
    assert outcome.status == 0, outcome.err
    assert (tmp_path / "out" / "questions").read_text() == questions
    assert names_in(tmp_path / "out") == [
        "questions", "questions.errors.jsonl", "questions.mosaic", "questions.out.jsonl"
    ]  # fmt: skip
    piped(monkeypatch, questions)
    assert "already complete" in run_mosaic("batch", "-", *models, "--out", tmp_path / "out").err
    piped(monkeypatch, '{"question": "Who?"}\n')
    refused = run_mosaic("batch", "-", *models, "--out", tmp_path / "out")
    assert (refused.status, (tmp_path / "out" / "questions").read_text()) == (2, questions)
    assert f"{tmp_path / 'out' / 'questions'}: holds other questions than standard input; --out names" in refused.err


@pytest.mark.parametrize(
    ("options", "text", "message"),
    [
        ([], "Why?\n", "FILE must be a file, or - with --out FOLDER, which keeps what standard input has as"),
        (["--out", "out", "--dry-run"], "Why?\n", "FILE must be a file with --dry-run, which keeps nothing, got '-'"),
        (["--out", "out"], "\n", "FILE must be a file, or - and questions on standard input, got 'none'"),
        (["--out", "out"], "frage;antwort\nWas?;a\n", "out/questions, line 2: question must be in one of the columns"),
    ],
)
def test_standard_input_that_cannot_be_asked_is_refused(
    options: list[str], text: str, message: str, models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    piped(monkeypatch, text)
    refused = run_mosaic("batch", "-", *models, *options)
    assert refused.status == 2
    assert refused.err.startswith(f"error: {message}"), refused.err
    assert refused.err.count("\n") == 1


def test_a_quote_takes_no_standard_input(models: list[str]) -> None:
    refused = run_mosaic("quote", "-", *models)
    assert (refused.status, refused.err) == (2, "error: FILE must be a file with questions, got '-'\n")
