"""Workloads from a file: questions, the experts recruited for them and, where recorded, what they wrote.

Formats, by the file's suffix:

``.jsonl``
    One object a line with the keys id, question, experts (names, repeats allowed), answer, category,
    skills, prompt_tokens and output_tokens. All but question are optional: a missing id is row-1, row-2 and so
    on; a prompt, messages of a chat or prompt_tokens may stand in for the question. output_tokens is one number
    for all slots, a list with one number per slot, or a mapping from experts to numbers.
    Or a line of OpenAI's batch format: custom_id, method, url, and a body with messages (or a prompt) and
    sampling; experts, answer, category and skills may stand beside. The body's model answers nothing, the pool does.
``.csv``
    Columns id, question (or prompt), answer, category, experts and skills, the latter two Python lists of strings.
    Or Symbolic-MoE's table: question, gold_answer, keywords and solvers. Other columns are ignored.
``.parquet``
    The columns of a line of ``.jsonl``; others are ignored.
``.json``
    A list of objects as in ``.jsonl``, or with the table's columns, as the benchmarks' question files have them; only
    the latter may have others, which are ignored.

Questions without experts are recruited by the router, if it has skill profiles, or drawn from a list of experts.
"""

import ast
import csv
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any, TypeAlias

from mosaic.core.chat import Message, Sampling, count_text_tokens
from mosaic.core.checks import AtLeast1, Name, check_fields, require, require_count, require_unique
from mosaic.core.workload import PROPOSE, Call, CallKey, ExpertName, Question, Workload
from mosaic.workloads.chat_rows import LINE_KEYS, is_batch_line, read_batch_line, read_messages
from mosaic.workloads.json_text import json_lines, json_object, parse_json, read_text
from mosaic.workloads.question_kind import question_kind
from mosaic.workloads.routing import Router, load_skill_profiles

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


def file_workload(
    *,
    path: str | Path,
    name: str = "file",
    profiles: str | Path | None = None,
    experts: Sequence[ExpertName] | None = None,
    num_slots_per_question: int = 3,
    template_tokens: int = 150,
    seed: int = 0,
    pool: Collection[ExpertName] | None = None,
) -> Workload:
    """Read a workload from a file.

    Parameters
    ----------
    path
        The file; its suffix names the format (see the module's docstring).
    name
        Of the workload.
    profiles
        JSON file with skill profiles (`routing.load_skill_profiles`) for the questions without experts; None: there
        are none.
    experts
        Who answers questions without experts where no profiles are: each question as many of them as it has slots, all
        different, drawn from the seed and the question's id; all where there are no more. None: no one.
    num_slots_per_question
        Experts that are recruited for a question; questions that name their experts keep them.
    template_tokens
        Prompt tokens of a call beside the question's own.
    seed
        Of the router's draws.
    pool
        Names that questions may use; None: any.

    Raises
    ------
    ValueError, TypeError
        Naming the file, the line or row, the field, the rule and the value.
    """
    require_count(template_tokens, "workload.template_tokens")
    require_count(seed, "workload.seed")
    rows = read_rows(path)
    questions = _make_questions(rows)
    slots = _recruit(rows, questions, profiles, experts, num_slots_per_question, seed)
    if pool is not None:
        _check_pool(rows, slots, pool)
    calls = tuple(
        Call(
            CallKey(question.id, PROPOSE, slot),
            expert,
            question.context_tokens + question.prompt_tokens + template_tokens,
        )
        for question, recruited in zip(questions, slots, strict=True)
        for slot, expert in enumerate(recruited)
    )
    return Workload(name=name, questions=questions, calls=calls, output_tokens=_recorded_lengths(rows, slots))


def _make_questions(rows: tuple[Row, ...]) -> tuple[Question, ...]:
    first_at: dict[str, str] = {}
    for row in rows:
        if row.id in first_at:
            raise ValueError(f"{row.at}: id must be unique, got {row.id!r}, which {first_at[row.id]} has too")
        first_at[row.id] = row.at
    return tuple(map(_make_question, rows))


def _make_question(row: Row) -> Question:
    try:
        kind, num_options, answer = question_kind(row.question, row.answer)
    except ValueError as error:
        raise ValueError(f"{row.at}: {error}") from error
    return Question(
        id=row.id,
        prompt_tokens=count_text_tokens(row.question or "") if row.prompt_tokens is None else row.prompt_tokens,
        text=row.question,
        answer=answer,
        category=row.category,
        skills=row.skills,
        answer_kind=kind,
        num_options=num_options,
        context=row.context,
        sampling=row.sampling,
    )


