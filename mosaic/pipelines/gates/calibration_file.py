"""Calibration answers as a file: a parquet table with one row per (question, slot).

The table's metadata say what the answers are of (`mosaic.pipelines.gates.setting`). Lengths, and the aggregator's
answers without one of the responses, are columns of their own where the run had them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mosaic.core.checks import require, require_name
from mosaic.core.workload import Question
from mosaic.pipelines.gates.calibration_answers import CalibrationQuestion, LeftOut, Observed
from mosaic.pipelines.gates.gate import Ballot, Vote
from mosaic.pipelines.gates.setting import Setting, encode_setting

if TYPE_CHECKING:
    import pyarrow as pa

_OF_SLOT = ("slot", "expert", "answer", "correct")
_OF_QUESTION = (
    "question", "aggregator_answer", "aggregator_correct", "comparable", "gold", "answer_kind", "num_options",
    "skills", "prompt_tokens",
)  # fmt: skip
"""Columns that all rows of a question repeat."""
_MAY_BE_NULL = frozenset({"answer", "aggregator_answer", "gold", "num_options"})
_OBSERVED = ("output_tokens", "aggregator_tokens", "left_out_answer", "left_out_correct", "left_out_tokens")
"""Columns that a table may lack."""


def encode_calibration_answers(questions: Sequence[CalibrationQuestion], setting: Setting) -> bytes:
    """Encode as parquet, one row per (question, slot); the questions' texts and categories are left out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [row for question in questions for row in _rows(question)]
    schema = _schema()
    if any(question.observed is not None for question in questions):
        schema = pa.schema([*schema, *_observed_schema()])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema.with_metadata(encode_setting(setting))), sink)
    return bytes(sink.getvalue())


def _rows(graded: CalibrationQuestion) -> list[dict[str, Any]]:
    question = graded.ballot.question
    shared = {
        "question": question.id,
        "aggregator_answer": graded.aggregator_answer,
        "aggregator_correct": graded.aggregator_correct,
        "comparable": graded.ballot.comparable,
        "gold": question.answer,
        "answer_kind": question.answer_kind.value,
        "num_options": question.num_options,
        "skills": list(question.skills),
        "prompt_tokens": question.prompt_tokens,
    }
    votes = zip(graded.ballot.votes, graded.vote_correct, strict=True)
    return [
        {
            **shared,
            "slot": slot,
            "expert": vote.expert,
            "answer": vote.answer,
            "correct": correct,
            **_seen(graded, slot),
        }
        for slot, (vote, correct) in enumerate(votes)
    ]


def _seen(graded: CalibrationQuestion, slot: int) -> dict[str, Any]:
    observed = graded.observed
    if observed is None:
        return {}
    left_out = observed.left_out[slot]
    values = (observed.vote_tokens[slot], observed.aggregator_tokens, *left_out)
    return dict(zip(_OBSERVED, values, strict=True))


def load_calibration_answers(path: str | Path) -> tuple[CalibrationQuestion, ...]:
    """Read the table back, questions in first-seen order.

    Raises
    ------
    ValueError, TypeError
        Naming the file, and the question or column, the rule and the value.
    """
    if not isinstance(path, Path):
        require_name(path, "gate.calibration")
    at = f"calibration answers {path}"
    try:
        by_question: dict[str, list[dict[str, Any]]] = {}
        for row in _read_rows(path):
            _require_given(row)
            by_question.setdefault(row["question"], []).append(row)
        require(len(by_question) > 0, "table", "of at least one row", 0)
        return tuple(_question(rows) for rows in by_question.values())
    except OSError as error:
        raise ValueError(f"{at}: must be a readable file ({error.strerror or error})") from error
    except TypeError as error:
        raise TypeError(f"{at}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{at}: {error}") from error


def _read_rows(path: str | Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            schema = _schema()
            missing = [name for name in schema.names if name not in names]
            require(not missing, "columns", f"a superset of {schema.names}, {missing} are missing", names)
            if all(name in names for name in _OBSERVED):
                schema = pa.schema([*schema, *_observed_schema()])
            table = file.read(columns=schema.names).select(schema.names).cast(schema)
            rows: list[dict[str, Any]] = table.to_pylist()
            return rows
    except pa.ArrowException as error:
        raise ValueError(f"must be a parquet table of calibration answers ({error})") from error


def _require_given(row: Mapping[str, Any]) -> None:
    """Check that nothing is null that must be known."""
    for name, value in row.items():
        if name in _OBSERVED:
            continue
        rule = "given"
        if name == "aggregator_correct":
            rule = "given (let the run aggregate every question: gate=never)"
        require(value is not None or name in _MAY_BE_NULL, f"question {row['question']}: {name}", rule, value)


def _question(rows: list[dict[str, Any]]) -> CalibrationQuestion:
    """Rebuild a question from its rows."""
    first = rows[0]
    label = f"question {first['question']}"
    for row in rows:
        for name in _OF_QUESTION:
            require(row[name] == first[name], f"{label}: {name}", f"{first[name]!r} in all of its rows", row[name])
    rows = sorted(rows, key=lambda row: int(row["slot"]))
    slots = [row["slot"] for row in rows]
    require(slots == list(range(len(rows))), f"{label}: slots", "0, 1, 2 and so on, each once", slots)
    question = Question(
        id=first["question"],
        prompt_tokens=first["prompt_tokens"],
        answer=first["gold"],
        skills=tuple(first["skills"]),
        answer_kind=first["answer_kind"],
        num_options=first["num_options"],
    )
    votes = tuple(Vote(row["expert"], row["answer"]) for row in rows)
    return CalibrationQuestion(
        ballot=Ballot(question=question, votes=votes, comparable=first["comparable"]),
        vote_correct=tuple(row["correct"] for row in rows),
        aggregator_answer=first["aggregator_answer"],
        aggregator_correct=first["aggregator_correct"],
        observed=_observed(rows),
    )


def _observed(rows: Sequence[Mapping[str, Any]]) -> Observed | None:
    """Rebuild what was seen beside the answers; None: a call was not seen to its end."""
    needed = [name for name in _OBSERVED if name != "left_out_answer"]
    if any(row.get(name) is None for row in rows for name in needed):
        return None
    return Observed(
        tuple(row["output_tokens"] for row in rows),
        rows[0]["aggregator_tokens"],
        tuple(LeftOut(row["left_out_answer"], row["left_out_correct"], row["left_out_tokens"]) for row in rows),
    )


def _observed_schema() -> "pa.Schema":
    import pyarrow as pa

    types = {"left_out_answer": pa.string(), "left_out_correct": pa.bool_()}
    return pa.schema([pa.field(name, types.get(name, pa.int64())) for name in _OBSERVED])


def _schema() -> "pa.Schema":
    import pyarrow as pa

    types = {
        "slot": pa.int32(),
        "correct": pa.bool_(),
        "aggregator_correct": pa.bool_(),
        "comparable": pa.bool_(),
        "num_options": pa.int32(),
        "skills": pa.list_(pa.string()),
        "prompt_tokens": pa.int64(),
    }
    # NOTE: no column is declared free of nulls: a null is reported with its question, not by the cast.
    return pa.schema([pa.field(name, types.get(name, pa.string())) for name in (*_OF_QUESTION, *_OF_SLOT)])
