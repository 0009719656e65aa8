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
    A list of objects, either with the keys of a line above (a missing id is row-1, row-2 and so on), or with the
    table's columns, as the benchmarks' question files have them; only the latter may have others, which are ignored.

Questions without experts are recruited by the router, if it has skill profiles, or drawn from a list of experts.
"""

import random
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from mosaic.core.chat import count_text_tokens
from mosaic.core.checks import require, require_count, require_unique
from mosaic.core.workload import PROPOSE, Call, CallKey, ExpertName, Question, Workload
from mosaic.workloads.question_files import Row, read_rows
from mosaic.workloads.question_kind import question_kind
from mosaic.workloads.routing import Router, load_skill_profiles


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
        prompt_tokens=_question_tokens(row),
        text=row.question,
        answer=answer,
        category=row.category,
        skills=row.skills,
        answer_kind=kind,
        num_options=num_options,
        context=row.context,
        sampling=row.sampling,
    )


def _question_tokens(row: Row) -> int:
    return count_text_tokens(row.question or "") if row.prompt_tokens is None else row.prompt_tokens


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
