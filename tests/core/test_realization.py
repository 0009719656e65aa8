"""Random numbers of calls: uniform, and of nothing but seed, stream and key."""

import random
from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from mosaic.core.realization import question_uniforms, uniform, uniform_pair
from mosaic.core.workload import AGGREGATE, PROPOSE, CallKey

KEYS = st.builds(CallKey, st.text(min_size=1, max_size=8), st.sampled_from((PROPOSE, AGGREGATE)), st.integers(0, 9))


def draw(number: int, *, seed: int = 0, stream: str = "test") -> list[float]:
    return [uniform(seed, stream, CallKey(f"q{i}", PROPOSE, 0)) for i in range(number)]


def test_draws_of_neighbours_seeds_and_streams_are_independent() -> None:
    first = draw(4000)
    others = {
        "next call": first[1:],
        "next seed": draw(4000, seed=1),
        "other stream": draw(4000, stream="calibration"),
    }
    for name, values in others.items():
        n = len(values)
        correlation = sum((a - 0.5) * (b - 0.5) for a, b in zip(first, values, strict=False)) / n * 12
        assert abs(correlation) < 4 / n**0.5, name  # 4 standard errors


@given(keys=st.lists(KEYS, unique=True, max_size=12), seed=st.integers(0, 2**40), order=st.randoms())
def test_draws_depend_on_neither_order_nor_other_keys(keys: list[CallKey], seed: int, order: random.Random) -> None:
    alone = {key: uniform(seed, "test", key) for key in keys}
    shuffled = list(keys)
    order.shuffle(shuffled)
    assert {key: uniform(seed, "test", key) for key in shuffled} == alone
    assert len(set(alone.values())) == len(keys)
    assert all(0.0 < value < 1.0 for value in alone.values())


@given(key=KEYS, seed=st.integers(0, 1000))
def test_every_part_of_the_identity_counts(key: CallKey, seed: int) -> None:
    other_node = AGGREGATE if key.node == PROPOSE else PROPOSE
    variants = [
        uniform(seed, "test", key),
        uniform(seed + 1, "test", key),
        uniform(seed, "calibration", key),
        uniform(seed, "test", key._replace(question=key.question + "x")),
        uniform(seed, "test", key._replace(node=other_node)),
        uniform(seed, "test", key._replace(slot=key.slot + 1)),
    ]
    assert all(a != b for a, b in pairwise(sorted(variants)))


# Two numbers a call, and the numbers that a question's calls share


def test_the_first_of_a_pair_is_the_calls_uniform_number() -> None:
    keys = [CallKey(f"q{i}", node, i % 3) for i in range(50) for node in (PROPOSE, AGGREGATE)]
    assert [uniform_pair(3, "test", key)[0] for key in keys] == [uniform(3, "test", key) for key in keys]


def test_a_questions_numbers_are_uniform_and_independent_of_each_other_and_of_its_calls() -> None:
    shared = [question_uniforms(0, "test", f"q{i}", 10) for i in range(4000)]
    columns = [*zip(*shared, strict=True), *zip(*(calls_of(f"q{i}") for i in range(4000)), strict=True)]
    for column in columns:
        assert kstest(column, "uniform").pvalue > 1e-4
    for first, second in combinations(columns, 2):
        correlation = sum((a - 0.5) * (b - 0.5) for a, b in zip(first, second, strict=True)) / 4000 * 12
        assert abs(correlation) < 4.5 / 4000**0.5  # 78 pairs


def calls_of(question: str) -> tuple[float, ...]:
    """Three of the numbers that a question's calls have for themselves."""
    first, aggregate = (uniform_pair(0, "test", CallKey(question, node, 0)) for node in (PROPOSE, AGGREGATE))
    return (*first, aggregate[0])


@given(question=st.text(min_size=1, max_size=8), seed=st.integers(0, 1000), count=st.integers(0, 40))
def test_more_numbers_of_a_question_leave_the_first_as_they_are(question: str, seed: int, count: int) -> None:
    many = question_uniforms(seed, "test", question, 50)
    assert question_uniforms(seed, "test", question, count) == many[:count]
    assert len(set(many)) == 50
    assert all(0.0 < value < 1.0 for value in many)


@given(question=st.text(min_size=1, max_size=8), seed=st.integers(0, 1000))
def test_a_questions_numbers_follow_seed_stream_and_name(question: str, seed: int) -> None:
    variants = [
        question_uniforms(seed, "test", question, 20),
        question_uniforms(seed + 1, "test", question, 20),
        question_uniforms(seed, "calibration", question, 20),
        question_uniforms(seed, "test", question + "x", 20),
    ]
    values = [value for variant in variants for value in variant]
    assert len(set(values)) == len(values)


def test_pairs_and_questions_are_the_same_on_every_machine_and_release() -> None:
    assert uniform_pair(0, "length", CallKey("q1", PROPOSE, 0)) == (0.5065203607582595, 0.19286548640371415)
    assert question_uniforms(0, "test", "q1", 9)[::8] == [0.5170039669515504, 0.33601423366713934]
