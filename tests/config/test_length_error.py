"""A profile whose mean lengths are off: what the scheduler is told changes, and the world does not."""

from math import log2, sqrt
from pathlib import Path
from statistics import fmean

import pytest

from mosaic.config.job import simulated_job
from mosaic.core.workload import PROPOSE
from mosaic.planning.profiles import Profile, write_profile
from mosaic.runtime.run import measure
from sim.site import SimSite
from sim.world.lengths import ClippedLognormal
from sim.world.world import mistaken_lengths
from tests.commands.command_line import QUICK, SMALL


def make_site(*overrides: str) -> SimSite:
    return simulated_job(["aggregator=none", *overrides])[1]


def small_profile(*overrides: str) -> Profile:
    return measure(simulated_job(["aggregator=none", *SMALL, *QUICK, *overrides])[0])[PROPOSE]


def test_a_profile_without_an_error_is_the_profile_it_was(tmp_path: Path) -> None:
    profiles = [small_profile(*extra) for extra in ([], ["profile.length_error=1"])]
    for number, profile in enumerate(profiles):
        write_profile(profile, tmp_path / f"{number}.json")
    assert (tmp_path / "0.json").read_bytes() == (tmp_path / "1.json").read_bytes()
    assert "off by" not in profiles[0].source


@pytest.mark.parametrize("seed", range(4))
def test_a_length_error_moves_predicted_means_within_its_factor_and_leaves_the_world(seed: int) -> None:
    right, wrong = (make_site(f"seed={seed}", f"profile.length_error={error}") for error in (1.0, 2.0))
    assert wrong.world == right.world, "the true lengths stay"
    true = right.world.lengths
    factors = [wrong.calibration_world.lengths[name].mean / true[name].mean for name in sorted(true)]
    assert all(0.5 <= factor <= 2 for factor in factors)
    assert len({round(factor, 6) for factor in factors}) == len(factors), "each expert has its own"
    assert min(factors) < 0.9 or max(factors) > 1.1


def test_a_length_error_reaches_what_the_scheduler_is_told() -> None:
    right, wrong = (small_profile(f"profile.length_error={error}") for error in (1.0, 2.0))
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


def test_a_length_error_that_leaves_the_limits_is_refused() -> None:
    lengths = {"A": ClippedLognormal(mean=4000, sigma=0.8, clip_tokens=4096)}
    with pytest.raises(ValueError, match="profile.length_error=50, expert A: mean must be below clip_tokens=4096, got"):
        mistaken_lengths(lengths, 50, seed=0)
