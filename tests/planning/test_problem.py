"""What a scheduler is given."""

from dataclasses import replace

import pytest
from msgspec import structs

from mosaic.planning.problem import Problem
from tests.factories import make_call, make_cluster, make_expert, make_gpu, make_mixed_cluster, make_problem

BIG, SMALL = make_gpu("big"), make_gpu("small")


def test_an_expert_is_found_by_name() -> None:
    problem = make_problem({"A": 1, "B": 1})
    assert problem.expert("B").name == "B"
    with pytest.raises(ValueError, match=r"expert must be one of \['A', 'B'\], got 'C'"):
        problem.expert("C")


def test_calls_are_grouped_in_first_seen_order_without_idle_experts() -> None:
    problem = make_problem({"A": 2, "B": 0, "C": 1}, calls=[make_call(f"q{i}", expert=e) for i, e in enumerate("CAA")])
    groups = problem.calls_by_expert()
    assert list(groups) == ["C", "A"]
    assert [call.key.question for call in groups["A"]] == ["q1", "q2"]


@pytest.mark.parametrize(
    ("changes", "gangs"),
    [
        ({"num_workers": 5, "tp_degree": 2}, [(0, 1), (2, 3)]),
        ({"num_workers": 3}, [(0,), (1,), (2,)]),
        ({"num_workers": 3, "tp_degree": 4}, []),
        ({"cluster": make_mixed_cluster(BIG, BIG, BIG, SMALL, SMALL, SMALL), "tp_degree": 2}, [(0, 1), (4, 5)]),
        ({"cluster": make_mixed_cluster(SMALL, BIG), "misfits": [("A", "small")]}, [(1,)]),
        ({"cluster": make_mixed_cluster(SMALL, BIG), "misfits": [("B", "small")]}, [(0,), (1,)]),
    ],
)
def test_gangs_are_aligned_groups_of_one_kind_where_the_model_fits(
    changes: dict[str, object], gangs: list[tuple[int, ...]]
) -> None:
    problem = make_problem({"A": 1, "B": 1}, **changes)  # type: ignore[arg-type]
    assert [tuple(worker.id for worker in gang) for gang in problem.gangs(problem.expert("A"))] == gangs


def test_doubled_calls_and_experts_and_calls_for_no_expert_are_refused() -> None:
    problem = make_problem({"A": 1})
    with pytest.raises(ValueError, match=r"call q0/propose/0: expert must be one of the pool \['A', 'B'\], got 'C'"):
        make_problem(calls=[make_call(expert="C")])
    with pytest.raises(ValueError, match="problem: call key must be unique"):
        replace(problem, calls=problem.calls * 2)
    with pytest.raises(ValueError, match="problem: expert name must be unique, got 'A' twice"):
        replace(problem, experts=problem.experts * 2)


def test_an_expert_with_calls_needs_predicted_lengths() -> None:
    problem = make_problem({"A": 1, "B": 0})
    without_b = replace(problem, lengths={"A": problem.lengths["A"]})
    assert list(without_b.lengths) == ["A"]
    with pytest.raises(ValueError, match=r"problem: lengths must have a prediction for expert 'A', got \['B'\]"):
        replace(problem, lengths={"B": problem.lengths["B"]})


PROBLEM = make_problem({"A": 3, "B": 2})


def test_equal_problems_have_equal_fingerprints_whatever_they_cost() -> None:
    assert make_problem({"A": 3, "B": 2}).fingerprint == PROBLEM.fingerprint
    # A plan made under one estimate may be run and compared under another.
    assert make_problem({"A": 3, "B": 2}, load_s=99.0).fingerprint == PROBLEM.fingerprint


@pytest.mark.parametrize(
    "other",
    [
        replace(PROBLEM, calls=PROBLEM.calls[1:]),
        replace(PROBLEM, calls=PROBLEM.calls[::-1]),
        replace(PROBLEM, calls=(structs.replace(PROBLEM.calls[0], prompt_tokens=101), *PROBLEM.calls[1:])),
        replace(PROBLEM, calls=(structs.replace(PROBLEM.calls[0], ready_s=1.0), *PROBLEM.calls[1:])),
        replace(PROBLEM, calls=(structs.replace(PROBLEM.calls[0], expert="B"), *PROBLEM.calls[1:])),
        replace(PROBLEM, cluster=make_cluster(3)),
        replace(PROBLEM, cluster=make_cluster(2, gpu=make_gpu("other"))),
        replace(PROBLEM, cluster=make_cluster(2, gpu=make_gpu(memory_gib=40))),
        replace(PROBLEM, experts=(make_expert("A", tp_degree=2), make_expert("B"))),
    ],
)
def test_whatever_a_plan_depends_on_changes_the_fingerprint(other: Problem) -> None:
    assert other.fingerprint != PROBLEM.fingerprint