def _recruit(
    rows: tuple[Row, ...],
    questions: tuple[Question, ...],
    profiles: str | Path | None,
    experts: Sequence[ExpertName] | None,
    num_slots: int,
    seed: int,
) -> tuple[tuple[ExpertName, ...], ...]:
    """Keep the experts that a row names; let the router recruit for all others in one batch, or draw them."""
    open_rows = [row for row in rows if row.experts is None]
    if not open_rows:
        for field, given in (("profiles", profiles), ("experts", experts)):
            require(given is None, f"workload.{field}", "null where every line names its experts", given)
        return tuple(row.experts or () for row in rows)
    if experts is not None:
        require(profiles is None, "workload.profiles", "null where workload.experts says who answers", profiles)
        return tuple(row.experts or draw_experts(experts, row.id, num_slots, seed) for row in rows)
    if profiles is None:
        rule = "given, or workload.profiles must name the router's skill profiles, or workload.experts who answers"
        raise ValueError(f"{open_rows[0].at}: experts (solvers in a table) must be {rule}, got neither")
    router = Router(profiles=load_skill_profiles(profiles), num_slots=num_slots)
    routed = [question for row, question in zip(rows, questions, strict=True) if row.experts is None]
    recruited = iter(router.recruit_batch(routed, seed=seed))
    return tuple(next(recruited) if row.experts is None else row.experts for row in rows)


def draw_experts(experts: Sequence[ExpertName], question: str, num_slots: int, seed: int) -> tuple[ExpertName, ...]:
    """Draw so many different experts for a question, in the order of the list; all where there are no more.

    The draw follows from the seed and the question's id alone, so other questions do not change it.

    Examples
    --------
    >>> draw_experts(["A", "B"], "q1", 3, seed=0)
    ('A', 'B')
    """
    require_count(num_slots, "workload.num_slots_per_question", at_least=1)
    if isinstance(experts, str) or not experts:
        raise TypeError(f"workload.experts must be a list with at least one expert, got {experts!r}")
    require_unique(experts, "workload.experts")
    drawn = random.Random(f"{seed}|experts|{question}").sample(list(experts), min(num_slots, len(experts)))
    return tuple(expert for expert in experts if expert in drawn)


def _check_pool(rows: tuple[Row, ...], slots: tuple[tuple[ExpertName, ...], ...], pool: Collection[ExpertName]) -> None:
    for row, experts in zip(rows, slots, strict=True):
        for expert in experts:
            require(expert in pool, f"{row.at}: experts", f"of the pool {sorted(pool)}", expert)


def _recorded_lengths(rows: tuple[Row, ...], slots: tuple[tuple[ExpertName, ...], ...]) -> Mapping[CallKey, int] | None:
    """Collect the recorded lengths: on every row or on none, so that no run mixes them with drawn ones unseen."""
    lacking = [row for row in rows if row.output_tokens is None]
    if len(lacking) == len(rows):
        return None
    if lacking:
        raise ValueError(f"{lacking[0].at}: output_tokens must be on every line or on none, got none here")
    return {
        CallKey(row.id, PROPOSE, slot): tokens
        for row, experts in zip(rows, slots, strict=True)
        for slot, tokens in enumerate(_lengths_of_slots(row, experts))
    }


def _lengths_of_slots(row: Row, experts: tuple[ExpertName, ...]) -> tuple[int, ...]:
    given = row.output_tokens
    field = f"{row.at}: output_tokens"
    if isinstance(given, int):
        return (given,) * len(experts)
    if isinstance(given, tuple):
        require(len(given) == len(experts), field, f"a list of {len(experts)} numbers, one per slot", list(given))
        return given
    assert given is not None, "rows without lengths were refused before"
    for expert in experts:
        require(expert in given, field, f"a mapping that has expert {expert!r}", dict(given))
    return tuple(given[expert] for expert in experts)


def read_rows(path: str | Path) -> tuple[Row, ...]:
    """Read all questions of a file.

    Raises
    ------
    ValueError, TypeError
        Naming the file, the line or row, the field, the rule and the value.
    """
    readers = {".jsonl": json_lines, ".csv": _csv_entries, ".json": _json_entries, ".parquet": _parquet_entries}
    suffix = Path(path).suffix.lower()
    require(suffix in readers, "workload.path", f"a file ending in one of {list(readers)}", str(path))
    rows = tuple(_row(entry, number, at) for number, (at, entry) in enumerate(readers[suffix](path), start=1))
    require(len(rows) > 0, f"{path}", "a file with at least one question", "none")
    return rows


