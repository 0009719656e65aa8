"""Files and commands of the kind people have, and what `mosaic batch` makes of each: done, or one clear line.

What lines of a file may be is tested in tests/workloads.
"""

import json
import os
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mosaic.config import batch as batch_config_module
from mosaic.config.batch import Gpu, find_gpus, named_models
from mosaic.core.engine_options import Device
from tests.engines.fake_batch import NAMES, batch_line, run_mosaic

TEXT = "Is it?\nOptions:\n(A) 1\n(B) 2"


class Case(NamedTuple):
    """A file, and what is said of it; none: it is answered, with so many lines."""

    name: str
    content: bytes | None
    """None: it is not there."""
    said: str | None = None
    file: str = "questions.jsonl"
    options: tuple[str, ...] = ()
    num_lines: int = 4


def lines(*entries: object) -> bytes:
    return "".join((entry if isinstance(entry, str) else json.dumps(entry)) + "\n" for entry in entries).encode()


def parquet(rows: list[dict[str, str]]) -> bytes:
    stream = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), stream)
    return stream.getvalue().to_pybytes()


BATCH = [batch_line(number) for number in range(4)]
PLAIN = [{"question": f"{number} {TEXT}"} for number in range(4)]
CSV = "id,question\n" + "".join(f'q{number},"{number} {TEXT}"\n' for number in range(4))


CASES = [
    Case("openai_batch", lines(*BATCH)),
    Case("csv", CSV.encode(), file="questions.csv"),
    Case("csv_of_a_spreadsheet", b"\xef\xbb\xbf" + CSV.replace("\n", "\r\n").encode(), file="questions.csv"),
    Case("json_list", json.dumps(PLAIN).encode(), file="questions.json"),
    Case("other_letters", lines(*(batch_line(number, f"\u00bfQu\u00e9? {TEXT}") for number in range(4)))),
    Case("one_question", lines(BATCH[0]), num_lines=1),
    Case("parquet", parquet(PLAIN), file="questions.parquet"),
    Case("not_json", b"What is this?\n", "line 1: must be JSON, got 'What is this?'"),
    Case("too_long", lines(batch_line(0, "x " * 9000 + TEXT)), "prompt_tokens must be below context_tokens=4096"),
    Case("no_parquet", b"PAR0", "q.parquet: must be a whole parquet file", file="q.parquet"),
    Case("unknown_model", lines(*BATCH), "checkpoint Nobody: no such folder", options=("--models", "Nobody")),
    Case("model_twice", lines(*BATCH), "--models: last part of a name must be unique", options=("--models", "a/X,b/X")),
    Case("unknown_answers", lines(*BATCH), "--answers must be one of", options=("--answers", "word")),
    Case("no_file", None, "FILE must be a file with questions, got"),
    Case("out_is_a_file", lines(*BATCH), "cannot be written", options=("--out", "questions.jsonl")),
    Case("unknown_key", lines(*BATCH), "gates must be a key", options=("gates=never",)),
    Case("unknown_choice", lines(*BATCH), "gate must be one of", options=("gate=maybe",)),
    Case("simulated", lines(*BATCH), "backend.name must be vllm or endpoint in a batch", options=("backend=sim",)),
    Case("unknown_option", lines(*BATCH), "No such option", options=("--speed", "9")),
    Case("word_for_a_number", lines(*BATCH), "error: ", options=("--workers", "many")),
]  # fmt: skip


