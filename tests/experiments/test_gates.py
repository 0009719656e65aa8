"""The studies of promises: populations whose losses are known, and calibrations that are those of the gate."""

from dataclasses import replace
from math import floor

import numpy as np
import pytest

import experiments.studies.gate_trials
from experiments.lab.study import Point
from experiments.studies import gates
from experiments.studies.gate_populations import (
    NUM_ADVERSARIAL_OPTIONS,
    Population,
    draw_adversarial,
    draw_batch,
    draw_population,
    gather,
    grade,
)
from experiments.studies.gate_trials import (
    FIT_FRAC,
    NUM_PER_GROUP,
    broken_limit,
    certify_places,
    chosen_thresholds,
    confidence_of,
    draw_groups,
    simulate_calibrations,
    thresholds_of,
)
from mosaic.pipelines.rules.ballot import plurality
from mosaic.pipelines.rules.calibrated import Calibrated, ConfidenceKind
from mosaic.pipelines.rules.calibration_answers import CalibrationQuestion
from mosaic.pipelines.rules.weighted import learn_reliabilities, posterior
from tests.calibration_questions import make_question

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gpqa() -> Population:
    return draw_population("gpqa", (0,), 3000)


def renamed(question: CalibrationQuestion, name: str) -> CalibrationQuestion:
    """Give a drawn question an id of its own."""
    asked = replace(question.ballot.question, id=name)
    return replace(question, ballot=replace(question.ballot, question=asked))


def test_the_loss_of_a_population_is_the_mean_over_its_questions(gpqa: Population) -> None:
    graded = [*grade(draw_batch("gpqa", 0, 3000))]
    assert len(graded) == len(gpqa.kind_of) == 3000
    assert len(gpqa.kinds) < 1500, "questions that no gate can tell apart stand once"
    learned = learn_reliabilities(graded[:500])
    for confidence, thresholds in (
        (plurality, (1.0, 2 / 3, 1 / 3)),
        (lambda ballot: posterior(ballot, learned), (0.95, 0.7, 0.3)),
    ):
        scored = gpqa.score(confidence)
        for threshold in thresholds:
            lost, skipped = 0, 0
            for question in graded:
                winner = confidence(question.ballot)
                if winner.confidence >= threshold:
                    skipped += 1
                    lost += int(question.aggregator_correct) - int(winner.answer == question.ballot.question.answer)
            assert scored.loss_frac(threshold) == pytest.approx(lost / 3000, abs=1e-12)
            assert scored.skip_frac(threshold) == pytest.approx(skipped / 3000)
    assert (scored.loss_frac(None), scored.skip_frac(None)) == (0, 0)


