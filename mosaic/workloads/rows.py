"""Turns an entry of a file into a row: a question, under the names that people and data sets have for its parts.

An entry is a line of OpenAI's batch format, or has any of ``NAMES``, in capitals or not. The columns of Symbolic-MoE,
MMLU-Pro, MMLU, MedMCQA, GSM8K, ARC and OpenBookQA are among them.
"""

import ast
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

from mosaic.core.chat import Message, Sampling
from mosaic.core.checks import AtLeast1, Name, check_fields, require, require_count
from mosaic.core.workload import OPTION_LETTERS, ExpertName
from mosaic.workloads.chat_rows import LINE_KEYS, read_batch_line, read_messages, unread_keys
from mosaic.workloads.files import Entry
from mosaic.workloads.question_kind import listed_options

RowLengths: TypeAlias = int | tuple[int, ...] | Mapping[ExpertName, int]
"""Output tokens of a row: the same for all slots, one per slot, or one per expert."""

NAMES: Mapping[str, tuple[str, ...]] = {
    "id": ("id", "custom_id", "question_id"),
    "question": ("question", "prompt", "messages", "query", "problem", "question_stem"),
    "options": ("options", "choices"),
    "answer": ("answer", "gold_answer", "answerkey", "answer_key", "correct_answer", "ground_truth", "gold", "target"),
    "position": ("answer_index", "answer_idx", "cop"),
    "category": ("category", "subject", "subject_name"),
    "skills": ("skills", "keywords"),
    "experts": ("experts", "solvers"),
    "prompt_tokens": ("prompt_tokens",),
    "output_tokens": ("output_tokens",),
}
"""What the parts of a question are called; of several names that a row has the first counts."""
GIVEN_ONCE = frozenset((*NAMES["question"], "answer", "gold_answer"))
"""Names of which two, of one part, would be two different things."""
FIELD_BY_NAME = {name: field for field, names in NAMES.items() for name in names}
_LISTS = ("options", "skills", "experts")
_OPTION_COLUMN = re.compile(r"(?:(?:option|choice|opt|op)[ _-]?)?([a-z])")
"""A column for each option: A and B, option_a and option_b, opa and opb."""
_WHOLE = re.compile(r"(\d+)(?:\.0)?")
_AFTER_REASONING = re.compile(r".*####\s*(\S.*?)\s*", re.DOTALL)
"""GSM8K's answers: the reasoning, ``####``, and what it comes to."""


class Options(NamedTuple):
    """What a question may be answered with."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    """What its file calls them."""


NO_OPTIONS = Options((), ())


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One question as its file gives it."""

    at: str
    """File and line, for messages."""
    number: int
    id: Name
    question: Name | None = None
    """With its options, if it has any."""
    experts: tuple[Name, ...] | None = None
    """None: not recruited yet."""
    answer: Name | None = None
    position: int | None = None
    """Of the answer among the options, where the file gives that; counted from 0 or 1."""
    options: tuple[Name, ...] = ()
    category: Name | None = None
    skills: tuple[Name, ...] = ()
    prompt_tokens: AtLeast1 | None = None
    output_tokens: RowLengths | None = None
    context: tuple[Message, ...] = ()
    sampling: Sampling | None = None


def read_row(entry: Entry, ordinal: int, question_column: str | None = None) -> Row:
    """Read a question from an entry.

    Parameters
    ----------
    entry
        With its ``present_values``, of which there are some.
    ordinal
        Of the questions of its file: names those without an id.
    question_column
        Where the question is; None: under one of its usual names.

    Raises
    ------
    ValueError, TypeError
        Naming the file, the line, the field, the rule and the value.
    """
    at, values = entry.at, entry.values
    context: tuple[Message, ...] = ()
    sampling: Sampling | None = None
    if is_batch_line(values, question_column):
        request = read_batch_line(values, at)
        context, sampling = request.context, request.sampling
        values = {key: value for key, value in values.items() if key not in LINE_KEYS[1:]}
        found = _by_field(values, at, None) | {"question": ("body", request.question)}
    else:
        found = _by_field(values, at, question_column)
    if "question" not in found and "prompt_tokens" not in found:
        usual = [question_column] if question_column else list(NAMES["question"])
        rule = f"in one of the columns or keys {usual}, or --question-column names it"
        raise ValueError(f"{at}: question must be {rule}, got {list(entry.values)}")
    given = {field: value for field, (_, value) in found.items()}
    if isinstance(given.get("question"), list):
        given["question"], context = read_messages(given["question"], f"{at}: {found['question'][0]}")
    names: dict[str, str] = {field: name for field, (name, _) in found.items()}
    fields = _fields(given, names, values, f"{at}: ", ordinal)
    row = Row(at=at, number=entry.number, context=context, sampling=sampling, **fields)
    check_fields(row, f"{at}: ", names)
    require(row.experts != (), f"{at}: {names.get('experts', 'experts')}", "a list with at least one name", [])
    return replace(row, question=with_options(row.question, row.options)) if row.options else row


