"""Loads workloads from a file: questions, their recruited experts and, where recorded, output lengths.

A file has a question a line or row: `mosaic.workloads.files` reads it, `mosaic.workloads.rows` knows its names.
Questions without experts are recruited by the router, if it has skill profiles, or drawn from a list of experts.
"""

import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import Any

from mosaic.core.chat import count_text_tokens
from mosaic.core.checks import require, require_count, require_unique
from mosaic.core.workload import (
    OPTION_LETTERS,
    PROPOSE,
    AnswerKind,
    BadLine,
    Call,
    CallKey,
    ExpertName,
    Question,
    SourceLine,
    Workload,
)
from mosaic.workloads.files import Entry, open_file
from mosaic.workloads.question_kind import question_kind
from mosaic.workloads.routing import Router, load_skill_profiles
from mosaic.workloads.rows import FIELD_BY_NAME, NAMES, Row, present_values, read_row, unread_names

ANSWERS = {"number": AnswerKind.MATH, "choice": AnswerKind.CHOICE, "text": AnswerKind.TEXT}
"""Names of comparisons of answers, for users."""
_KIND_WORDS = {AnswerKind.MATH: "numbers", AnswerKind.CHOICE: "choices", AnswerKind.TEXT: "free text"}


class BadLines(StrEnum):
    """How unusable lines are handled."""

    REFUSE = "refuse"
    """The first of them is an error."""
    LEAVE_OUT = "leave_out"
    """They are left out, and the workload lists them; if no line is good, the first is an error."""


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
    question_column: str | None = None,
    answers: str | None = None,
    limit: int | None = None,
    bad_lines: str = BadLines.REFUSE,
) -> Workload:
    """Read a workload from a file.

    Parameters
    ----------
    path
        The file.
    name
        Of the workload.
    profiles
        JSON file with skill profiles (`routing.load_skill_profiles`) for the questions without experts; None: none.
    experts
        Experts for questions without experts, if there are no profiles; None: none. Each question gets as many as it
        has slots, all different, drawn from the seed and the question's id. If there are fewer, it gets all of them.
    num_slots_per_question
        Experts that are recruited for a question; questions that name their experts keep them.
    template_tokens
        Prompt tokens of a call beside the question's own.
    seed
        Of the router's draws.
    pool
        Names that questions may use; None: any.
    question_column
        Column or key that has the question; None: one of the usual names.
    answers
        How answers compare: ``number``, ``choice`` or ``text``; None: guessed for each question.
    limit
        Questions to read, from the start; None: all.
    bad_lines
        One of ``BadLines``.

    Raises
    ------
    ValueError, TypeError
        Naming the file, the line or row, the field, the rule and the value.
    """
    require_count(template_tokens, "workload.template_tokens")
    require_count(seed, "workload.seed")
    if limit is not None:
        require_count(limit, "workload.limit", at_least=1)
    require(answers is None or answers in ANSWERS, "workload.answers", f"one of {list(ANSWERS)}", answers)
    require(bad_lines in list(BadLines), "workload.bad_lines", f"one of {[*map(str, BadLines)]}", bad_lines)
    reader = _Reader(Path(path), is_strict=bad_lines == BadLines.REFUSE)
    rows = reader.rows(question_column, limit)
    questions = reader.questions(rows, None if answers is None else ANSWERS[answers], pool)
    reader.require_questions(questions)
    rows = [row for row in rows if row.id in questions]
    slots = _recruit(rows, tuple(questions.values()), profiles, experts, num_slots_per_question, seed)
    calls = tuple(
        Call(
            CallKey(question.id, PROPOSE, slot),
            expert,
            question.context_tokens + question.prompt_tokens + template_tokens,
        )
        for question, recruited in zip(questions.values(), slots, strict=True)
        for slot, expert in enumerate(recruited)
    )
    if answers is None:
        reader.notes += _guessed(rows, list(questions.values()))
    return Workload(
        name=name,
        questions=tuple(questions.values()),
        calls=calls,
        output_tokens=_recorded_lengths(rows, slots),
        bad_lines=tuple(sorted(reader.bad_lines, key=lambda line: line.number)),
        notes=tuple(reader.notes),
    )


