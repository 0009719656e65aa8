from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mosaic.core.workload import Question
from mosaic.pipelines import Calibrated, FasterMoa, Weighted
from mosaic.pipelines.rules.ballot import Ballot, Decision, Vote, make_ballot, plurality
from mosaic.pipelines.rules.rule import TAU_TOLERANCE, Majority, Never, Rule
from tests.calibration_questions import make_question, save_answers

ANSWERS = st.lists(st.sampled_from(["A", "B", "C", None]), min_size=1, max_size=7)
TAUS = st.floats(min_value=0.01, max_value=1.0)


def ballot(*answers: str | None, comparable: bool = True) -> Ballot:
    votes = tuple(Vote(f"expert{slot}", answer) for slot, answer in enumerate(answers))
    return Ballot(question=Question(id="q", prompt_tokens=10), votes=votes, comparable=comparable)


@pytest.mark.parametrize(
    ("gate", "skips_3_0", "skips_2_1", "skips_1_1_1"),
    [
        (Never(), False, False, False),
        (Majority(tau=1), True, False, False),
        (Majority(), True, True, False),
        (Majority(tau=0.6667), True, True, False),
        (Majority(tau=0.667), True, True, False),
        (Majority(tau=0.67), True, False, False),
        (Majority(tau=0.3333), True, True, True),
    ],
)
def test_operating_points(gate: Rule, skips_3_0: bool, skips_2_1: bool, skips_1_1_1: bool) -> None:
    assert gate.decide(ballot("A", "A", "A")) == Decision(skips_3_0, "A", 1.0)
    assert gate.decide(ballot("A", "B", "A")) == Decision(skips_2_1, "A", 2 / 3)
    assert gate.decide(ballot("B", "C", "A")) == Decision(skips_1_1_1, "B", 1 / 3)
    assert gate.decide(ballot("A", None, "A")) == gate.decide(ballot("A", "B", "A"))
    assert not gate.decide(ballot(None, None, None)).skip
    assert gate.notes() == ()


@given(answers=ANSWERS, tau=TAUS)
@example(answers=[None, None], tau=1e-4)
def test_a_majority_skips_where_the_share_of_the_most_frequent_answer_reaches_tau(
    answers: list[str | None], tau: float
) -> None:
    said = [answer for answer in answers if answer is not None]
    winner = max(said, key=said.count, default=None)  # the first of equals
    share = said.count(winner) / len(answers)
    assert plurality(ballot(*answers)) == (winner, share)
    expected = Decision(bool(said) and share >= tau - TAU_TOLERANCE, winner, share)
    assert Majority(tau=tau).decide(ballot(*answers)) == expected


def test_equal_answers_carry_the_first_ones_string() -> None:
    question = Question(id="q", prompt_tokens=10)
    votes = [Vote("A", "0.5"), Vote("B", None), Vote("A", "1/2"), Vote("B", "2"), Vote("C", "2.0"), Vote("C", None)]
    made = make_ballot(question, votes, lambda one, other: eval(one) == eval(other))
    assert made.comparable
    assert [vote.expert for vote in made.votes] == [vote.expert for vote in votes]
    assert [vote.answer for vote in made.votes] == ["0.5", None, "0.5", "2", "2", None]


def test_identical_strings_are_equal_whatever_the_comparison_says() -> None:
    question = Question(id="q", prompt_tokens=10)
    made = make_ballot(question, [Vote("A", "x"), Vote("B", "x")], lambda one, other: False)
    assert plurality(made) == ("x", 1.0)


def test_without_a_comparison_answers_stay_as_they_are() -> None:
    question = Question(id="q", prompt_tokens=10)
    made = make_ballot(question, [Vote("A", "x"), Vote("B", "x")], None)
    assert not made.comparable
    assert made.votes == (Vote("A", "x"), Vote("B", "x"))
    assert plurality(made) == (None, 0.0)


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Path:
    votes = ("AAA", "BAA", "ABC", "AAB", "AAA")
    return save_answers(tmp_path_factory.mktemp("limits"), [make_question(f"c{n}", of) for n, of in enumerate(votes)])


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        *((Majority, {"tau": tau}, r"gate\.tau must be") for tau in (0, -0.5, 1.01, float("nan"))),
        (Majority, {"tau": 0.5, "scope": "node"}, r"exit\.tau must be .*above 0\.5.*, got 0\.5"),
        (Majority, {"tau": 1.5, "scope": "node"}, r"exit\.tau must be .*at most 1, got 1\.5"),
        (Majority, {"order": "random", "scope": "node"}, r"exit\.order must be one of \['slot', 'finish'\]"),
        (Majority, {"scope": "world"}, r"exit\.scope must be one of \['gate', 'node', 'question'\], got 'world'"),
        (FasterMoa, {"seed": -1}, r"exit\.seed must be .*, got -1"),
        (FasterMoa, {"seed": 0, "tau": 0}, r"exit\.tau must be .*, got 0"),
        (FasterMoa, {"seed": 0, "scope": "gate"}, r"exit\.scope must be node"),
        (FasterMoa, {"seed": 0, "similarity": "words"}, r"exit\.similarity must be one of \['answers', 'embeddings'\]"),
        (FasterMoa, {"seed": 0, "similarity": "embeddings"}, r"exit\.embed must be given with embeddings, got None"),
        (Weighted, {"min_posterior": 0}, "gate.min_posterior must be above 0"),
        (Weighted, {"min_posterior": 1.1}, "gate.min_posterior must be at most 1"),
        (Weighted, {"num_open_options": 1}, "gate.num_open_options must be at least 2"),
        (Weighted, {"calibration": "none.parquet"}, "calibration answers none.parquet: must be a readable file"),
        (Calibrated, {"accepted_loss_frac": -0.01}, "gate.accepted_loss_frac must be at least 0"),
        (Calibrated, {"accepted_loss_frac": 1}, "gate.accepted_loss_frac must be below 1"),
        (Calibrated, {"risk_frac": 0}, "gate.risk_frac must be above 0"),
        (Calibrated, {"risk_frac": 1, "scope": "question"}, "exit.risk_frac must be below 1"),
        (
            Calibrated,
            {"confidence": "vibes"},
            r"gate.confidence must be one of \['plurality', 'weighted'\], got",
        ),
        (Calibrated, {"scope": "node"}, "exit.scope must be question"),
        (FasterMoa, {"seed": 0, "scope": "question"}, "exit.scope must be node"),
        (Calibrated, {"fit_frac": 1}, "gate.fit_frac must be below 1"),
        (Calibrated, {"fit_frac": -1}, "gate.fit_frac must be at least 0"),
        (Calibrated, {"num_open_options": 1}, "gate.num_open_options must be at least 2"),
        (Calibrated, {"fit_frac": 0.999999}, "gate.fit_frac must be small enough to leave one of 5"),
        (Calibrated, {"fit_frac": 0, "confidence": "weighted"}, "gate.fit_frac must be large enough to learn"),
    ],
)
def test_a_wrong_value_is_named(five: Path, kind: type[Rule], changes: dict[str, object], message: str) -> None:
    given: dict[str, object] = {"calibration": five} if kind in (Weighted, Calibrated) else {}
    with pytest.raises(ValueError, match=message):
        kind(**{**given, **changes})  # type: ignore[arg-type]
