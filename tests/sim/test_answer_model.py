"""The item-response model by itself: probabilities, their order, and what it refuses."""

from itertools import combinations, pairwise
from math import exp, log
from statistics import NormalDist

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import kstest

from mosaic.answers.extraction import comparison
from mosaic.core.workload import OPTION_LETTERS, AnswerKind, Question
from sim.world.answer_model import NUM_UNLISTED_OPTIONS, Item, possible_answers, shift_length
from tests.sim.answer_worlds import make_choice, make_model

NORMAL = NormalDist()
UNIFORMS = st.floats(2.0**-53, 1 - 2.0**-53)
LOGITS = st.floats(-4, 4)
GRID = [(i + 0.5) / 1000 for i in range(1000)]


@st.composite
def items(draw: st.DrawFn, *, least: int = 2) -> Item:
    scores = draw(st.lists(st.floats(-3, 3), min_size=least - 1, max_size=9))
    return Item(draw(st.floats(-3, 3)), tuple(OPTION_LETTERS[: len(scores) + 1]), tuple(map(exp, scores)))


def shares(weights: list[float]) -> list[float]:
    return [weight / sum(weights) for weight in weights]


def assert_shares(item: Item, drawn: list[str], expected: list[float]) -> None:
    """On an even grid of uniform numbers an answer has its share of them, but for one at each end of its interval."""
    for answer, share in zip(item.answers, expected, strict=True):
        assert abs(drawn.count(answer) - share * len(drawn)) <= 1.001, answer


# What an expert answers


@given(item=items(), ability=LOGITS, discrimination=st.floats(0, 3))
def test_the_gold_answer_has_the_models_probability(item: Item, ability: float, discrimination: float) -> None:
    model = make_model(mean_ability=ability, discrimination=discrimination)
    right = exp(ability + 0.5 - discrimination * item.difficulty)
    assert_shares(item, [model.propose(item, "A", u) for u in GRID], shares([right, *item.attractions]))


@given(item=items(), u=UNIFORMS, ability=LOGITS, more=st.floats(0, 4))
def test_where_an_expert_is_right_an_abler_one_is_too(item: Item, u: float, ability: float, more: float) -> None:
    model = make_model(ability_by_expert={"less": ability, "more": ability + more})
    if model.propose(item, "less", u) == item.answers[0]:
        assert model.propose(item, "more", u) == item.answers[0]


@given(item=items(), u=UNIFORMS, harder=st.floats(0, 3))
def test_who_is_right_on_a_harder_question_is_right_on_an_easier_one(item: Item, u: float, harder: float) -> None:
    model = make_model()
    if model.propose(item._replace(difficulty=item.difficulty + harder), "A", u) == item.answers[0]:
        assert model.propose(item, "A", u) == item.answers[0]


def test_the_last_uniform_number_falls_to_the_last_answer_although_sums_round() -> None:
    # 0.1 + 0.2 + ... in another order is another float; no uniform number may fall behind the last bound.
    largest = 1 - 2.0**-53
    for number in range(2, 26):
        item = Item(0.0, tuple(OPTION_LETTERS[:number]), tuple(0.1 * i for i in range(1, number)))
        assert make_model().propose(item, "A", largest) == OPTION_LETTERS[number - 1]
        assert make_model().propose(item, "A", 2.0**-53) == "A"


# What an aggregator answers


@given(item=items(), seen=st.lists(st.sampled_from([*"ABC", None, "Z"]), max_size=4), deference=st.floats(0, 3))
def test_each_response_adds_the_deference_to_the_option_it_names(
    item: Item, seen: list[str | None], deference: float
) -> None:
    model = make_model(deference=deference, aggregator_gain=0.3)
    utilities = [2.0 + 0.3 - 1.5 * item.difficulty, *map(log, item.attractions)]
    weights = [exp(u + deference * seen.count(answer)) for answer, u in zip(item.answers, utilities, strict=True)]
    assert_shares(item, [model.aggregate(item, "G", seen, u) for u in GRID], shares(weights))


# Questions as the models meet them


def test_difficulties_and_attractions_are_normal_over_questions_and_options() -> None:
    model = make_model(distractor_std=2.0)
    drawn = [model.item(f"q{i}", tuple("ABCD"), 0, "test") for i in range(3000)]
    assert kstest([item.difficulty for item in drawn], "norm").pvalue > 1e-3
    assert kstest([log(a) / 2.0 for item in drawn for a in item.attractions], "norm").pvalue > 1e-3
    first = [log(item.attractions[0]) / 2.0 for item in drawn]
    correlation = sum(item.difficulty * score for item, score in zip(drawn, first, strict=True)) / 3000
    assert abs(correlation) < 4 / 3000**0.5


def test_a_question_is_the_same_for_every_model_and_another_by_seed_stream_and_name() -> None:
    options = tuple("ABCD")
    item = make_model().item("q0", options, 0, "test")
    assert make_model(mean_ability=0.0, deference=2.0).item("q0", options, 0, "test") == item
    others = [make_model().item(*rest) for rest in (("q1", options, 0, "test"), ("q0", options, 1, "test"))]
    others.append(make_model().item("q0", options, 0, "calibration"))
    assert all(a.difficulty != b.difficulty for a, b in combinations([item, *others], 2))


