"""A profile whose mean lengths are off: what the scheduler is told changes, and the world does not."""

from math import log2, sqrt
from pathlib import Path
from statistics import fmean

import msgspec
import pytest

import mosaic
from experiments.config.compose import compose_config
from experiments.config.job import job_from, simulated
from experiments.config.world import mistaken_lengths
from mosaic.core.lengths import ClippedLognormal
from mosaic.planning.profiles import Profile
from tests.experiments.command_line import QUICK, SMALL


def measured(folder: Path, *overrides: str) -> bytes:
    """Plan a small workload, and read the profile that is kept."""
    config = compose_config(["aggregator=none", *SMALL, *QUICK, *overrides])
    mosaic.plan(job_from(config, store=folder).job)
    (path,) = folder.glob("Profile-*.json")
    return path.read_bytes()


def decoded(profile: bytes) -> Profile:
    return msgspec.json.decode(profile, type=Profile)


def test_a_profile_without_an_error_is_the_profile_it_was(tmp_path: Path) -> None:
    profiles = [
        measured(tmp_path / str(number), *extra) for number, extra in enumerate(([], ["profile.length_error=1"]))
    ]
    assert profiles[0] == profiles[1]
    assert "off by" not in decoded(profiles[0]).source


@pytest.mark.parametrize("seed", range(4))
def test_a_length_error_moves_predicted_means_within_its_factor_and_leaves_the_world(seed: int) -> None:
    right, wrong = (
        simulated(["aggregator=none", f"seed={seed}", f"profile.length_error={error}"])[1] for error in (1.0, 2.0)
    )
    assert wrong.world == right.world, "the true lengths stay"
    names = sorted(right.world.lengths)
    factors = [wrong.calibration_world.lengths[name].mean / right.world.lengths[name].mean for name in names]
    assert all(0.5 <= factor <= 2 for factor in factors)
    assert len({round(factor, 6) for factor in factors}) == len(factors), "each expert has its own"
    assert min(factors) < 0.9 or max(factors) > 1.1


def test_a_length_error_reaches_what_the_scheduler_is_told(tmp_path: Path) -> None:
    right, wrong = (decoded(measured(tmp_path / str(error), f"profile.length_error={error}")) for error in (1.0, 2.0))
    ratio = sum(wrong.entries[0].output_tokens) / sum(right.entries[0].output_tokens)
    assert ratio != pytest.approx(1.0, rel=0.01)
    assert 0.45 <= ratio <= 2.2
    assert "mean lengths off by up to x2" in wrong.source


def test_the_error_of_an_expert_is_log_uniform() -> None:
    lengths = {f"E{i}": ClippedLognormal(mean=500, sigma=0.8, clip_tokens=4096) for i in range(400)}
    logs = [log2(entry.mean / 500) for entry in mistaken_lengths(lengths, 2.0, seed=0).values()]
    assert abs(fmean(logs)) < 4 / sqrt(12 * 100), "uniform between -1 and 1: standard error 2 / sqrt(12 x 400)"
    assert sum(value**2 for value in logs) / 400 == pytest.approx(1 / 3, abs=0.06)
    half = [log2(entry.mean / 500) for entry in mistaken_lengths(lengths, sqrt(2.0), seed=0).values()]
    assert half == pytest.approx([value / 2 for value in logs]), "the same direction at every error"


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["profile.length_error=0.9"], "profile.length_error must be at least 1, got 0.9"),
        (["profile.length_error=much"], "profile.length_error must be a number, got 'much'"),
        (["profile.length_error=1.5", "profile.path=x.json"], "length_error must be 1 where profile.path='x.json'"),
    ],
)
def test_a_length_error_is_checked(overrides: list[str], complaint: str) -> None:
    with pytest.raises((ValueError, TypeError), match=complaint):
        simulated(["aggregator=none", *overrides])


def test_a_length_error_that_leaves_the_limits_is_refused() -> None:
    lengths = {"A": ClippedLognormal(mean=4000, sigma=0.8, clip_tokens=4096)}
    with pytest.raises(ValueError, match="profile.length_error=50, expert A: mean must be below clip_tokens=4096, got"):
        mistaken_lengths(lengths, 50, seed=0)