class _Reader:
    """Reads the questions of a file, and collects bad lines and notes."""

    def __init__(self, path: Path, *, is_strict: bool) -> None:
        self._path = path
        self._is_strict = is_strict
        self.bad_lines: list[BadLine] = []
        self.notes: list[str] = []

    def rows(self, question_column: str | None, limit: int | None) -> list[Row]:
        """Read the rows; empty ones and unknown names are skipped, and noted."""
        source = open_file(self._path)
        self.notes += source.notes
        found: dict[str, Row] = {}
        unread: dict[tuple[str, ...], list[str]] = {}
        num_empty = ordinal = 0
        for entry in source.entries:
            values = present_values(entry.values)
            if entry.problem is None and not values:
                num_empty += 1
                continue
            if ordinal == limit:
                break
            ordinal += 1
            body = values.get("body")
            names = (*entry.values, *(body if isinstance(body, Mapping) else ()))
            if names not in unread:
                unread[names] = unread_names(entry.values, question_column)
            try:
                row = _new_row(entry._replace(values=values), ordinal, question_column, found)
                found[row.id] = row
            except (ValueError, TypeError) as error:
                self._set_aside(error, entry.number, _own_id(values, found))
        self.notes += _left_out(self._path.name, num_empty, list(dict.fromkeys(chain(*unread.values()))))
        return list(found.values())

    def questions(
        self, rows: Sequence[Row], wanted: AnswerKind | None, pool: Collection[ExpertName] | None
    ) -> dict[str, Question]:
        """Make questions of rows, by id."""
        base = first_position(rows)
        made: dict[str, Question] = {}
        for row in rows:
            try:
                made[row.id] = _question(row, base, wanted, pool)
            except (ValueError, TypeError) as error:
                self._set_aside(error, row.number, row.id)
        return made

    def require_questions(self, questions: Collection[str]) -> None:
        """Check that there is something to ask."""
        if questions:
            return
        if not self.bad_lines:
            raise ValueError(f"{self._path}: must be a file with at least one question, got none")
        others = f"; none of its {len(self.bad_lines):,} lines can be used" if len(self.bad_lines) > 1 else ""
        raise ValueError(self.bad_lines[0].reason + others)

    def _set_aside(self, error: ValueError | TypeError, number: int, name: str | None) -> None:
        """Record the problem of a line, unless the first such line is an error."""
        if self._is_strict:
            raise error
        self.bad_lines.append(BadLine(number, name, str(error)))


def _own_id(values: Mapping[str, Any], found: Collection[str]) -> str | None:
    """Return an entry's own id; None: it has none, or another row has it."""
    given = next((str(values[name]) for name in NAMES["id"] if name in values), None)
    return None if given in found else given


def _new_row(entry: Entry, ordinal: int, question_column: str | None, found: Mapping[str, Row]) -> Row:
    if entry.problem is not None:
        raise ValueError(entry.problem)
    row = read_row(entry, ordinal, question_column)
    if row.id in found:
        raise ValueError(f"{row.at}: id must be unique, got {row.id!r}, which {found[row.id].at} has too")
    return row


def _question(row: Row, base: int, wanted: AnswerKind | None, pool: Collection[ExpertName] | None) -> Question:
    if pool is not None:
        for expert in row.experts or ():
            require(expert in pool, f"{row.at}: experts", f"of the pool {sorted(pool)}", expert)
    gold = row.answer
    if row.position is not None:
        last = base + len(row.options or OPTION_LETTERS) - 1
        rule = f"the position of an option, {base} to {last}"
        require(base <= row.position <= last, f"{row.at}: answer", rule, row.position)
        gold = OPTION_LETTERS[row.position - base]
    try:
        kind, num_options, answer = question_kind(row.question, gold, options=row.options, wanted=wanted)
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
        source=SourceLine(row.at, row.number),
    )