def test_kinds_differ_where_a_gate_could_tell() -> None:
    questions = [
        make_question("a", "AAB"),
        make_question("b", "CCD", gold="C", aggregator="C"),  # as a, with other letters
        make_question("c", "ABA"),
        make_question("d", "AAB", experts="YXZ"),
        make_question("e", "AAB", aggregator="B"),
        make_question("f", "AAB", gold="B", aggregator="B"),
        make_question("g", "AA-"),
    ]
    population = gather("made", "made", questions)
    assert population.kind_of.tolist() == [0, 0, 1, 2, 3, 4, 5]
    assert population.score(plurality).counts.tolist() == [2, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("kind", ["plurality", "weighted"])
@pytest.mark.parametrize("accepted", [0.03, 0.05])
def test_a_simulated_calibration_is_one_of_the_gate(
    gpqa: Population, monkeypatch: pytest.MonkeyPatch, kind: ConfidenceKind, accepted: float
) -> None:
    """The gate itself, on the same draws as a file of questions, chooses the same threshold."""
    num, chosen, own = 1500, [], []
    for seed in range(10):
        fit, certify = next(draw_groups(gpqa, num, 1, np.random.default_rng(seed)))
        scored = gpqa.score(confidence_of(kind, fit))
        chosen += chosen_thresholds(scored, certify, thresholds_of(kind, gpqa), accepted)
        drawn = gpqa.kind_of[np.random.default_rng(seed).integers(len(gpqa.kind_of), size=num)]
        file = [renamed(gpqa.kinds[one], f"gpqa_calibration-{place}") for place, one in enumerate(drawn)]
        monkeypatch.setattr("mosaic.pipelines.rules.calibrated.load_calibration_answers", lambda *_, file=file: file)
        gate = Calibrated(calibration="drawn", accepted_loss_frac=accepted, confidence=kind)
        assert (gate.num_fit, gate.num_certify) == (len(fit), certify.shape[1])
        own.append(gate.chosen)
    assert chosen == own
    assert len(set(chosen)) > 1, "calibrations that all choose the same would show little"


def test_only_questions_that_certify_are_resampled() -> None:
    class Counting:
        """Draws every question once, in order."""

        def integers(self, high: int, size: tuple[int, int]) -> np.ndarray:
            return np.arange(size[0] * size[1]).reshape(size) % high

    # Experts of their own make each question one of a kind.
    made = gather("made", "gpqa", (make_question(f"q{n}", "AAB", experts=(f"X{n}", "Y", "Z")) for n in range(300)))
    fit_places, places = certify_places("gpqa", 300)
    assert sorted([*fit_places, *places]) == list(range(300))
    assert len(fit_places) == pytest.approx(FIT_FRAC * 300, abs=25)
    ((fit, certify),) = draw_groups(made, 300, 2, Counting())  # type: ignore[arg-type]
    assert [question.id for question in fit] == [f"q{place}" for place in fit_places]
    assert certify.tolist() == [places.tolist()] * 2


def test_groups_add_up(gpqa: Population) -> None:
    groups = list(draw_groups(gpqa, 100, NUM_PER_GROUP + 3, np.random.default_rng(0)))
    assert [len(certify) for _, certify in groups] == [NUM_PER_GROUP, 3]
    found = simulate_calibrations(gpqa, (0.05,), 100, NUM_PER_GROUP + 3)[0.05]
    assert found["num_certify"] == len(certify_places("gpqa", 100)[1])


def test_the_limit_is_that_of_the_binomial() -> None:
    assert [broken_limit(num) for num in (60, 400, 2000)] == [7, 31, 123]


def test_agreement_says_nothing_in_the_adversarial_world(monkeypatch: pytest.MonkeyPatch) -> None:
    for accepted, population in zip((0.01, 0.05), draw_adversarial((0.01, 0.05), (0, 1), 3000), strict=True):
        monkeypatch.setattr(gates, "population_of", lambda name, population=population: population)
        num = len(population.kind_of)
        rows = [
            gates.measure_agreement(Point(labels={"population": "made", "num_votes": votes}), 0) for votes in (3, 2, 1)
        ]
        unanimous, any_two, _ = rows
        assert unanimous["share_frac"] == pytest.approx(0.475, abs=0.02), "as often unanimous as on MedMCQA"
        assert unanimous["loss_frac"] == pytest.approx((floor(accepted * num + 1e-9) + 1) / num), "a question too much"
        assert any_two["loss_frac"] > unanimous["loss_frac"]
        shares = [row["share_frac"] for row in rows]
        aggregator = np.average([row["aggregator_right_frac"] for row in rows], weights=shares)
        for row, share in zip(rows, shares, strict=True):
            error = 4 * (0.25 * 0.75 / (share * num)) ** 0.5
            assert row["plurality_right_frac"] == pytest.approx(1 / NUM_ADVERSARIAL_OPTIONS, abs=error)
            assert row["aggregator_right_frac"] == pytest.approx(aggregator, abs=error)
        found = simulate_calibrations(population, (accepted,), 800, 600)[accepted]
        # Whatever is skipped breaks the promise, so the gate has to refuse nearly always.
        assert 0 < found["num_broken"] <= broken_limit(600)
        assert found["refused_frac"] == pytest.approx(1 - found["num_broken"] / 600)


def test_what_is_broken_is_counted(gpqa: Population, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gate that took its chances far beyond the stated risk would be found out."""
    monkeypatch.setattr(experiments.studies.gate_trials, "RISK_FRAC", 0.9)
    reckless = simulate_calibrations(gpqa, (0.005,), 1500, 300)[0.005]
    monkeypatch.undo()
    assert reckless["num_broken"] > broken_limit(300)
