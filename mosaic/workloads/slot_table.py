"""Workloads from a published slot table: how many slots each expert holds over all questions."""

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

import numpy as np

from mosaic.core.checks import require, require_count, require_name, require_number, require_unique
from mosaic.core.workload import (
    OPTION_LETTERS,
    PROPOSE,
    AnswerKind,
    Call,
    CallKey,
    ExpertName,
    Question,
    Workload,
)

PARTS = ("test", "calibration")
Key = TypeVar("Key")


def slot_table_workload(
    *,
    name: str,
    num_questions: int,
    slots: Mapping[ExpertName, int],
    prompt_token_quantiles: Sequence[float],
    num_slots_per_question: int = 3,
    first_seen: Sequence[ExpertName] = (),
    template_tokens: int = 150,
    seed: int = 0,
    pool: Collection[ExpertName] | None = None,
    num_options: int | Mapping[int, int] | None = None,
    part: str = "test",
    num_calibration_questions: int = 350,
) -> Workload:
    """Draw a workload whose experts hold exactly the slots of the table.

    Which experts answer the same question is not published, so the slots are drawn from the totals. The draw is a
    permutation of all slots, except that the first ones follow ``first_seen``. Question lengths and the assignment come
    from two streams spawned from the seed, so a change to one never shifts the other.

    Parameters
    ----------
    name
        Of the workload; it also starts the questions' ids, so two workloads never share a call's draws.
    num_questions, num_slots_per_question
        Questions of the batch and experts recruited for each.
    slots
        Slots per expert; the sum must be ``num_questions * num_slots_per_question``.
    prompt_token_quantiles
        Tokens of a question at equally spaced probabilities from 0 to 1. The questions of a benchmark
        are a fixed set, so each of ``num_questions`` equal shares of the distribution is used once.
    first_seen
        Experts in the order in which the query stream first names them; experts left out follow as the
        draw has it.
    template_tokens
        Prompt tokens of a call beside the question's own.
    seed
        Of the two streams.
    pool
        Names that slots may use; None: any.
    num_options
        Options of every question, or by number of options the questions that have so many, in proportion; the right one
        is drawn from a third stream. None: answers are not compared.
    part
        ``test``, or ``calibration``: other questions of the same kind, with the slots in proportion.
    num_calibration_questions
        Questions of the calibration part.

    Raises
    ------
    ValueError, TypeError
        Naming the field, the rule and the value.

    Examples
    --------
    >>> workload = slot_table_workload(
    ...     name="tiny", num_questions=2, slots={"A": 4, "B": 2}, first_seen=["B", "A"], prompt_token_quantiles=[50, 50]
    ... )
    >>> workload.num_calls_by_expert
    {'B': 2, 'A': 4}
    """
    require_name(name, "workload.name")
    require_count(num_questions, "workload.num_questions", at_least=1)
    require_count(num_slots_per_question, "workload.num_slots_per_question", at_least=1)
    require_count(template_tokens, "workload.template_tokens")
    require_count(seed, "workload.seed")
    check_slots(slots, num_slots=num_questions * num_slots_per_question, pool=pool)
    require(part in PARTS, "workload.part", f"one of {list(PARTS)}", part)
    require_count(num_calibration_questions, "workload.num_calibration_questions", at_least=1)
    options = _check_options(num_options, num_questions)
    _check_first_seen(first_seen, slots)
    if part == "calibration":
        name, num_questions = f"{name}_calibration", num_calibration_questions
        options = scaled_slots(options, num_questions)
        slots = scaled_slots(slots, num_questions * num_slots_per_question)
        first_seen = [expert for expert in first_seen if slots[expert]]
    _check_quantiles(prompt_token_quantiles)
    streams = np.random.SeedSequence(seed).spawn(3)
    lengths_rng, slots_rng, options_rng = (np.random.default_rng(child) for child in streams)
    tokens = draw_question_tokens(prompt_token_quantiles, num_questions, lengths_rng)
    experts = iter(_draw_experts(slots, first_seen, slots_rng))
    questions = _make_questions(name, tokens, options, options_rng)
    prompts = ((question.id, question.prompt_tokens + template_tokens) for question in questions)
    calls = tuple(
        Call(CallKey(question, PROPOSE, slot), next(experts), prompt_tokens)
        for question, prompt_tokens in prompts
        for slot in range(num_slots_per_question)
    )
    return Workload(name=name, questions=questions, calls=calls)


def _check_options(num_options: int | Mapping[int, int] | None, num_questions: int) -> dict[int, int]:
    """Return how many questions have so many options; empty: answers are not compared."""
    field, most = "workload.num_options", len(OPTION_LETTERS)
    if num_options is None:
        return {}
    options = dict(num_options) if isinstance(num_options, Mapping) else {num_options: num_questions}
    for number, count in options.items():
        require_count(number, field, at_least=2, at_most=most)
        require_count(count, f"{field}.{number}")
    require(sum(options.values()) > 0, f"{field}: sum", "at least 1", 0)
    return scaled_slots(options, num_questions)


