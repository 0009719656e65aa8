"""Reads and writes calibration answers: a parquet table with one row per (question, slot), and their context.

Lengths, and the aggregator's answers without each response, are columns of their own if the run had them. The table's
metadata describe the run (``CalibrationContext``). A promise made from the answers holds for this pipeline and pool,
and for other questions than these.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from mosaic.core.checks import require, require_name
from mosaic.core.workload import Expert, Question, Workload
from mosaic.pipelines.node import Node
from mosaic.pipelines.rules.ballot import Ballot, Vote
from mosaic.pipelines.rules.calibration_answers import CalibrationQuestion, Observed
from mosaic.pipelines.rules.rule import Promised, Rule

if TYPE_CHECKING:
    import pyarrow as pa

CalibrationContext: TypeAlias = Mapping[str, str]
"""All settings that answers depend on, except the questions and the seed: name and value."""

METADATA_KEY = b"mosaic.setting"
"""Key in the metadata of the parquet table."""
ANSWERS, EXPERT = "answers", "expert "
_MOST_NAMED = 3

_OF_QUESTION = {
    "question": "string", "aggregator_answer": "string", "aggregator_correct": "bool", "comparable": "bool",
    "gold": "string", "answer_kind": "string", "num_options": "int32", "skills": "list", "prompt_tokens": "int64",
}  # fmt: skip
"""Columns that are equal in all rows of a question, with their types."""
_OF_SLOT = {"slot": "int32", "expert": "string", "answer": "string", "correct": "bool"}
_OBSERVED = dict.fromkeys(Observed._fields, "int64") | {"left_out_answer": "string", "left_out_correct": "bool"}
"""Optional columns of a table."""
_MAY_BE_NULL = frozenset({"answer", "aggregator_answer", "gold", "num_options", *_OBSERVED})


def encode_calibration_answers(questions: Sequence[CalibrationQuestion], context: CalibrationContext) -> bytes:
    """Encode as parquet, one row per (question, slot), without the questions' texts and categories."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [row for question in questions for row in _rows(question)]
    schema = _schema(is_observed=any(question.observed for question in questions))
    sink = pa.BufferOutputStream()
    metadata = {METADATA_KEY: json.dumps(context).encode()}
    pq.write_table(pa.Table.from_pylist(rows, schema=schema.with_metadata(metadata)), sink)
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
    rows = [
        {**shared, "slot": slot, "expert": vote.expert, "answer": vote.answer, "correct": correct}
        for slot, (vote, correct) in enumerate(votes)
    ]
    return [row | seen._asdict() for row, seen in zip(rows, graded.observed, strict=True)] if graded.observed else rows


def load_calibration_answers(path: str | Path, key: str = "gate.calibration") -> tuple[CalibrationQuestion, ...]:
    """Read the table, questions in first-seen order.

    Raises
    ------
    ValueError, TypeError
        Naming the file, and the question or column, the rule and the value.
    """
    if not isinstance(path, Path):
        require_name(path, key)
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
            schema = _schema(is_observed=all(name in names for name in _OBSERVED))
            missing = [name for name in schema.names if name not in names]
            require(not missing, "columns", f"a superset of {schema.names}, {missing} are missing", names)
            table = file.read(columns=schema.names).select(schema.names).cast(schema)
            rows: list[dict[str, Any]] = table.to_pylist()
            return rows
    except pa.ArrowException as error:
        raise ValueError(f"must be a parquet table of calibration answers ({error})") from error


def _require_given(row: Mapping[str, Any]) -> None:
    """Check that no required value is null."""
    for name, value in row.items():
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


def _observed(rows: Sequence[Mapping[str, Any]]) -> tuple[Observed, ...]:
    """Rebuild the observations beside the answers; empty if a call was not observed to its end."""
    seen = [Observed._make(row.get(name) for name in _OBSERVED) for row in rows]
    is_whole = all(value is not None for one in seen for value in one._replace(left_out_answer=""))
    return tuple(seen) if is_whole else ()


def _schema(*, is_observed: bool) -> "pa.Schema":
    import pyarrow as pa

    columns = _OF_QUESTION | _OF_SLOT | (_OBSERVED if is_observed else {})
    # NOTE: no column is declared free of nulls: a null is reported with its question, not by the cast.
    types = {
        name: pa.list_(pa.string()) if kind == "list" else pa.type_for_alias(kind) for name, kind in columns.items()
    }
    return pa.schema([*types.items()])