def test_more_options_leave_difficulty_and_the_first_attractions_as_they_are() -> None:
    few, many = (make_model().item("q0", tuple(OPTION_LETTERS[:n]), 0, "test") for n in (4, 20))
    assert many.difficulty == few.difficulty
    assert many.attractions[:3] == few.attractions
    assert len(many.attractions) == 19


def test_a_question_without_answers_still_has_a_difficulty() -> None:
    model = make_model()
    item = model.item("q0", (), 0, "test")
    assert (item.difficulty, item.answers) == (model.item("q0", ("A", "B"), 0, "test").difficulty, ())
    assert len(item.attractions) == 0


@given(num_options=st.integers(2, 26), place=st.integers(0, 25))
def test_options_are_listed_once_with_the_right_one_first(num_options: int, place: int) -> None:
    gold = OPTION_LETTERS[place % num_options]
    possible = possible_answers(make_choice(num_options=num_options, answer=gold))
    assert possible[0] == gold
    assert sorted(possible) == list(OPTION_LETTERS[:num_options])


def test_without_gold_the_first_option_passes_for_right() -> None:
    assert possible_answers(make_choice(num_options=3, answer=None)) == ("A", "B", "C")
    unlisted = possible_answers(Question(id="q", prompt_tokens=9))
    assert (unlisted[0], len(set(unlisted))) == ("right", NUM_UNLISTED_OPTIONS)


def test_unlisted_answers_differ_as_answers_compare() -> None:
    possible = possible_answers(Question(id="q", prompt_tokens=9, answer="7", answer_kind=AnswerKind.MATH))
    assert (len(possible), possible[0]) == (NUM_UNLISTED_OPTIONS, "7")
    same = comparison(AnswerKind.MATH)
    assert same is not None
    assert not any(same(one, other) for one, other in combinations(possible, 2))


# Lengths that lean on the difficulty


@given(u=UNIFORMS, difficulty=st.floats(-8, 8), loading=st.floats(0, 1))
def test_a_shifted_uniform_number_stays_between_0_and_1(u: float, difficulty: float, loading: float) -> None:
    assert 0.0 < shift_length(u, difficulty, loading) < 1.0


@given(u=st.floats(0.001, 0.999), difficulty=st.floats(-3, 3), loading=st.floats(0.01, 0.99), more=st.floats(1e-3, 1))
def test_longer_with_difficulty_and_with_its_own_draw(u, difficulty, loading, more) -> None:
    assume(u + more < 0.9999)
    shifted = shift_length(u, difficulty, loading)
    assert shift_length(u, difficulty + more, loading) > shifted
    assert shift_length(u + more, difficulty, loading) > shifted


def test_full_loading_leaves_nothing_to_the_draw() -> None:
    assert shift_length(0.1, 1.3, 1.0) == shift_length(0.9, 1.3, 1.0) == pytest.approx(NORMAL.cdf(1.3))


@pytest.mark.parametrize("loading", [0.3, 0.83, 1.0])
def test_a_shifted_length_is_uniform_over_questions(loading: float) -> None:
    # Every pair of 60 difficulties and 60 numbers once, at the middle of equal shares: no sampling error.
    middles = [(i + 0.5) / 60 for i in range(60)]
    shifted = sorted(shift_length(u, NORMAL.inv_cdf(v), loading) for u in middles for v in middles)
    assert max(abs(value - (i + 0.5) / 3600) for i, value in enumerate(shifted)) < 0.01
    assert all(a <= b for a, b in pairwise(shifted))


# Checks

BAD = [
    ("mean_ability", "x", "a number, got 'x'"),
    ("mean_ability", float("nan"), "finite, got nan"),
    ("mean_ability", 20.5, r"at most 20, got 20\.5"),
    ("aggregator_gain", -21, "at least -20, got -21"),
    *(
        row
        for name in ("discrimination", "distractor_std", "deference")
        for row in ((name, -0.1, r"at least 0, got -0\.1"), (name, 20.5, r"at most 20, got 20\.5"))
    ),
    ("length_loading", -1.1, r"at least -1, got -1\.1"),
    ("length_loading", 1.01, r"at most 1, got 1\.01"),
    ("aggregator_length_loading", 2, "at most 1, got 2"),
    ("ability_by_expert", {"A": 99}, "at most 20, got 99"),
    ("source", "guessed", r"one of .*'fitted'.*got 'guessed'"),
]


@pytest.mark.parametrize(("name", "value", "rule"), BAD)
def test_a_bad_parameter_is_named_with_rule_and_value(name, value, rule) -> None:
    with pytest.raises((ValueError, TypeError), match=rf"answers\.{name}(\.A)? must be {rule}"):
        make_model(**{name: value})


def test_the_largest_parameters_do_not_overflow() -> None:
    # The last uniform numbers lie 8.2 standard deviations out.
    model = make_model(
        mean_ability=20, discrimination=20, distractor_std=20, deference=20, aggregator_gain=20,
        ability_by_expert={"G": 20},
    )  # fmt: skip
    for difficulty in (-8.2, 8.2):
        item = Item(difficulty, tuple("ABC"), (exp(20 * 8.2), exp(-20 * 8.2)))
        for seen in ([], ["A"] * 5, ["B"] * 5):
            assert model.aggregate(item, "G", seen, 0.5) in "ABC"
