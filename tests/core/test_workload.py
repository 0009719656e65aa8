"""Experts, questions, calls and the workload that holds them."""

from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic.core.workload import AGGREGATE, PROPOSE, CallKey, Family, Question, Workload
from tests.factories import make_call, make_calls, make_expert, make_shape, make_workload

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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 0}, "shape.num_layers must be at least 1, got 0"),
        ({"hidden_size": 4096.0}, "shape.hidden_size must be a whole number, got 4096.0"),
        ({"bytes_per_value": True}, "shape.bytes_per_value must be a whole number, got True"),
        ({"num_query_heads": 12}, "shape.num_query_heads must be a multiple of num_kv_heads=8, got 12"),
        ({"num_parameters": 10**9}, "shape.num_parameters must be above those of the embeddings, 1050673152, got 10"),
    ],
)
def test_a_shape_refuses_bad_dimensions(change: dict[str, object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make_shape(**change)


def test_the_family_may_be_given_by_name() -> None:
    assert replace(make_expert(), family="reasoning").family is Family.REASONING  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ""}, "expert.name must be a non-empty string, got ''"),
        ({"shape": None}, "expert A: shape must be a ModelShape, got None"),
        ({"checkpoint": None}, "expert A: checkpoint must be a string, got None"),
        ({"family": "agent"}, r"expert A: family must be one of \['reasoning', 'instruct'\], got 'agent'"),
        ({"temperature": -0.1}, "expert A: temperature must be at least 0, got -0.1"),
        ({"temperature": float("nan")}, "expert A: temperature must be finite, got nan"),
        ({"max_output_tokens": 0}, "expert A: max_output_tokens must be at least 1, got 0"),
        ({"context_tokens": 1}, "expert A: context_tokens must be at least 2, got 1"),
        ({"tp_degree": 0}, "expert A: tp_degree must be at least 1, got 0"),
        ({"max_replicas": 0}, "expert A: max_replicas must be at least 1, got 0"),
        ({"max_replicas": 1.5}, "expert A: max_replicas must be a whole number, got 1.5"),
    ],
)
def test_an_expert_refuses_bad_fields(change: dict[str, object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        replace(make_expert(), **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(("prompt_tokens", "limit"), [(100, 4096), (5096, 4096), (5097, 4095), (9191, 1), (9192, 0)])
def test_output_stops_at_its_maximum_or_at_the_end_of_the_context(prompt_tokens: int, limit: int) -> None:
    expert = make_expert(max_output_tokens=4096, context_tokens=9192)
    assert expert.output_limit(prompt_tokens) == limit


def test_skills_are_kept_as_a_tuple() -> None:
    assert make_question(skills=["algebra", "optics"]).skills == ("algebra", "optics")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": " "}, "question.id must be a non-empty string"),
        ({"id": 7}, "question.id must be a string, got 7"),
        ({"prompt_tokens": 0}, "question q0: prompt_tokens must be at least 1, got 0"),
        ({"prompt_tokens": float("nan")}, "question q0: prompt_tokens must be a whole number, got nan"),
        ({"skills": "algebra"}, "question q0: skills must be a sequence of names, got 'algebra'"),
    ],
)
def test_a_question_refuses_bad_fields(change: dict[str, object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make_question(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_tokens": 0}, "call q0/propose/0: prompt_tokens must be at least 1, got 0"),
        ({"prompt_tokens": 1.0}, "call q0/propose/0: prompt_tokens must be a whole number, got 1.0"),
        ({"prompt_tokens": True}, "call q0/propose/0: prompt_tokens must be a whole number, got True"),
        ({"ready_s": -1.0}, "call q0/propose/0: ready_s must be at least 0, got -1.0"),
        ({"ready_s": float("inf")}, "call q0/propose/0: ready_s must be finite, got inf"),
        ({"ready_s": "now"}, "call q0/propose/0: ready_s must be a number, got 'now'"),
    ],
)
def test_a_call_refuses_bad_fields(change: dict[str, object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        replace(make_call(), **change)  # type: ignore[arg-type]


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
    ("change", "message"),
    [
        ({"name": ""}, "workload.name must be a non-empty string"),
        ({"questions": ()}, "workload w: questions must be at least one question, got 0"),
        ({"calls": ()}, "workload w: calls must be at least one call, got 0"),
        ({"questions": (make_question(),) * 2}, "workload w: question id must be unique, got 'q0' twice"),
        ({"calls": make_calls({"A": 1}) * 2}, r"workload w: call key must be unique, got CallKey\(question='q0'"),
        ({"calls": (make_call("q9"),)}, "workload w: call q9/propose/0 must name a question of the workload"),
        (
            {"output_tokens": {CallKey("q9", PROPOSE, 0): 5}},
            "output_tokens must be of the workload's calls, got q9",
        ),
        ({"output_tokens": {KEY: 0}}, "workload w: output_tokens of q0/propose/0 must be at least 1, got 0"),
        ({"output_tokens": {KEY: float("nan")}}, "output_tokens of q0/propose/0 must be a whole number, got nan"),
    ],
)
def test_a_workload_refuses_what_does_not_fit_together(change: dict[str, object], message: str) -> None:
    good = {"name": "w", "questions": (make_question(),), "calls": (make_call(),), "output_tokens": {KEY: 5}}
    assert Workload(**good).output_tokens == {KEY: 5}  # type: ignore[arg-type]
    with pytest.raises((ValueError, TypeError), match=message):
        Workload(**{**good, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "field"),
    [(make_shape(), "num_layers"), (make_expert(), "name"), (make_question(), "id"), (make_call(), "expert")],
)
def test_values_cannot_be_changed(value: object, field: str) -> None:
    with pytest.raises(FrozenInstanceError):
        setattr(value, field, getattr(value, field))