FAST = ("openai_batch", "csv", "parquet")
"""Of the files that are answered; each takes some seconds."""


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=[pytest.mark.slow] if not case.said and case.name not in FAST else [])
        for case in CASES
    ],
)
def test_a_file_is_answered_or_refused_in_a_line(
    case: Case, models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / case.file
    if case.content is not None:
        path.write_bytes(case.content)
    monkeypatch.chdir(tmp_path)
    if case.name == "simulated":
        models = [option for option in models if not option.startswith(("backend.", "profile.max"))]
    outcome = run_mosaic("batch", path, *models, *case.options)
    if case.said is None:
        assert outcome.status == 0, outcome.err
        assert len((tmp_path / "questions.out.jsonl").read_text().splitlines()) == case.num_lines
        return
    assert outcome.status == 2
    assert case.said in outcome.err
    assert outcome.err.count("\n") == 1, "one line"
    assert outcome.err.startswith("error: ")
    left = [] if case.content is None else [case.file]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == left, "nothing is left behind"


def test_bad_and_overlong_lines_stand_in_the_errors_file_and_the_others_are_answered(
    models: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "questions.jsonl"
    named = {"question": TEXT, "id": "named", "experts": ["Ada", "Bob"], "source": "exam"}
    other = {"question": TEXT, "id": "other", "experts": ["Nobody"]}
    path.write_bytes(lines(batch_line(0, "x " * 9000 + TEXT), "{", batch_line(1), {}, named, other))
    outcome = run_mosaic("batch", path, *models)
    assert outcome.status == 4, outcome.err
    answered = [json.loads(line) for line in (tmp_path / "questions.out.jsonl").read_text().splitlines()]
    assert [line["custom_id"] for line in answered] == ["q1", "named"]
    assert [vote["expert"] for vote in answered[1]["response"]["body"]["mosaic"]["votes"]] == ["Ada", "Bob"]
    errors = [json.loads(line) for line in (tmp_path / "questions.errors.jsonl").read_text().splitlines()]
    assert [(line["custom_id"], line["error"]["line"]) for line in errors] == [("q0", 1), (None, 2), ("other", 6)]
    assert {line["error"]["code"] for line in errors} == {"bad_line"}
    reasons = [line["error"]["message"] for line in errors]
    assert f"{path}, line 1: prompt_tokens must be below context_tokens=4096 of Ada" in reasons[0]
    assert reasons[2] == f"{path}, line 6: expert must be one of the pool {[*NAMES]}, got 'Nobody'"
    assert "questions.jsonl: ignored source and 1 empty row\n" in outcome.err
    assert f"left out of 5 questions, see questions.errors.jsonl: {reasons[0]}, and 2 more\n" in outcome.err
    assert f"left out  3 of the lines, see {tmp_path / 'questions.errors.jsonl'}" in outcome.out
    summary = json.loads((tmp_path / "questions.mosaic" / "summary.json").read_text())
    assert (summary["num_answered"], summary["num_bad_lines"]) == (2, 3)
    again = run_mosaic("batch", path, *models)
    assert (again.status, again.err) == (4, f"already complete: {tmp_path / 'questions.out.jsonl'}\n")


def test_a_batch_that_began_with_few_questions_goes_on_with_all(models: list[str], tmp_path: Path) -> None:
    path = tmp_path / "questions.csv"
    path.write_text("Frage\n" + "".join(f'"{number} {TEXT}"\n' for number in range(4)))
    options = [*models, "--question-column", "frage", "--answers", "choice"]
    for limit, num_lines in ((["--limit", "3"], 3), ([], 4)):
        outcome = run_mosaic("batch", path, *options, *limit)
        assert outcome.status == 0, outcome.err
        assert len((tmp_path / "questions.out.jsonl").read_text().splitlines()) == num_lines


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(models: list[str], tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_bytes(lines(*BATCH))
    tmp_path.chmod(0o500)
    outcome = run_mosaic("batch", path, *models)
    tmp_path.chmod(0o700)
    assert outcome.status == 2
    assert "cannot be written (Permission denied); --out names another folder" in outcome.err


def test_a_port_that_is_taken(models: list[str], tmp_path: Path) -> None:
    import socket

    path = tmp_path / "questions.jsonl"
    path.write_bytes(lines(*BATCH))
    with socket.create_server(("", 0)) as server:
        outcome = run_mosaic("batch", path, *models, "--metrics-port", server.getsockname()[1])
    assert outcome.status == 2
    assert "Address already in use" in outcome.err


def test_without_a_gpu_cores_are_used_and_with_some_all_of_them() -> None:
    with patch.object(batch_config_module, "find_device", return_value=Device.CPU):
        assert batch_config_module._hardware(set(), None) == []
        assert batch_config_module._hardware(set(), 3) == ["cluster.num_workers=3"]
    cards = [Gpu("NVIDIA A100-SXM4-80GB", 80.0), Gpu("NVIDIA A100-SXM4-80GB", 79.6)]
    with (
        patch.object(batch_config_module, "find_device", return_value=Device.GPU),
        patch.object(batch_config_module, "find_gpus", return_value=cards),
    ):
        told = ["cluster.num_workers=2", "hardware=a100_80gb", "hardware.memory_gib=79.6"]
        assert batch_config_module._hardware(set(), None) == told
        assert batch_config_module._hardware({"hardware"}, None) == []


def test_gpus_are_read_from_the_driver(tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100, 81559'\necho 'NVIDIA H100, 81559'\n")
    tool.chmod(0o755)
    with patch.dict(os.environ, {"PATH": f"{tmp_path}:/bin:/usr/bin"}):
        assert [(gpu.name, round(gpu.memory_gib)) for gpu in find_gpus()] == [("NVIDIA H100", 80)] * 2
    with patch.dict(os.environ, {"PATH": str(tmp_path / "nowhere")}):
        assert find_gpus() == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model_list: 3", "must be a LiteLLM file"),
        ("a: [", "must be a LiteLLM file"),
        ("model_list: [{model_name: a, litellm_params: x}]", "must be a LiteLLM file"),
        (
            "model_list: [{model_name: a, litellm_params: {model: x}}, {model_name: a, litellm_params: {model: y}}]",
            "twice",
        ),
    ],
)
def test_a_bad_list_of_models_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text(content)
    with pytest.raises(ValueError, match=message):
        named_models(str(tmp_path / "models.yaml"))
    with pytest.raises(ValueError, match="--models must be a readable file"):
        named_models(str(tmp_path / "none.yaml"))
    assert len(NAMES) == 4
