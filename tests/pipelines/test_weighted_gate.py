from math import prod
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic.pipelines.rules.ballot import Ballot, Decision
from mosaic.pipelines.rules.calibration_file import encode_calibration_answers
from mosaic.pipelines.rules.weighted import Reliabilities, Weighted, learn_reliabilities, posterior
from tests.calibration_questions import SETTING, make_ballot_of, make_question

RATES = st.floats(min_value=0.02, max_value=0.98)


def reliabilities(**overall: float) -> Reliabilities:
    return Reliabilities(overall=overall, by_skill={})


def posterior_by_bayes(ballot: Ballot, rates: dict[str, float], num_options: int) -> dict[str, float]:
    """Sum over the truth, option by option."""
    options = [chr(ord("A") + number) for number in range(num_options)]
    cast = [vote for vote in ballot.votes if vote.answer is not None and vote.expert in rates]
    likelihood = {
        truth: prod(
            rates[vote.expert] if vote.answer == truth else (1 - rates[vote.expert]) / (num_options - 1)
            for vote in cast
        )
        for truth in options
    }
    total = sum(likelihood.values())
    return {truth: value / total for truth, value in likelihood.items()}


def test_posterior_by_hand() -> None:
    # Four options; X right in 0.7 of cases, Y in 0.4: for A 0.7 * 0.2, for B 0.1 * 0.4, for the others 0.1 * 0.2 each.
    answer, probability = posterior(make_ballot_of("AB"), reliabilities(X=0.7, Y=0.4))
    assert answer == "A"
    assert probability == pytest.approx(0.14 / (0.14 + 0.04 + 2 * 0.02))


@given(
    votes=st.text(alphabet="ABCD-", min_size=1, max_size=5),
    rates=st.tuples(RATES, RATES),
    num_options=st.integers(min_value=4, max_value=9),
)
def test_posterior_is_bayes(votes: str, rates: tuple[float, float], num_options: int) -> None:
    ballot = make_ballot_of(votes, experts="XYXNY", num_options=num_options)  # N was never seen
    by_name = {"X": rates[0], "Y": rates[1]}
    answer, probability = posterior(ballot, reliabilities(**by_name))
    expected = posterior_by_bayes(ballot, by_name, num_options)
    if answer is None:
        assert set(votes) == {"-"}
        assert probability == 0.0
    else:
        assert probability == pytest.approx(expected[answer], rel=1e-9)
        assert expected[answer] == pytest.approx(max(expected[vote] for vote in votes if vote != "-"))


def test_questions_without_options_have_a_declared_number() -> None:
    ballot = make_ballot_of("A", num_options=None)
    assert posterior(ballot, reliabilities(X=0.5), 10).confidence == pytest.approx(0.5)
    assert posterior(make_ballot_of("AB", num_options=None), reliabilities(X=0.5, Y=0.5), 11).confidence == (
        pytest.approx(0.025 / (2 * 0.025 + 9 * 0.0025))
    )
    # More answers than options: each of them counts.
    many = make_ballot_of("ABC", num_options=None)
    assert posterior(many, reliabilities(X=0.5, Y=0.5, Z=0.5), 2).confidence == pytest.approx(1 / 3)


def test_many_sure_votes_do_not_overflow() -> None:
    ballot = make_ballot_of("A" * 400, experts="X" * 400)
    assert posterior(ballot, reliabilities(X=0.99)) == ("A", 1.0)
    assert posterior(make_ballot_of("A" * 100, experts="X" * 100), reliabilities(X=0.01)).confidence < 1e-100


def test_what_cannot_be_compared_has_no_posterior() -> None:
    assert posterior(make_ballot_of("AA", comparable=False), reliabilities(X=0.9, Y=0.9)) == (None, 0.0)


def test_accuracies_are_smoothed_and_shrunk_by_skill() -> None:
    questions = [
        make_question("q1", "AAA", skills=("algebra",), experts="XXY"),
        make_question("q2", "ABB", skills=("algebra", "anatomy", "anatomy"), experts="XYY"),
        make_question("q3", "B-", skills=("anatomy",), experts="XY"),
    ]
    learned = learn_reliabilities(questions)
    # X: right, right, right, wrong. Y: right, wrong, wrong; its unparsable answer does not count.
    assert learned.overall == {"X": pytest.approx(4 / 6), "Y": pytest.approx(2 / 5)}
    assert learned.by_skill["X"] == {
        "algebra": pytest.approx((3 + 10 * 4 / 6) / 13),
        "anatomy": pytest.approx((1 + 10 * 4 / 6) / 12),
    }
    assert learned.by_skill["Y"]["anatomy"] == pytest.approx((0 + 10 * 2 / 5) / 12)
    assert learned.accuracy_frac("X", ("algebra",)) == learned.by_skill["X"]["algebra"]
    assert learned.accuracy_frac("X", ("algebra", "anatomy", "botany")) == pytest.approx(
        (learned.by_skill["X"]["algebra"] + learned.by_skill["X"]["anatomy"]) / 2
    )
    assert learned.accuracy_frac("X", ("botany",)) == learned.overall["X"]
    assert learned.accuracy_frac("N", ("algebra",)) is None


def test_skill_decides_whose_vote_counts() -> None:
    questions = [
        make_question(f"q{number}", "AB" if number % 2 else "BA", skills=("algebra" if number % 2 else "anatomy",))
        for number in range(60)
    ]
    learned = learn_reliabilities(questions)
    assert posterior(make_ballot_of("AB", skills=("algebra",)), learned).answer == "A"
    assert posterior(make_ballot_of("AB", skills=("anatomy",)), learned).answer == "B"


def test_the_gate_skips_from_its_posterior_on(tmp_path: Path) -> None:
    path = tmp_path / "answers.parquet"
    questions = [make_question(f"q{number}", "AAB") for number in range(20)]
    path.write_bytes(encode_calibration_answers(questions, SETTING))
    gate = Weighted(calibration=path)
    ballot = make_ballot_of("ABC")
    answer, probability = posterior(ballot, gate.reliabilities)
    assert (answer, 0.3 < probability < 0.8) == ("A", True)
    assert gate.decide(ballot) == Decision(False, "A", probability)
    assert Weighted(calibration=path, min_posterior=probability).decide(ballot) == Decision(True, "A", probability)
    assert gate.decide(make_ballot_of("AAC")).skip
    assert gate.decide(make_ballot_of("AAA", comparable=False)) == Decision(False, None, None)
    assert gate.notes() == (
        "weighted by accuracies on 20 calibration questions (X 0.95, Y 0.95, Z 0.05); promises nothing",
    )


def test_questions_that_certify_teach_nothing(tmp_path: Path) -> None:
    path = tmp_path / "answers.parquet"
    questions = [make_question(f"q{number}", "AAB" if number < 6 else "BBA") for number in range(20)]
    path.write_bytes(encode_calibration_answers(questions, SETTING))
    gate = Weighted(calibration=path, min_posterior=0.7)
    learned = gate.learned_without({f"q{number}" for number in range(6, 40)})
    assert learned.reliabilities == learn_reliabilities(questions[:6])
    assert (learned.num_questions, learned.threshold) == (6, 0.7)
    assert gate.reliabilities == learn_reliabilities(questions), "it stays as it is"
    assert gate.learned_without({"other"}).reliabilities == gate.reliabilities
    with pytest.raises(ValueError, match=r"gate.calibration must be such that some .* got '.*answers.parquet'"):
        gate.learned_without({question.id for question in questions})
