"""Reads question files row by row; every complaint names the file and the line or row."""

import ast
import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, TypeAlias

from mosaic.core.checks import require, require_count, require_name
from mosaic.core.workload import ExpertName

RowLengths: TypeAlias = int | tuple[int, ...] | Mapping[ExpertName, int]
"""Output tokens of a row: the same for all slots, one per slot, or one per expert."""

JSONL_KEYS = ("id", "question", "experts", "answer", "category", "skills", "prompt_tokens", "output_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One question as its file gives it."""

    at: str
    """File and line, for messages."""
    id: str
    question: str | None
    experts: tuple[ExpertName, ...] | None
    """None: not recruited yet."""
    answer: str | None
    category: str | None
    skills: tuple[str, ...]
    prompt_tokens: int | None = None
    output_tokens: RowLengths | None = None


def read_rows(path: str | Path) -> tuple[Row, ...]:
    """Read all questions of a file in one of the formats of `mosaic.workloads.loaders`.

    Raises
    ------
    ValueError, TypeError
        Naming the file, the line or row, the field, the rule and the value.
    """
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".json": _read_json}
    suffix = Path(path).suffix.lower()
    require(suffix in readers, "workload.path", f"a file ending in one of {list(readers)}", str(path))
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"workload.path must be a readable file, got {str(path)!r} ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"workload.path must be UTF-8 text, got {str(path)!r} ({error})") from error
    rows = tuple(readers[suffix](text, str(path)))
    require(len(rows) > 0, f"{path}", "a file with at least one question", "none")
    return rows


def _read_jsonl(text: str, path: str) -> Iterator[Row]:
    # NOTE: split at newlines only; str.splitlines would also split at separators inside a question.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            at = f"{path}, line {number}"
            yield _jsonl_row(_parse_json(line, at), at)


def _jsonl_row(entry: object, at: str) -> Row:
    if not isinstance(entry, dict):
        raise TypeError(f"{at}: must be an object, got {entry!r}")
    # A null is what a data frame writes for an absent value.
    given: dict[str, Any] = {key: value for key, value in entry.items() if value is not None}
    for key in entry:
        require(key in JSONL_KEYS, f"{at}: key", f"one of {list(JSONL_KEYS)}", key)
    require("id" in given, f"{at}: id", "given", None)
    name = str(given["id"]) if type(given["id"]) is int else given["id"]
    require_name(name, f"{at}: id")
    require("question" in given or "prompt_tokens" in given, f"{at}: question", "given, or prompt_tokens", None)
    if "prompt_tokens" in given:
        require_count(given["prompt_tokens"], f"{at}: prompt_tokens", at_least=1)
    return Row(
        at=at,
        id=name,
        question=_text(given, "question", at),
        experts=_names(given["experts"], f"{at}: experts") if "experts" in given else None,
        answer=_text(given, "answer", at),
        category=_text(given, "category", at),
        skills=_names(given.get("skills", ()), f"{at}: skills", may_be_empty=True),
        prompt_tokens=given.get("prompt_tokens"),
        output_tokens=_lengths(given["output_tokens"], f"{at}: output_tokens") if "output_tokens" in given else None,
    )


def _read_csv(text: str, path: str) -> Iterator[Row]:
    reader = csv.DictReader(StringIO(text, newline=""), strict=True)
    try:
        columns = reader.fieldnames or ()
        require("question" in columns, f"{path}: columns", "a superset of ['question']", list(columns))
        for number, record in enumerate(reader, start=1):
            at = f"{path}, row {number}"
            if None in record or None in record.values():
                raise ValueError(f"{at}: must have {len(columns)} columns, like the header")
            lists = {
                key: _parse_list(record[key], f"{at}: {key}") for key in ("keywords", "solvers") if record.get(key)
            }
            yield _table_row({**record, "keywords": None, "solvers": None, **lists}, number, at)
    except csv.Error as error:
        raise ValueError(f"{path}, after line {reader.line_num}: must be CSV ({error})") from error


def _read_json(text: str, path: str) -> Iterator[Row]:
    entries = _parse_json(text, path)
    if not isinstance(entries, list):
        raise TypeError(f"{path}: must be a list of questions, got {type(entries).__name__}")
    for number, entry in enumerate(entries, start=1):
        at = f"{path}, row {number}"
        if not isinstance(entry, dict):
            raise TypeError(f"{at}: must be an object, got {entry!r}")
        yield _table_row(entry, number, at)


def _table_row(entry: Mapping[str, Any], number: int, at: str) -> Row:
    """Map Symbolic-MoE's names to ours: gold_answer, keywords, solvers."""
    question = _text(entry, "question", at)
    require(question is not None, f"{at}: question", "given", None)
    solvers = entry.get("solvers")
    return Row(
        at=at,
        id=f"row-{number}",
        question=question,
        experts=None if solvers is None else _names(solvers, f"{at}: solvers"),
        answer=_text(entry, "gold_answer", at),
        category=_text(entry, "category", at),
        skills=_names(entry.get("keywords") or (), f"{at}: keywords", may_be_empty=True),
    )


def _parse_json(text: str, at: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{at}: must be JSON, got {text[:60]!r} ({error})") from error


def _parse_list(text: str, field: str) -> object:
    """Evaluate a Python list literal; nothing but literals is accepted."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(f"{field} must be a Python list of strings, got {text!r}") from error


def _names(values: object, field: str, *, may_be_empty: bool = False) -> tuple[str, ...]:
    if not isinstance(values, list | tuple):
        raise TypeError(f"{field} must be a list of strings, got {values!r}")
    require(may_be_empty or len(values) > 0, field, "a list with at least one name", values)
    for value in values:
        require_name(value, field)
    return tuple(values)


def _text(entry: Mapping[str, Any], key: str, at: str) -> str | None:
    """Read an optional text; blank counts as a mistake for the question and as absent for the rest."""
    value = entry.get(key)
    if key == "question" and value is not None:
        require_name(value, f"{at}: question")
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{at}: {key} must be a string, got {value!r}")
    return value or None


def _lengths(value: object, field: str) -> RowLengths:
    if isinstance(value, dict):
        for name, tokens in value.items():
            require_count(tokens, f"{field}.{name}", at_least=1)
        return value
    if isinstance(value, list):
        for slot, tokens in enumerate(value):
            require_count(tokens, f"{field}[{slot}]", at_least=1)
        return tuple(value)
    require_count(value, field, at_least=1)
    assert isinstance(value, int), "checked on the line above"
    return value