def scaled_slots(slots: Mapping[Key, int], num_slots: int) -> dict[Key, int]:
    """Scale a slot table to another total, by largest remainders.

    Examples
    --------
    >>> scaled_slots({"A": 5, "B": 4}, 6)
    {'A': 3, 'B': 3}
    """
    total = sum(slots.values())
    scaled = {expert: count * num_slots // total for expert, count in slots.items()}
    remainders = sorted(slots, key=lambda expert: -(slots[expert] * num_slots % total))
    for expert in remainders[: num_slots - sum(scaled.values())]:
        scaled[expert] += 1
    return scaled


def draw_question_tokens(quantiles: Sequence[float], num_questions: int, rng: np.random.Generator) -> list[int]:
    """Read the quantile grid at the middle of each equal share, in random order."""
    shares = (np.arange(num_questions) + 0.5) / num_questions
    grid = np.linspace(0.0, 1.0, len(quantiles))
    tokens = np.rint(np.interp(shares, grid, np.asarray(quantiles, dtype=float))).astype(int)
    result: list[int] = rng.permutation(tokens).tolist()
    return result


def _make_questions(
    name: str, tokens: Sequence[int], options: Mapping[int, int], rng: np.random.Generator
) -> tuple[Question, ...]:
    if not options:
        return tuple(Question(id=f"{name}-{i}", prompt_tokens=count) for i, count in enumerate(tokens))
    num_options = np.repeat(list(options), list(options.values()))
    if len(options) > 1:
        num_options = rng.permutation(num_options)
    right = rng.integers(num_options).tolist()
    return tuple(
        Question(
            id=f"{name}-{i}",
            prompt_tokens=count,
            answer=OPTION_LETTERS[option],
            answer_kind=AnswerKind.CHOICE,
            num_options=listed,
        )
        for i, (count, option, listed) in enumerate(zip(tokens, right, num_options.tolist(), strict=True))
    )


def check_slots(slots: Mapping[ExpertName, int], *, num_slots: int, pool: Collection[ExpertName] | None = None) -> None:
    """Check a slot table: known experts, counts of 0 or more, and the right total.

    Raises
    ------
    ValueError, TypeError
        Naming the entry, the rule and the value.
    """
    if not isinstance(slots, Mapping):
        raise TypeError(f"workload.slots must be a mapping of experts to counts, got {slots!r}")
    require(len(slots) > 0, "workload.slots", "a mapping with at least one expert", dict(slots))
    for expert, count in slots.items():
        require_name(expert, "workload.slots: expert")
        if pool is not None:
            require(expert in pool, "workload.slots: expert", f"one of the pool {sorted(pool)}", expert)
        require_count(count, f"workload.slots.{expert}")
    total = sum(slots.values())
    require(total == num_slots, "workload.slots: sum", f"num_questions x num_slots_per_question = {num_slots}", total)


def _check_first_seen(first_seen: Sequence[ExpertName], slots: Mapping[ExpertName, int]) -> None:
    if isinstance(first_seen, str) or not isinstance(first_seen, Sequence):
        raise TypeError(f"workload.first_seen must be a list of experts, got {first_seen!r}")
    holders = [expert for expert, count in slots.items() if count > 0]
    for expert in first_seen:
        require(expert in holders, "workload.first_seen", f"experts that hold slots, {holders}", expert)
    require_unique(first_seen, "workload.first_seen")


def _check_quantiles(quantiles: Sequence[float]) -> None:
    field = "workload.prompt_token_quantiles"
    if isinstance(quantiles, str) or not isinstance(quantiles, Sequence):
        raise TypeError(f"{field} must be a list of numbers, got {quantiles!r}")
    require(len(quantiles) >= 2, field, "a list of at least two numbers", list(quantiles))
    for value in quantiles:
        require_number(value, field, at_least=1)
    for below, above in pairwise(quantiles):
        require(below <= above, field, "a list that never falls", f"{below!r} before {above!r}")


def _draw_experts(
    slots: Mapping[ExpertName, int], first_seen: Sequence[ExpertName], rng: np.random.Generator
) -> list[ExpertName]:
    """List the expert of every slot: the first-seen order, then all other slots shuffled."""
    names = list(slots)
    left = np.array([slots[name] - (name in first_seen) for name in names])
    shuffled = rng.permutation(np.repeat(np.arange(len(names)), left))
    return [*first_seen, *(names[i] for i in shuffled.tolist())]
