"""Symbolic-MoE's recruiting rule, checked against cases computed by hand."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mosaic.core.workload import CalibrationRecord, Question
from mosaic.workloads.routing import (
    NearestSkill,
    Router,
    SkillProfiles,
    global_strengths,
    load_skill_profiles,
    profiles_from_calibration,
    replace_rare_experts,
)

TWO = SkillProfiles(scores={"A": {"algebra": 2, "optics": 1}, "B": {"algebra": 3, "optics": -2}})


def make_question(*skills: str) -> Question:
    return Question(id="q", prompt_tokens=1, skills=skills)


def test_profiles_count_right_minus_wrong_once_per_question() -> None:
    records = [
        CalibrationRecord(("algebra", "algebra"), "A", True),
        CalibrationRecord(("algebra", "optics"), "A", False),
        CalibrationRecord(("optics",), "B", False),
    ]
    assert profiles_from_calibration(records).scores == {"A": {"algebra": 0, "optics": -1}, "B": {"optics": -1}}


def test_strengths_shift_by_one_minus_the_least_where_a_sum_is_not_positive() -> None:
    # Sums 1 and -1, shifted by 2 to 3 and 1.
    profiles = SkillProfiles(scores={"A": {"x": 1}, "B": {"x": -1}})
    assert global_strengths(profiles) == pytest.approx({"A": 0.9, "B": 0.1})


def test_weights_are_score_times_strength_and_never_negative() -> None:
    router = Router(profiles=TWO)
    assert router.weights(["algebra"]) == pytest.approx({"A": 1.8, "B": 0.3})
    assert router.weights(["algebra", "optics", "algebra"]) == pytest.approx({"A": 2.7, "B": 0.1})
    assert router.weights(["optics"]) == pytest.approx({"A": 0.9, "B": 0.0})


def test_weights_shift_the_scores_if_none_is_positive() -> None:
    profiles = SkillProfiles(scores={"A": {"algebra": 4, "optics": -1}, "B": {"algebra": 4, "optics": -3}})
    # Scores -1 and -3 shifted by 4 to 3 and 1; sums 3 and 1 give strengths 0.9 and 0.1.
    assert Router(profiles=profiles).weights(["optics"]) == pytest.approx({"A": 2.7, "B": 0.1})
    # Without skills all scores are 0 and become 1.
    assert Router(profiles=profiles).weights([]) == pytest.approx({"A": 0.9, "B": 0.1})


def test_an_unknown_skill_counts_as_the_nearest_known_one() -> None:
    router = Router(profiles=TWO)
    assert router.weights(["Optical optics"]) == router.weights(["optics"])
    assert router.weights(["zzz"]) == router.weights([])


def test_slots_are_drawn_in_proportion_to_the_weights() -> None:
    router = Router(profiles=TWO, num_slots=20_000)
    counts = Counter(router.recruit(make_question("algebra"), np.random.default_rng(0)))
    expected = 20_000 * 1.8 / 2.1
    # Four standard errors of a binomial.
    assert abs(counts["A"] - expected) < 4 * (expected * 0.3 / 2.1) ** 0.5


def test_replacements_follow_the_others_counts() -> None:
    slots = [("A",)] * 60_000 + [("B",)] * 30_000 + [("C",)] * 4_500
    replaced = Counter(of_question[0] for of_question in replace_rare_experts(slots, 0.05, np.random.default_rng(1)))
    assert replaced["C"] == 0
    assert abs(replaced["A"] - 63_000) < 4 * (4_500 * 2 / 9) ** 0.5


def test_an_expert_at_the_share_stays() -> None:
    slots = [("A",)] * 19 + [("B",)]
    assert replace_rare_experts(slots, 0.05, np.random.default_rng(0)) == tuple(slots)


def test_nearest_skill_prefers_the_first_of_equals_and_ignores_case_and_punctuation() -> None:
    nearest = NearestSkill(["number theory", "theory number", "set theory"])
    assert nearest.find("Theory, Number") == "number theory"
    assert nearest.find("Set-Theory") == "set theory"
    assert nearest.find("???") is None


def test_profiles_are_read_from_json(tmp_path: Path) -> None:
    path = tmp_path / "skills.json"
    path.write_text(json.dumps(TWO.scores))
    assert load_skill_profiles(path) == TWO
    assert TWO.experts == ("A", "B")
    assert TWO.skills == ("algebra", "optics")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"skills\.json: cannot be read"),
        ("{", "skill profiles .*skills.json: not JSON"),
        ("[]", "skill profiles .*skills.json: the file: Expected `object`, got `array`"),
        ("{}", "skills.json: skill profiles must be a mapping with at least one expert"),
        ('{"A": 3}', r"skills.json: \[...\]: Expected `object`, got `int`"),
        ('{"A": {"x": NaN}}', "skills.json: not JSON .*invalid character"),
        ('{"A": {"x": 1e99}}', "Expected `int`, got `float`"),
        ('{"A": {"x": 9999999999}}', "skill profiles: A.x must be at most 1000000000"),
        ('{"A": {" ": 1}}', "skill profiles: A: skill must be a non-empty string"),
    ],
)
def test_bad_profiles_name_the_file_and_the_field(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "skills.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises((ValueError, TypeError), match=message):
        load_skill_profiles(path)


@pytest.mark.parametrize("change", [{"num_slots": 0}, {"min_share_frac": 1.0}, {"min_share_frac": -0.1}])
def test_a_router_refuses_bad_parameters(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"router.{next(iter(change))}"):
        Router(profiles=TWO, **change)  # type: ignore[arg-type]
