"""Reads question files row by row; every error names the file and the line or row."""

import ast
import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

from mosaic.core.chat import Message, Sampling
from mosaic.core.checks import AtLeast1, Name, check_fields, require, require_count
from mosaic.core.workload import ExpertName
from mosaic.workloads.chat_rows import LINE_KEYS, is_batch_line, read_batch_line, read_messages
from mosaic.workloads.json_text import json_lines, json_object, parse_json, read_text

RowLengths: TypeAlias = int | tuple[int, ...] | Mapping[ExpertName, int]
"""Output tokens of a row: the same for all slots, one per slot, or one per expert."""

KEYS = ("id", "question", "experts", "answer", "category", "skills", "prompt_tokens", "output_tokens")
STAND_INS = ("prompt", "messages")
"""What may stand for the question."""
BESIDE = ("experts", "answer", "category", "skills")
"""What may stand beside a line of OpenAI's batch format."""
TABLE_COLUMNS = {"answer": "gold_answer", "skills": "keywords", "experts": "solvers"}
"""Symbolic-MoE's names for ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One question as its file gives it."""

    at: str
    """File and line, for messages."""
    id: Name
    question: Name | None = None
    experts: tuple[Name, ...] | None = None
    """None: not recruited yet."""
    answer: Name | None = None
    category: Name | None = None
    skills: tuple[Name, ...] = ()
    prompt_tokens: AtLeast1 | None = None
    output_tokens: RowLengths | None = None
    context: tuple[Message, ...] = ()
    sampling: Sampling | None = None


def read_rows(path: str | Path) -> tuple[Row, ...]:
    """Read all questions of a file in one of the formats of `mosaic.workloads.loaders`.

    Raises
    ------
    ValueError, TypeError
        Naming the file, the line or row, the field, the rule and the value.
    """
    readers = {".jsonl": _jsonl_rows, ".csv": _csv_rows, ".json": _json_rows, ".parquet": _parquet_rows}
    suffix = Path(path).suffix.lower()
    require(suffix in readers, "workload.path", f"a file ending in one of {list(readers)}", str(path))
    rows = tuple(readers[suffix](path))
    require(len(rows) > 0, f"{path}", "a file with at least one question", "none")
    return rows


def _jsonl_rows(path: str | Path) -> Iterator[Row]:
    for number, (at, entry) in enumerate(json_lines(path), start=1):
        yield _batch_row(entry, number, at) if is_batch_line(entry) else _plain_row(entry, number, at)


def _batch_row(entry: Mapping[str, Any], number: int, at: str) -> Row:
    """Read a line of OpenAI's batch format; our own keys for what it has no word for may stand beside."""
    request = read_batch_line(entry, at)
    beside = {key: value for key, value in entry.items() if key not in LINE_KEYS}
    for key in beside:
        require(key in BESIDE, f"{at}: key", f"one of {[*LINE_KEYS, *BESIDE]}", key)
    name = entry.get("custom_id")
    given = {"custom_id": f"row-{number}" if name is None else name, "question": request.question, **beside}
    return replace(_row(given, at, {"id": "custom_id"}), context=request.context, sampling=request.sampling)


def _plain_row(entry: Mapping[str, Any], number: int, at: str) -> Row:
    """Read an object of our keys, where a prompt or messages may stand for the question."""
    stand_ins = [key for key in ("question", "prompt", "messages") if entry.get(key) is not None]
    require(len(stand_ins) < 2, f"{at}: question", "given once, as question, prompt or messages", stand_ins)
    entry = {"id": f"row-{number}"} | {key: value for key, value in entry.items() if key != "id" or value is not None}
    if stand_ins == ["messages"]:
        question, context = read_messages(entry.pop("messages"), f"{at}: messages")
        return replace(_row(entry | {"question": question}, at), context=context)
    if stand_ins == ["prompt"]:
        entry["question"] = entry.pop("prompt")
    return _row(entry, at)


def _parquet_rows(path: str | Path) -> Iterator[Row]:
    """Read a table with our columns; others are ignored."""
    import pyarrow.parquet as pq
    from pyarrow.lib import ArrowException

    try:
        table = pq.read_table(path)
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"workload.path must be a readable file, got {str(path)!r} ({reason})") from error
    except ArrowException as error:
        raise ValueError(f"workload.path must be a parquet file, got {str(path)!r} ({error})") from error
    for number, entry in enumerate(table.to_pylist(), start=1):
        known = {key: entry[key] for key in entry if key in (*KEYS, *STAND_INS)}
        yield _plain_row(known, number, f"{path}, row {number}")


