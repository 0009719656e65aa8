"""What tests read from the folder of a run, or of a batch."""

import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

from mosaic.commands.run import JOURNAL
from mosaic.core.results import CallStatus
from mosaic.core.workload import CallKey
from mosaic.runtime.journal import read_journal


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def rows(folder: Path, name: str) -> list[dict]:
    return pq.read_table(folder / f"{name}.parquet").to_pylist()


def read_plans(folder: Path) -> list[dict]:
    """Read a run's plans, by layer."""
    return json.loads((folder / "plan.json").read_text())["layers"]


def answers_of(folder: Path) -> list[dict]:
    return rows(folder, "answers")


def final(folder: Path) -> list[tuple]:
    return [(row["question"], row["answer"], row["source"], row["correct"]) for row in answers_of(folder)]


def calls_of(folder: Path) -> dict[tuple, dict]:
    table = rows(folder, "calls")
    calls = {(row["question"], row["node"], row["slot"]): row for row in table}
    assert len(calls) == len(table), "none is answered twice"
    return calls


def responses_of(folder: Path) -> dict[tuple, str]:
    lines = [json.loads(line) for line in (folder / "responses.jsonl").read_text().splitlines()]
    return {(line["question"], line["node"], line["slot"]): line["text"] for line in lines}


def bodies_of(questions: Path) -> dict[str, dict]:
    """What a batch answered, by question, without when."""
    lines = map(json.loads, questions.with_name("questions.out.jsonl").read_text().splitlines())
    return {line["custom_id"]: line["response"]["body"] | {"created": 0} for line in lines}


def times_finished(questions: Path) -> Counter[CallKey]:
    """Count how often each call of a batch finished."""
    return Counter(finished_of(questions.with_suffix(".mosaic")))


def finished_of(folder: Path, what: str = "run") -> list:
    """Keys of the calls that finished, from a run's journal."""
    ended = read_journal(folder / JOURNAL / what).ended
    return [record.key for record in ended if record.status is CallStatus.FINISHED]


def num_finished(folder: Path) -> int:
    """Count the calls that have finished in all that a run measures and does."""
    return sum(len(finished_of(folder, path.name)) for path in (folder / JOURNAL).glob("*"))
