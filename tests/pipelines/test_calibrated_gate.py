import json
from itertools import pairwise
from math import prod
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mosaic.pipelines.rules.ballot import Ballot, Decision
from mosaic.pipelines.rules.calibrated import (
    BUDGETED_POSTERIORS,
    POSTERIOR_THRESHOLDS,
    Calibrated,
    plurality_thresholds,
)
from mosaic.pipelines.rules.calibration_answers import CalibrationQuestion, split_calibration
from mosaic.pipelines.rules.calibration_file import load_calibration_answers
from mosaic.pipelines.rules.weighted import Reliabilities, Weighted, learn_reliabilities, posterior
from tests.calibration_questions import make_ballot_of, make_question, save_answers

ROOT = Path(__file__).resolve().parents[2]


def draw(num: int, *, seed: int = 0, loss_at_2_1: float = 0.0) -> list[CalibrationQuestion]:
    """Make questions of which 45% agree and 40% agree two to one, where the aggregator may know better."""
    rng = np.random.default_rng(seed)
    questions = []
    for number in range(num):
        votes = rng.choice(["AAA", "BAA", "ABC"], p=[0.45, 0.4, 0.15])
        knows_better = votes == "BAA" and rng.random() < loss_at_2_1
        answer = "D" if knows_better else "A"
        questions.append(make_question(f"q{number}", votes, gold=answer, aggregator=answer))
    return questions


def test_agreement_that_costs_nothing_is_skipped(tmp_path: Path) -> None:
    gate = Calibrated(calibration=save_answers(tmp_path, draw(1000)), accepted_loss_frac=0.01)
    # ABC never loses either, as the lowest slot is right.
    assert gate.chosen == pytest.approx(1 / 3)
    assert gate.num_fit + gate.num_certify == 1000
    assert gate.decide(make_ballot_of("BAA")) == Decision(True, "A", 2 / 3)
    assert gate.decide(make_ballot_of("A--")).skip
    assert gate.decide(make_ballot_of("---")) == Decision(False, None, 0.0)
    assert gate.decide(make_ballot_of("AAA", comparable=False)) == Decision(False, None, None)


def test_the_threshold_stays_above_what_loses(tmp_path: Path) -> None:
    gate = Calibrated(calibration=save_answers(tmp_path, draw(1000, loss_at_2_1=0.2)), accepted_loss_frac=0.02)
    assert gate.chosen == 1
    assert [test.setting for test in gate.tests] == [1, 2 / 3]
    assert gate.decide(make_ballot_of("AAA")).skip
    assert not gate.decide(make_ballot_of("BAA")).skip
    skip_frac = gate.skip_fracs[0]
    assert gate.notes() == (
        f"calibrated on {gate.num_certify} questions ({gate.num_fit} more are set aside and certify nothing): "
        f"threshold 1 promises a loss of at most 2 pp at 95% confidence and skips {skip_frac:.1%} of them",
    )
    assert gate.promise_frac < 0.02


def test_too_few_questions_skip_nothing(tmp_path: Path) -> None:
    gate = Calibrated(calibration=save_answers(tmp_path, draw(350)), accepted_loss_frac=0.005)
    assert gate.chosen is None
    assert gate.decide(make_ballot_of("AAA")) == Decision(False, "A", 1.0)
    (note,) = gate.notes()
    assert note.startswith(
        f"calibrated: {gate.num_certify} questions are too few to promise a loss of at most 0.5 pp at"
    )
    assert note.endswith("at threshold 1): nothing is skipped")
    # What it says it could promise, it promises.
    could = float(note.split("could promise ")[1].split(" pp")[0]) / 100
    assert gate.promise_frac <= could < gate.promise_frac + 0.001
    assert Calibrated(calibration=gate.calibration, accepted_loss_frac=could).chosen is not None
    assert Calibrated(calibration=gate.calibration, accepted_loss_frac=could - 0.002).chosen is None


def test_a_loss_that_is_there_is_not_blamed_on_the_number_of_questions(tmp_path: Path) -> None:
    questions = [make_question(f"q{number}", "AAA", gold="B", aggregator="B") for number in range(400)]
    gate = Calibrated(calibration=save_answers(tmp_path, questions))
    assert gate.chosen is None
    assert "questions lose 100.0 pp, so they cannot promise a loss of at most 1 pp" in gate.notes()[0]


@pytest.mark.parametrize("confidence", ["plurality", "weighted"])
def test_what_made_profiles_certifies_nothing(tmp_path: Path, confidence: str) -> None:
    questions = draw(600, loss_at_2_1=0.1)
    fit, certify = split_calibration(questions, 0.3)
    wrong = [make_question(question.id, "AAA", gold="B", aggregator="B") for question in fit]
    before = Calibrated(calibration=save_answers(tmp_path, questions), accepted_loss_frac=0.03)
    after = Calibrated(calibration=save_answers(tmp_path, [*wrong, *certify]), accepted_loss_frac=0.03)
    assert (before.chosen, before.tests) == (after.chosen, after.tests)
    assert before.chosen is not None
    spoilt = [make_question(question.id, "AAA", gold="B", aggregator="B") for question in certify]
    other = Calibrated(
        calibration=save_answers(tmp_path, [*fit, *spoilt]), accepted_loss_frac=0.03, confidence=confidence
    )
    assert not any(other.decide(question.ballot).skip for question in spoilt)


