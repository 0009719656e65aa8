"""Experts, questions, calls and the workload that holds them."""

from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic.core.workload import AGGREGATE, PROPOSE, CallKey, Family, Question, Workload
from tests.factories import make_call, make_expert, make_shape, make_workload

KEY = CallKey("q0", PROPOSE, 0)


def make_question(**changes: object) -> Question:
    return Question(**{"id": "q0", "prompt_tokens": 100, **changes})  # type: ignore[arg-type]


def test_a_llama_8b_has_the_published_sizes() -> None:
    shape = make_shape()
    assert shape.weight_bytes == 16_060_000_000
    assert shape.kv_bytes_per_token() == 131_072
    assert shape.num_block_parameters == 8_030_000_000 - 2 * 128_256 * 4096


def test_tied_embeddings_are_counted_once() -> None:
    shape = make_shape(tied_embeddings=True)
    assert shape.num_block_parameters == 8_030_000_000 - 128_256 * 4096


@given(num_kv_heads=st.sampled_from([1, 2, 4, 8, 16]), tp_degree=st.integers(1, 16))
def test_all_workers_together_hold_every_kv_head_at_least_once(num_kv_heads: int, tp_degree: int) -> None:
    shape = make_shape(num_kv_heads=num_kv_heads, num_query_heads=32)
    share = shape.kv_bytes_per_token(tp_degree)
    assert share * tp_degree >= shape.kv_bytes_per_token()
    assert share <= shape.kv_bytes_per_token()
    if tp_degree >= num_kv_heads:  # replicated: a worker never holds less than one head
        assert share * num_kv_heads == shape.kv_bytes_per_token()


def test_the_family_may_be_given_by_name() -> None:
    assert replace(make_expert(), family="reasoning").family is Family.REASONING  # type: ignore[arg-type]


@pytest.mark.parametrize(("prompt_tokens", "limit"), [(100, 4096), (5096, 4096), (5097, 4095), (9191, 1), (9192, 0)])
def test_output_stops_at_its_maximum_or_at_the_end_of_the_context(prompt_tokens: int, limit: int) -> None:
    expert = make_expert(max_output_tokens=4096, context_tokens=9192)
    assert expert.output_limit(prompt_tokens) == limit


def test_skills_are_kept_as_a_tuple() -> None:
    assert make_question(skills=["algebra", "optics"]).skills == ("algebra", "optics")


def test_a_key_reads_as_question_role_and_slot() -> None:
    assert str(CallKey("q7", AGGREGATE, 2)) == "q7/aggregate/2"


def test_experts_come_in_the_order_in_which_calls_name_them() -> None:
    calls = [make_call(f"q{i}", expert=name) for i, name in enumerate("BABCB")]
    questions = [make_question(id=f"q{i}") for i in range(5)]
    workload = Workload(name="w", questions=questions, calls=calls)  # type: ignore[arg-type]
    assert list(workload.num_calls_by_expert.items()) == [("B", 3), ("A", 1), ("C", 1)]
    assert isinstance(workload.calls, tuple)
    assert isinstance(workload.questions, tuple)


@given(st.dictionaries(st.sampled_from("ABCD"), st.integers(1, 9), min_size=1))
def test_call_counts_add_up(num_calls: dict[str, int]) -> None:
    assert make_workload(num_calls).num_calls_by_expert == num_calls


def test_one_expert_may_hold_several_slots_of_a_question() -> None:
    calls = tuple(make_call("q0", slot=slot) for slot in range(3))
    workload = Workload(name="w", questions=(make_question(),), calls=calls)
    assert workload.num_calls_by_expert == {"A": 3}


@pytest.mark.parametrize(
    ("value", "field"),
    [(make_shape(), "num_layers"), (make_expert(), "name"), (make_question(), "id"), (make_call(), "expert")],
)
def test_values_cannot_be_changed(value: object, field: str) -> None:
    with pytest.raises(FrozenInstanceError):
        setattr(value, field, getattr(value, field))