def first_position(rows: Sequence[Row]) -> int:
    """Return whether a file counts the positions of its answers from 0 or from 1.

    From 1 if no answer has the position 0, and one has the number of its options; otherwise from 0.
    """
    given = [(row.position, len(row.options)) for row in rows if row.position is not None]
    return int(all(position for position, _ in given) and any(position == count for position, count in given))


def _left_out(name: str, num_empty: int, unread: Sequence[str]) -> list[str]:
    """Describe in one line the unused parts of a file."""
    named = [_with_meant(key) for key in unread]
    parts = [", ".join(named)] if named else []
    parts += [f"{num_empty:,} empty row{'s' * (num_empty > 1)}"] if num_empty else []
    return [f"{name}: ignored {' and '.join(parts)}"] if parts else []


def _with_meant(key: str) -> str:
    """Add the name that was probably meant."""
    close = get_close_matches(key.lower(), FIELD_BY_NAME, n=1, cutoff=0.8)
    return key if not close or key.lower() in FIELD_BY_NAME else f"{key} (is {close[0]} meant?)"


def _guessed(rows: Sequence[Row], questions: Sequence[Question]) -> list[str]:
    """Describe in one line the guessed comparison of answers, if the file does not define it."""
    counts = Counter(question.answer_kind for question in questions)
    has_positions = any(row.position is not None for row in rows)
    where = f"answers: positions of options, counted from {first_position(rows)} (guessed; letters leave no doubt)"
    notes = [where] if has_positions else []
    if all(row.options for row in rows):
        return notes
    words = [_KIND_WORDS[kind] if len(counts) == 1 else f"{n:,} as {_KIND_WORDS[kind]}" for kind, n in counts.items()]
    others = "|".join(word for word, kind in ANSWERS.items() if set(counts) != {kind})
    return [*notes, f"answers: {', '.join(words)} (guessed; --answers {others} says otherwise)"]


def _recruit(
    rows: Sequence[Row],
    questions: tuple[Question, ...],
    profiles: str | Path | None,
    experts: Sequence[ExpertName] | None,
    num_slots: int,
    seed: int,
) -> tuple[tuple[ExpertName, ...], ...]:
    """Keep the experts that a row names; recruit all others with the router in one batch, or draw them."""
    open_rows = [row for row in rows if row.experts is None]
    if not open_rows:
        require(profiles is None, "workload.profiles", "null where every line names its experts", profiles)
        return tuple(row.experts or () for row in rows)
    if experts is not None:
        require(profiles is None, "workload.profiles", "null where workload.experts names the experts", profiles)
        return tuple(row.experts or draw_experts(experts, row.id, num_slots, seed) for row in rows)
    if profiles is None:
        rule = "given, or workload.profiles must name the router's skill profiles, or workload.experts who answers"
        raise ValueError(f"{open_rows[0].at}: experts (solvers in a table) must be {rule}, got neither")
    router = Router(profiles=load_skill_profiles(profiles), num_slots=num_slots)
    routed = [question for row, question in zip(rows, questions, strict=True) if row.experts is None]
    recruited = iter(router.recruit_batch(routed, seed=seed))
    return tuple(next(recruited) if row.experts is None else row.experts for row in rows)


def draw_experts(experts: Sequence[ExpertName], question: str, num_slots: int, seed: int) -> tuple[ExpertName, ...]:
    """Draw so many different experts for a question, in the order of the list; all if there are no more.

    The draw depends only on the seed and the question's id, so other questions do not change it.

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


def _recorded_lengths(rows: Sequence[Row], slots: tuple[tuple[ExpertName, ...], ...]) -> Mapping[CallKey, int] | None:
    """Collect the recorded lengths: on every row or on none, so that a run never mixes them with drawn ones."""
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