def test_reliabilities_come_from_the_other_part(tmp_path: Path) -> None:
    path = save_answers(tmp_path, draw(900, loss_at_2_1=0.3))
    gate = Calibrated(calibration=path, accepted_loss_frac=0.03, confidence="weighted")
    fit, certify = split_calibration(load_calibration_answers(path), 0.3)
    assert (gate.num_fit, gate.num_certify) == (len(fit), len(certify))
    assert gate.reliabilities == learn_reliabilities(fit)
    assert gate.chosen is not None
    decision = gate.decide(make_ballot_of("AAA"))
    assert decision.skip
    assert decision.confidence == gate.winner(make_ballot_of("AAA")).confidence
    assert decision.confidence != 1.0
    assert not gate.decide(make_ballot_of("ABC")).skip


def test_weighted_losses_are_of_the_weighted_answer(tmp_path: Path) -> None:
    """One good expert is outvoted by two bad ones: plurality loses, the weighted answer does not."""
    letters = "BCD"
    questions = [
        make_question(f"q{number}", f"A{letters[number % 3] * 2}", gold="A", aggregator="A") for number in range(900)
    ]
    path = save_answers(tmp_path, questions)
    plurality = Calibrated(calibration=path, accepted_loss_frac=0.02)
    assert plurality.chosen is None or plurality.chosen > 2 / 3
    assert not plurality.decide(make_ballot_of("ABB")).skip
    weighted = Calibrated(calibration=path, accepted_loss_frac=0.02, confidence="weighted")
    assert weighted.decide(make_ballot_of("ABB"))[:2] == (True, "A")


def test_the_report_is_json(tmp_path: Path) -> None:
    gate = Calibrated(calibration=save_answers(tmp_path, draw(300)), accepted_loss_frac=0.05)
    report = json.loads(json.dumps(gate.report()))
    assert report["threshold"] == gate.chosen
    assert (report["num_certify"], report["num_fit"]) == (gate.num_certify, gate.num_fit)
    assert report["tests"][0]["p_value"] == gate.tests[0].p_value
    assert set(report["tests"][0]) == {"threshold", "skip_frac", "mean_loss_frac", "p_value"}


def test_thresholds_are_all_shares_that_can_occur() -> None:
    assert plurality_thresholds({2, 4}) == (1.0, 0.75, 0.5, 0.25)
    assert plurality_thresholds({1}) == (1.0,)


@pytest.mark.parametrize("thresholds", [POSTERIOR_THRESHOLDS, BUDGETED_POSTERIORS])
def test_a_fixed_sequence_falls_from_below_one(thresholds: tuple[float, ...]) -> None:
    assert all(1 > higher > lower > 0 for higher, lower in pairwise(thresholds))


def test_the_promise_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The aggregator is better on a tenth of the 40% that agree two to one: 4 pp, where 3.9 are accepted."""
    broken = 0
    for seed in range(60):
        questions = draw(300, seed=seed, loss_at_2_1=0.1)
        monkeypatch.setattr(
            "mosaic.pipelines.rules.calibrated.load_calibration_answers", lambda *_, questions=questions: questions
        )
        gate = Calibrated(calibration="drawn", accepted_loss_frac=0.039, risk_frac=0.1)
        broken += gate.chosen is not None and gate.chosen < 1
    assert broken <= 12  # the 99% limit of a binomial of 60 with a share of 0.1


@pytest.mark.parametrize("name", ["never", "unanimous", "majority", "weighted", "calibrated"])
def test_the_configured_gates_are_the_defaults(tmp_path: Path, name: str) -> None:
    from hydra.utils import instantiate

    config = yaml.safe_load((ROOT / "conf" / "gate" / f"{name}.yaml").read_text(encoding="utf-8"))
    path = {"calibration": str(save_answers(tmp_path, draw(20)))} if "calibration" in config else {}
    gate = instantiate({**config, **path}, _convert_="all")
    assert gate.name == name
    given = {"majority": {"tau": 0.6667}, "unanimous": {"tau": 1, "name": name}}.get(name, path)
    assert gate == type(gate)(**given)


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
    path = save_answers(tmp_path, [make_question(f"q{number}", "AAB") for number in range(20)])
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
    questions = [make_question(f"q{number}", "AAB" if number < 6 else "BBA") for number in range(20)]
    gate = Weighted(calibration=save_answers(tmp_path, questions), min_posterior=0.7)
    learned = gate.learned_without({f"q{number}" for number in range(6, 40)})
    assert learned.reliabilities == learn_reliabilities(questions[:6])
    assert (learned.num_questions, learned.threshold) == (6, 0.7)
    assert gate.reliabilities == learn_reliabilities(questions), "it stays as it is"
    assert gate.learned_without({"other"}).reliabilities == gate.reliabilities
    with pytest.raises(ValueError, match=r"gate.calibration must be such that some .* got '.*answers.parquet'"):
        gate.learned_without({question.id for question in questions})