def _parquet_entries(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
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
        yield f"{path}, row {number}", {key: entry[key] for key in entry if key in (*KEYS, *STAND_INS)}


def _json_entries(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    entries = parse_json(read_text(path), str(path))
    if not isinstance(entries, list):
        raise TypeError(f"{path}: must be a list of questions, got {type(entries).__name__}")
    for number, value in enumerate(entries, start=1):
        at = f"{path}, row {number}"
        yield at, json_object(value, at)


def _csv_entries(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(StringIO(read_text(path), newline=""), strict=True)
    try:
        columns = reader.fieldnames or ()
        of_table = not set(columns).isdisjoint(TABLE_COLUMNS.values())
        names = TABLE_COLUMNS if of_table else {}
        question = "prompt" if "prompt" in columns and "question" not in columns else "question"
        require(question in columns, f"{path}: columns", "a superset of ['question']", list(columns))
        texts = [names.get(key, key) for key in ("answer", "category")] + ([] if of_table else ["id"])
        lists = [names.get(key, key) for key in ("skills", "experts")]
        for number, record in enumerate(reader, start=1):
            at = f"{path}, row {number}"
            if None in record or None in record.values():
                raise ValueError(f"{at}: must have {len(columns)} columns, like the header")
            entry: dict[str, Any] = {question: record[question]} | {
                key: record[key] for key in texts if record.get(key)
            }
            yield at, entry | {key: _parse_list(record, key, at) for key in lists if record.get(key)}
    except csv.Error as error:
        raise ValueError(f"{path}, after line {reader.line_num}: must be CSV ({error})") from error


def _parse_list(record: Mapping[str, str], key: str, at: str) -> object:
    """Evaluate a Python list literal; nothing but literals is accepted."""
    try:
        return ast.literal_eval(record[key].strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(f"{at}: {key} must be a Python list of strings, got {record[key]!r}") from error


def _row(entry: Mapping[str, Any], number: int, at: str) -> Row:
    """Turn an entry into a row: a line of OpenAI's batch format, or an object with our keys or with the table's."""
    if is_batch_line(entry):
        request = read_batch_line(entry, at)
        beside = {key: value for key, value in entry.items() if key not in LINE_KEYS}
        for key in beside:
            require(key in BESIDE, f"{at}: key", f"one of {[*LINE_KEYS, *BESIDE]}", key)
        given = {"custom_id": entry.get("custom_id"), "question": request.question, **beside}
        row = _checked(given, number, at, {"id": "custom_id"})
        return replace(row, context=request.context, sampling=request.sampling)
    columns: Mapping[str, str] = {}
    if not entry.keys().isdisjoint(TABLE_COLUMNS.values()):
        columns = TABLE_COLUMNS
        for key, column in columns.items():
            require(key not in entry or column not in entry, f"{at}: {key}", f"left out beside {column}", "both")
        entry = {key: value for key, value in entry.items() if key in (*KEYS, *STAND_INS, *columns.values())}
    stand_ins = [key for key in ("question", *STAND_INS) if entry.get(key) is not None]
    require(len(stand_ins) < 2, f"{at}: question", "given once, as question, prompt or messages", stand_ins)
    question = entry[stand_ins[0]] if stand_ins else None
    context: tuple[Message, ...] = ()
    if stand_ins == ["messages"]:
        question, context = read_messages(question, f"{at}: messages")
    others = {key: value for key, value in entry.items() if key not in STAND_INS}
    return replace(_checked(others | {"question": question}, number, at, columns), context=context)


def _checked(entry: Mapping[str, Any], number: int, at: str, columns: Mapping[str, str]) -> Row:
    """Check an entry; ``columns`` says how its file names what has another name here."""
    named = {key: columns.get(key, key) for key in KEYS}
    for key in entry:
        require(key in named.values(), f"{at}: key", f"one of {list(named.values())}", key)
    # A null is what a data frame writes for an absent value, and an empty text what a table has for one.
    given = {key: entry[name] for key, name in named.items() if entry.get(name) is not None}
    given = {key: value for key, value in given.items() if key not in ("answer", "category") or value != ""}
    require("question" in given or "prompt_tokens" in given, f"{at}: question", "given, or prompt_tokens", None)
    name = given.setdefault("id", f"row-{number}")
    if type(name) is int:
        given["id"] = str(name)
    row = Row(at=at, **given)
    check_fields(row, f"{at}: ", columns)
    require(row.experts != (), f"{at}: {named['experts']}", "a list with at least one name", [])
    lengths = row.output_tokens
    return row if lengths is None else replace(row, output_tokens=_lengths(lengths, f"{at}: {named['output_tokens']}"))


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
