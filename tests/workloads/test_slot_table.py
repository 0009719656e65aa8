"""Slot tables: options with a right one, and calibration questions in proportion to the test's."""

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from mosaic.core.workload import OPTION_LETTERS, AnswerKind, Workload
from mosaic.workloads.slot_table import draw_question_tokens, scaled_slots, slot_table_workload

SLOTS = {"A": 5, "B": 3, "C": 1, "D": 0}
MANY: dict[str, Any] = {"num_questions": 1000, "slots": {"A": 2000, "B": 1000}}


def make_table(**changes: Any) -> Workload:
    arguments = {"name": "t", "num_questions": 3, "slots": SLOTS, "prompt_token_quantiles": [10, 20, 90], **changes}
    return slot_table_workload(**arguments)


def shape(workload: Workload) -> list[tuple[str, int]]:
    """Who answers and how long the prompts are, whatever the questions are called."""
    return [(call.expert, call.prompt_tokens) for call in workload.calls]


# Who answers, and how long questions are


def test_questions_use_each_equal_share_of_the_length_distribution_once() -> None:
    # Shares 1/6, 1/2, 5/6 of a grid at 0, 1/2, 1.
    assert sorted(question.prompt_tokens for question in make_table(seed=5).questions) == [13, 20, 67]
    drawn = draw_question_tokens([10, 20, 90], 1000, np.random.default_rng(0))
    assert sum(drawn) / 1000 == pytest.approx((15 + 55) / 2, abs=0.1)


def test_equal_seeds_give_equal_workloads_and_streams_are_independent() -> None:
    assert make_table(seed=1) == make_table(seed=1)
    many: dict[str, Any] = {"num_questions": 60, "slots": {"A": 100, "B": 80}}
    first, other = make_table(seed=1, **many), make_table(seed=2, **many)
    assert [call.expert for call in first.calls] != [call.expert for call in other.calls]
    # Other lengths leave the assignment as it is.
    longer = make_table(seed=1, **many, prompt_token_quantiles=[500, 600])
    assert [call.expert for call in first.calls] == [call.expert for call in longer.calls]


def test_an_expert_may_hold_several_slots_of_a_question() -> None:
    workload = make_table(num_questions=100, slots={"A": 250, "B": 50})
    by_question: dict[str, list[str]] = {}
    for call in workload.calls:
        by_question.setdefault(call.key.question, []).append(call.expert)
    assert ["A", "A", "A"] in by_question.values()


# Options


def test_without_options_answers_are_not_compared() -> None:
    for question in make_table().questions:
        assert (question.answer_kind, question.num_options, question.answer) == (AnswerKind.TEXT, None, None)


@pytest.mark.parametrize("num_options", [2, 10, 26])
def test_the_right_option_is_each_of_them_equally_often(num_options: int) -> None:
    questions = make_table(**MANY, num_options=num_options).questions
    assert {(question.answer_kind, question.num_options) for question in questions} == {
        (AnswerKind.CHOICE, num_options)
    }
    counts = Counter(question.answer for question in questions)
    assert set(counts) == set(OPTION_LETTERS[:num_options])
    assert chisquare([counts[letter] for letter in OPTION_LETTERS[:num_options]]).pvalue > 1e-3