def describe_context(
    workload: Workload, experts: Sequence[Expert], nodes: Sequence[Node], *, benchmark: str, answers: str
) -> CalibrationContext:
    """Describe the settings that a run's answers depend on.

    Parameters
    ----------
    workload
        Its questions are not part of it: calibration questions are others of the same benchmark.
    experts
        The pool. Of an expert, only what answers depend on counts: its placement does not.
    nodes
        Nodes of the call graph: what the gate reads, and the experts that answer if it does not skip.
    benchmark
        Name that all parts of the workload share.
    answers
        Their source: measured, or the source of the simulated world's answers.
    """
    num_slots = max(Counter(call.key.question for call in workload.calls).values())
    return {
        "workload": benchmark,
        ANSWERS: answers,
        **{f"node {node.name}": _describe_node(node, num_slots) for node in nodes},
        **{f"{EXPERT}{expert.name}": _describe_expert(expert) for expert in experts},
    }


def load_context(path: str | Path) -> CalibrationContext:
    """Read the context of a file of calibration answers.

    Raises
    ------
    ValueError
        If the file has none.
    """
    import pyarrow.parquet as pq

    text = (pq.read_schema(path).metadata or {}).get(METADATA_KEY)
    if text is None:
        raise ValueError(
            f"gate.calibration must say what its answers are of (workload, nodes, experts), got {path}, which does "
            "not: an earlier version wrote it, or another tool. Make it again, with gate=never"
        )
    context: dict[str, str] = json.loads(text)
    return context


def name_differences(there: CalibrationContext, here: CalibrationContext) -> str:
    """Describe how two contexts differ; empty: they are equal.

    Examples
    --------
    >>> name_differences({"workload": "mmlu_pro", "answers": "fitted"}, {"workload": "gpqa", "answers": "fitted"})
    "workload is 'mmlu_pro' there and 'gpqa' here"
    """
    keys = [key for key in {**here, **there} if here.get(key) != there.get(key)]
    named = [f"{key} is {there.get(key, 'absent')!r} there and {here.get(key, 'absent')!r} here" for key in keys]
    more = f" (and {len(keys) - _MOST_NAMED} more)" if len(keys) > _MOST_NAMED else ""
    return "; ".join(named[:_MOST_NAMED]) + more


def check_rule(rule: Rule, context: CalibrationContext) -> None:
    """Check that a rule was calibrated on answers of this pipeline.

    A promise depends on the whole context. Weighted votes promise nothing, and read only the answers of this run's
    experts. Other questions and another aggregator give the same reliabilities.

    Raises
    ------
    ValueError
        If it was calibrated on another one.
    """
    path = rule.calibration_path()
    if path is None:
        return
    there, key = load_context(path), f"{rule.key}.calibration"
    if rule.promise() is None:
        known = {ANSWERS, *(name for name in context if name.startswith(EXPERT) and name in there)}
        there, context = ({name: one[name] for name in one if name in known} for one in (there, context))
    check_same_context(key, path, there, context, "exit=never gate=never" if rule.is_exit else "gate=never")


def check_same_context(key: str, path: str, there: CalibrationContext, here: CalibrationContext, again: str) -> None:
    """Check that calibration answers come from this pipeline."""
    if differences := name_differences(there, here):
        raise ValueError(
            f"{key} must hold answers of what runs here, got {path}: {differences}. What was learned there does not "
            f"hold here. Make it again: this command with {again} and other questions (of a published workload: "
            "workload.part=calibration)"
        )


def check_other_questions(key: str, promised: Promised | None, questions: Iterable[Question]) -> None:
    """Check that a promise was not calibrated on the batch's own questions."""
    shared = [] if promised is None else [one.id for one in questions if one.id in promised.question_ids]
    if shared:
        raise ValueError(
            f"{key} must hold other questions than the batch, got {len(shared)} of the batch's own, "
            f"{shared[0]!r} among them: it promises nothing for questions that it was calibrated on. A published "
            "workload gives others with workload.part=calibration gate=never"
        )


def _describe_expert(expert: Expert) -> str:
    return (
        f"{expert.checkpoint}, temperature {expert.temperature:g}, max_output_tokens {expert.max_output_tokens}, "
        f"context_tokens {expert.context_tokens}"
    )


def _describe_node(node: Node, num_slots: int) -> str:
    who = ", ".join(expert.name for expert in node.experts) or f"up to {num_slots} recruited experts"
    return f"{who} after {', '.join(node.after)}, {node.when}" if node.after else who