def _json_rows(path: str | Path) -> Iterator[Row]:
    """Read a list of objects with our keys or with the table's; only the table's may have others beside them."""
    entries = parse_json(read_text(path), str(path))
    if not isinstance(entries, list):
        raise TypeError(f"{path}: must be a list of questions, got {type(entries).__name__}")
    for number, value in enumerate(entries, start=1):
        at = f"{path}, row {number}"
        entry = json_object(value, at)
        of_table = not entry.keys().isdisjoint(TABLE_COLUMNS.values())
        if of_table:
            for key, column in TABLE_COLUMNS.items():
                require(key not in entry or column not in entry, f"{at}: {key}", f"left out beside {column}", "both")
            keys = (*KEYS, *TABLE_COLUMNS.values())
            entry = {key: value for key, value in entry.items() if key in keys}
        yield _row({"id": f"row-{number}"} | entry, at, TABLE_COLUMNS if of_table else {})


def _csv_rows(path: str | Path) -> Iterator[Row]:
    reader = csv.DictReader(StringIO(read_text(path), newline=""), strict=True)
    try:
        columns = reader.fieldnames or ()
        of_table = not set(columns).isdisjoint(TABLE_COLUMNS.values())
        names = TABLE_COLUMNS if of_table else {}
        question = "prompt" if "prompt" in columns and "question" not in columns else "question"
        require(question in columns, f"{path}: columns", "a superset of ['question']", list(columns))
        for number, record in enumerate(reader, start=1):
            at = f"{path}, row {number}"
            if None in record or None in record.values():
                raise ValueError(f"{at}: must have {len(columns)} columns, like the header")
            texts = {names.get(key, key): record.get(names.get(key, key)) for key in ("answer", "category")}
            wanted = [names.get(key, key) for key in ("skills", "experts")]
            lists = {key: _parse_list(record, key, at) for key in wanted if record.get(key)}
            name = None if of_table else record.get("id")
            yield _row({"id": name or f"row-{number}", "question": record[question], **texts, **lists}, at, names)
    except csv.Error as error:
        raise ValueError(f"{path}, after line {reader.line_num}: must be CSV ({error})") from error


def _row(entry: Mapping[str, Any], at: str, columns: Mapping[str, str] = MappingProxyType({})) -> Row:
    """Turn an entry into a row; ``columns`` says how its file names what has another name here."""
    named = {key: columns.get(key, key) for key in KEYS}
    for key in entry:
        require(key in named.values(), f"{at}: key", f"one of {list(named.values())}", key)
    # A null is what a data frame writes for an absent value, and an empty text what a table has for one.
    given = {key: entry[name] for key, name in named.items() if entry.get(name) is not None}
    given = {key: value for key, value in given.items() if key not in ("answer", "category") or value != ""}
    require("id" in given, f"{at}: {named['id']}", "given", None)
    require("question" in given or "prompt_tokens" in given, f"{at}: question", "given, or prompt_tokens", None)
    if type(given["id"]) is int:
        given["id"] = str(given["id"])
    row = Row(at=at, **given)
    check_fields(row, f"{at}: ", columns)
    require(row.experts != (), f"{at}: {named['experts']}", "a list with at least one name", [])
    lengths = row.output_tokens
    return row if lengths is None else replace(row, output_tokens=_lengths(lengths, f"{at}: {named['output_tokens']}"))


def _parse_list(record: Mapping[str, str], key: str, at: str) -> object:
    """Evaluate a Python list literal; nothing but literals is accepted."""
    try:
        return ast.literal_eval(record[key].strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(f"{at}: {key} must be a Python list of strings, got {record[key]!r}") from error


def _lengths(value: Any, field: str) -> RowLengths:
    if isinstance(value, dict):
        counts = {f"{field}.{expert}": tokens for expert, tokens in value.items()}
    elif isinstance(value, list):
        counts = {f"{field}[{slot}]": tokens for slot, tokens in enumerate(value)}
    else:
        counts = {field: value}
    for place, tokens in counts.items():
        require_count(tokens, place, at_least=1)
    lengths: RowLengths = tuple(value) if isinstance(value, list) else value
    return lengths