def test_questions_may_differ_in_how_many_options_they_have() -> None:
    questions = make_table(**MANY, num_options={3: 1, 10: 2}).questions
    counts = Counter(question.num_options for question in questions)
    assert counts[3] + counts[10] == len(questions)
    assert abs(counts[10] - 2 * counts[3]) <= 2, "in proportion"
    assert all(question.answer in OPTION_LETTERS[: question.num_options] for question in questions)
    assert {question.num_options for question in questions[: len(questions) // 3]} == {3, 10}, "in random order"


def test_options_shift_neither_lengths_nor_experts() -> None:
    plain, four, ten = (make_table(**MANY, seed=3, num_options=number) for number in (None, 4, 10))
    assert shape(plain) == shape(four) == shape(ten)
    assert [question.id for question in plain.questions] == [question.id for question in ten.questions]


def test_the_right_options_follow_the_seed_alone() -> None:
    def right(**changes: Any) -> list[str | None]:
        return [question.answer for question in make_table(**{**MANY, "num_options": 4, **changes}).questions]

    changed = {"slots": {"A": 1, "B": 2999}, "first_seen": ["B", "A"], "prompt_token_quantiles": [5, 6]}
    assert right(seed=1) == right(seed=1, **changed)
    assert right(seed=1) != right(seed=2)


# Calibration questions


def test_the_test_part_is_the_default_and_knows_nothing_of_the_other() -> None:
    assert make_table() == make_table(part="test", num_calibration_questions=7)


def test_calibration_questions_are_others_of_the_same_kind() -> None:
    test = make_table(num_options=4)
    calibration = make_table(num_options=4, part="calibration", num_calibration_questions=5)
    assert calibration.name == "t_calibration"
    assert [question.id for question in calibration.questions] == [f"t_calibration-{i}" for i in range(5)]
    # Ids make the draws, so no call of one part shares one with a call of the other.
    assert {call.key for call in calibration.calls}.isdisjoint(call.key for call in test.calls)
    assert len(calibration.calls) == 15
    assert {question.num_options for question in calibration.questions} == {4}
    # Equal shares of the same lengths: at 1/10, 3/10 and so on of a grid 10, 20, 90.
    assert sorted(question.prompt_tokens for question in calibration.questions) == [12, 16, 20, 48, 76]


def test_the_first_seen_order_passes_over_experts_without_calibration_slots() -> None:
    order = ["C", "B", "A"]
    assert [call.expert for call in make_table(first_seen=order).calls][:3] == order
    one = make_table(first_seen=order, part="calibration", num_calibration_questions=1)
    assert one.num_calls_by_expert == {"B": 1, "A": 2}
    assert list(one.num_calls_by_expert) == ["B", "A"]


@given(
    counts=st.lists(st.integers(0, 5000), min_size=1, max_size=8).filter(any),
    num_slots=st.integers(1, 20_000),
)
def test_scaled_slots_have_the_total_and_keep_the_proportions(counts: list[int], num_slots: int) -> None:
    slots = {f"E{i}": count for i, count in enumerate(counts)}
    scaled = scaled_slots(slots, num_slots)
    assert sum(scaled.values()) == num_slots
    assert list(scaled) == list(slots)
    for expert, count in slots.items():
        assert abs(scaled[expert] - count * num_slots / sum(counts)) < 1
        assert count or not scaled[expert]
    assert scaled_slots(slots, sum(counts)) == slots
    assert scaled_slots(slots, 3 * sum(counts)) == {expert: 3 * count for expert, count in slots.items()}
    by_count = sorted(slots, key=slots.__getitem__)
    assert all(scaled[a] <= scaled[b] for a, b in pairwise(by_count) if slots[a] < slots[b])


# Refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": " "}, r"workload\.name must be a non-empty string"),
        ({"num_questions": 0}, r"workload\.num_questions must be at least 1, got 0"),
        ({"num_slots_per_question": 2.5}, r"workload\.num_slots_per_question must be a whole number, got 2.5"),
        ({"template_tokens": -1}, r"workload\.template_tokens must be at least 0, got -1"),
        ({"seed": -1}, r"workload\.seed must be at least 0, got -1"),
        ({"slots": {}}, r"workload\.slots must be a mapping with at least one expert"),
        ({"slots": {"A": 10, "B": -1}}, r"workload\.slots\.B must be at least 0, got -1"),
        ({"slots": {"": 9}}, r"workload\.slots: expert must be a non-empty string"),
        ({"pool": ["A", "B", "C"]}, r"workload\.slots: expert must be one of the pool \['A', 'B', 'C'\], got 'D'"),
        ({"first_seen": ["A", "Z"]}, r"workload\.first_seen must be experts that hold slots, .*got 'Z'"),
        ({"prompt_token_quantiles": 12}, r"workload\.prompt_token_quantiles must be a list of numbers, got 12"),
        ({"prompt_token_quantiles": [12]}, r"workload\.prompt_token_quantiles must be a list of at least two"),
        ({"prompt_token_quantiles": [0, 12]}, r"workload\.prompt_token_quantiles must be at least 1, got 0"),
        ({"prompt_token_quantiles": [9, 5]}, r"workload\.prompt_token_quantiles must be a list that never falls"),
        ({"part": "train"}, r"workload\.part must be one of \['test', 'calibration'\], got 'train'"),
        ({"num_calibration_questions": 0}, r"workload\.num_calibration_questions must be at least 1, got 0"),
        ({"num_options": 1}, r"workload\.num_options must be at least 2, got 1"),
        ({"num_options": 27}, r"workload\.num_options must be at most 26, got 27"),
        ({"num_options": {4: 0}}, r"workload\.num_options: sum must be at least 1, got 0"),
        ({"num_options": {1: 5}}, r"workload\.num_options must be at least 2, got 1"),
        ({"num_options": {4: -5}}, r"workload\.num_options\.4 must be at least 0, got -5"),
        ({"num_options": "4"}, r"workload\.num_options must be a whole number, got '4'"),
        ({"slots": ["A"]}, r"workload\.slots must be a mapping of experts to counts, got \['A'\]"),
        ({"first_seen": ["D"]}, r"workload\.first_seen must be experts that hold slots, .*got 'D'"),
        ({"first_seen": ["A", "A"]}, r"workload\.first_seen must be unique, got 'A' twice"),
        ({"first_seen": "A"}, r"workload\.first_seen must be a list of experts, got 'A'"),
        ({"slots": {"A": 8}}, r"workload\.slots: sum must be num_questions x num_slots_per_question = 9, got 8"),
    ],
)
@pytest.mark.parametrize("part", ["test", "calibration"])
def test_bad_values_are_named_in_either_part(part: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make_table(**{"part": part, "num_options": 4, **change})