def is_batch_line(names: Collection[str], question_column: str | None = None) -> bool:
    """Return whether an entry with these names is a line of a batch file."""
    has_question = question_column is not None or bool(set(NAMES["question"]).intersection(names))
    return "body" in names or ("custom_id" in names and not has_question)


def present_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Give the values that are there, by their names in small letters.

    A null or NaN is what a data frame writes for an absent value, and an empty text what a table has for one.
    """
    return {key.strip().lower(): value for key, value in values.items() if not _is_absent(value)}


def _is_absent(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip()) or (value != value)


def unread_names(values: Mapping[str, Any], question_column: str | None = None) -> list[str]:
    """List the names of an entry that no part of a question has."""
    names = {name: name.strip().lower() for name in values}
    keys = frozenset(names.values())
    is_line = is_batch_line(keys, question_column)
    known = {*_field_by_name(question_column), *(LINE_KEYS if is_line else ()), *option_columns(keys)}
    unread = [name for name, key in names.items() if key not in known]
    return [*unread, *unread_keys(values.get("body"))] if is_line else unread


@lru_cache(maxsize=64)
def _field_by_name(question_column: str | None) -> Mapping[str, str]:
    if question_column is None:
        return FIELD_BY_NAME
    others = {name: field for name, field in FIELD_BY_NAME.items() if field != "question"}
    return others | {question_column.strip().lower(): "question"}


def _by_field(values: Mapping[str, Any], at: str, question_column: str | None) -> dict[str, tuple[str, Any]]:
    """Find the parts of a question under their names: the name, and the value."""
    fields, found = _field_by_name(question_column), dict[str, tuple[str, Any]]()
    for name, value in values.items():
        field = fields.get(name)
        if field is None:
            continue
        if field in found:
            other = found[field][0]
            what_to_do = "; --question-column names the one to ask" if field == "question" else ""
            require(not {name, other} <= GIVEN_ONCE, f"{at}: {field}", f"given once{what_to_do}", [other, name])
            if NAMES[field].index(other) < NAMES[field].index(name):
                continue
        found[field] = (name, value)
    return found


def _fields(
    given: Mapping[str, Any], names: Mapping[str, str], values: Mapping[str, Any], label: str, ordinal: int
) -> dict[str, Any]:
    """Turn what a file has for the parts of a question into what a row has."""
    fields = dict(given)
    for field in _LISTS:
        if isinstance(fields.get(field), str):
            fields[field] = _read_list(fields[field], is_options=field == "options")
    options = read_options(fields.pop("options", None), label + names.get("options", "options"))
    if not options.texts:
        options = _options_of_columns(values)
    fields["id"] = _as_text(fields.get("id", f"row-{ordinal}"))
    fields["category"] = _as_text(fields.get("category"))
    fields["options"] = options.texts
    fields |= _answer(fields, options, label + names.get("answer", names.get("position", "answer")))
    for field in ("prompt_tokens", "output_tokens"):
        if isinstance(fields.get(field), str):
            fields[field] = read_literal(fields[field])
    if "output_tokens" in fields:
        fields["output_tokens"] = _lengths(fields["output_tokens"], f"{label}output_tokens")
    return fields


def read_literal(text: str) -> Any:
    """Read what a cell of a table holds: JSON, or a literal of Python; else it is the text itself.

    Examples
    --------
    >>> read_literal('["red", "green"]'), read_literal("['red']"), read_literal("red")
    (['red', 'green'], ['red'], 'red')
    """
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return text


def _read_list(text: str, *, is_options: bool) -> Any:
    """Read a list from a text: a literal, names between commas or semicolons, or options behind their letters."""
    value = read_literal(text)
    if isinstance(value, list | dict):
        return value
    return listed_options(text) or text if is_options else [part.strip() for part in re.split("[,;]", text)]


def _as_text(value: Any) -> Any:
    """Write a number as people do: 3 for 3.0, which is what a column with gaps holds."""
    if isinstance(value, str | list | Mapping | None):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.0f}" if isinstance(value, float) and value.is_integer() else str(value)


# Options and answers.


def read_options(given: Any, field: str) -> Options:
    """Read options: a list of texts, one of objects with label and text, or an object of labels and texts.

    Raises
    ------
    ValueError, TypeError
        Naming the field, the rule and the value.
    """
    if given is None or given == []:
        return NO_OPTIONS
    if isinstance(given, Mapping) and {"text", "label"} <= given.keys():  # as ARC has them
        labels, texts = given["label"], given["text"]
    elif isinstance(given, Mapping):
        present = {label: text for label, text in given.items() if text is not None}
        labels, texts = list(present), list(present.values())
    elif isinstance(given, list) and all(isinstance(each, Mapping) and "text" in each for each in given):
        texts = [each["text"] for each in given]
        labels = [each.get("label", letter) for each, letter in zip(given, OPTION_LETTERS, strict=False)]
    else:
        labels, texts = list(OPTION_LETTERS), given
    if not isinstance(texts, list):
        raise TypeError(f'{field} must be a list of texts, such as ["red", "green"], got {given!r}')
    rule = f'a list of 2 to {len(OPTION_LETTERS)} texts, such as ["red", "green"]'
    require(2 <= len(texts) <= len(OPTION_LETTERS), field, rule, given)
    return Options(tuple(map(_as_text, texts)), tuple(map(str, labels)))


@lru_cache(maxsize=64)
def option_columns(keys: frozenset[str]) -> tuple[str, ...]:
    """Find the columns of a table that has one for each option, in order; empty where it has none.

    Examples
    --------
    >>> option_columns(frozenset(("question", "opa", "opb", "cop")))
    ('opa', 'opb')
    """
    by_letter = {match[1]: key for key in sorted(keys) if (match := _OPTION_COLUMN.fullmatch(key))}
    columns: list[str] = []
    for letter in OPTION_LETTERS.lower():
        if letter not in by_letter:
            break
        columns.append(by_letter[letter])
    return tuple(columns) if len(columns) > 1 else ()


def _options_of_columns(values: Mapping[str, Any]) -> Options:
    texts = [_as_text(values[column]) for column in option_columns(frozenset(values))]
    return Options(tuple(texts), tuple(OPTION_LETTERS)) if texts else NO_OPTIONS


def with_options(question: str | None, options: Sequence[str]) -> str | None:
    """Write the options below a question, unless it lists as many itself."""
    if question is None or len(listed_options(question)) == len(options):
        return question
    lines = [f"({letter}) {option}" for letter, option in zip(OPTION_LETTERS, options, strict=False)]
    return "\n".join((question, "Options:", *lines))


def _answer(fields: Mapping[str, Any], options: Options, field: str) -> dict[str, Any]:
    """Read the right answer: a text, or a position among the options."""
    answer, position = fields.get("answer"), fields.get("position")
    if answer is None and position is None:
        return {"answer": None, "position": None}
    if answer is None:
        whole = _WHOLE.fullmatch(str(position).strip())
        return {"answer": None if whole else _as_text(position), "position": int(whole[1]) if whole else None}
    if isinstance(answer, list | Mapping):
        raise TypeError(f"{field} must be a text or a number, got {answer!r}; a question needs no answer")
    is_number = isinstance(answer, int | float) and not isinstance(answer, bool)
    text = _as_text(answer)
    if match := _AFTER_REASONING.fullmatch(text):
        return {"answer": match[1], "position": None}
    labels = {label.casefold(): letter for label, letter in zip(options.labels, OPTION_LETTERS, strict=False)}
    if options.texts and not is_number and text.strip().casefold() in labels:
        return {"answer": labels[text.strip().casefold()], "position": None}
    whole = _WHOLE.fullmatch(text.strip())
    if options.texts and whole and (is_number or text.strip() not in options.texts):
        return {"answer": None, "position": int(whole[1])}
    return {"answer": text, "position": None}


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
