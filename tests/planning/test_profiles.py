"""Session fits, profiles and their files."""

import json
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic.core.errors import ProfileError
from mosaic.planning.profiles import (
    Profile,
    ProfileEntry,
    SessionFit,
    SweepPoint,
    convex_pieces,
    fit_session,
    load_profile,
    profile_to_json,
    write_profile,
)
from tests import factories

SIZES = st.lists(st.integers(1, 3000), min_size=2, max_size=6, unique=True)


def make_points(session_s_by_size: Mapping[int, float]) -> list[SweepPoint]:
    return [SweepPoint(num_calls=n, session_s=s, output_tokens=100 * n) for n, s in session_s_by_size.items()]


def make_entry(expert: str = "A", **changes: object) -> ProfileEntry:
    fit = SessionFit(fixed_s=30.0, per_call_s=0.5, min_num_calls=128, max_num_calls=1024, residual_std_frac=0.02)
    points = (SweepPoint(num_calls=128, session_s=94.0, output_tokens=38000),)
    entry = replace(factories.make_entry(load_s=40.0), fit=fit, points=points, output_tokens=(100, 200, 601))
    return replace(entry, expert=expert, **changes)  # type: ignore[arg-type]


def make_profile(*entries: ProfileEntry) -> Profile:
    return factories.make_profile(*(entries or (make_entry(),)))


@given(sizes=SIZES, seed=st.integers(0, 10**6))
def test_a_fit_is_the_least_of_its_kind_in_relative_error(sizes: list[int], seed: int) -> None:
    rng = random.Random(seed)
    points = make_points({n: (20 + 0.3 * n) * rng.uniform(0.7, 1.4) for n in sizes})
    fit = fit_session(points)
    assert fit.fixed_s >= 0
    assert fit.per_call_s >= 0

    def loss(fixed: float, slope: float) -> float:
        return sum(((fixed + slope * p.num_calls) / p.session_s - 1) ** 2 for p in points)

    least = loss(fit.fixed_s, fit.per_call_s)
    assert (least / len(points)) ** 0.5 == pytest.approx(fit.residual_std_frac)
    for fixed_step, slope_step in ((1e-3, 0), (-1e-3, 0), (0, 1e-5), (0, -1e-5), (0.1, -1e-4), (-0.1, 1e-4)):
        fixed, slope = fit.fixed_s + fixed_step, fit.per_call_s + slope_step
        if fixed >= 0 and slope >= 0:
            assert loss(fixed, slope) >= least - 1e-9


def test_convex_and_falling_sweeps_and_repeats_of_one_size_by_hand() -> None:
    convex, falling = fit_session(make_points({10: 1.0, 100: 20.0})), fit_session(make_points({10: 20.0, 100: 10.0}))
    assert convex.fixed_s == 0.0
    assert convex.per_call_s == pytest.approx((10 / 1 + 100 / 20) / (10**2 / 1 + 100**2 / 20**2))
    assert falling.per_call_s == 0.0
    assert 10.0 < falling.fixed_s < 20.0
    with pytest.raises(ValueError, match=r"sweep: shard sizes must be at least two different sizes, got \[10\]"):
        fit_session(make_points({10: 20.0}) * 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SweepPoint(num_calls=0, session_s=1.0, output_tokens=1), "sweep point: num_calls must be at least 1"),
        (lambda: SweepPoint(num_calls=1, session_s=0.0, output_tokens=1), "sweep point: session_s must be above 0"),
        (lambda: SweepPoint(num_calls=1, session_s=1.0, output_tokens=-1), "output_tokens must be at least 0, got -1"),
        (lambda: replace(make_entry().fit, fixed_s=-1.0), "session fit: fixed_s must be at least 0, got -1.0"),
        (lambda: replace(make_entry().fit, per_call_s=float("nan")), "session fit: per_call_s must be finite, got nan"),
        (lambda: replace(make_entry().fit, min_num_calls=0), "session fit: min_num_calls must be at least 1, got 0"),
        (lambda: replace(make_entry().fit, max_num_calls=9), "session fit: max_num_calls must be at least 128, got 9"),
        (lambda: make_entry(""), "profile entry '': expert must be a non-empty string"),
        (lambda: make_entry(tp_degree=0), "profile entry 'A': tp_degree must be at least 1, got 0"),
        (lambda: make_entry(load_s=-1), "profile entry 'A': load_s must be at least 0, got -1"),
        (lambda: Profile(source="", entries=()), "profile: source must be a non-empty string"),
        (
            lambda: make_profile(make_entry(), make_entry()),
            r"profile 'test': .* must be unique, got \('A', 'gpu'",
        ),
    ],
)
def test_bad_entries_name_field_rule_and_value(make, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_entries_and_lengths_are_found_and_what_was_not_measured_is_an_error() -> None:
    wide, other = make_entry(tp_degree=4), make_entry(gpu="other")
    profile = make_profile(make_entry(), wide, other, make_entry("B", gpu="other"))
    assert profile.entry("A", "gpu", 4) is wide
    assert profile.entry("A", "other", 1) is other
    assert profile.lengths("B") == make_entry().lengths
    narrow = make_profile(make_entry("B"), make_entry())
    for expert, gpu, degree in (("C", "gpu", 1), ("A", "other", 1), ("A", "gpu", 2)):
        covers = r"it on 1 x gpu" if expert == "A" else r"\['A', 'B'\]"
        message = rf"profile 'test' has no entry for expert '{expert}' on {degree} x {gpu}; it covers {covers}"
        with pytest.raises(ProfileError, match=message):
            narrow.entry(expert, gpu, degree)
    with pytest.raises(ProfileError, match=r"test' has no lengths for expert 'C'; it covers \['A', 'B'\]"):
        narrow.lengths("C")


def test_only_shards_outside_the_sweep_are_called_extrapolated() -> None:
    profile = make_profile(*(make_entry(name) for name in "ABCDEF"))
    notes = profile.extrapolation_notes({"A": 1024, "B": 1025, "C": 3, "D": 128, "E": 0})
    assert notes == (
        "B: 1,025 calls, priced by extrapolating a sweep from 128 to 1,024",
        "C: 3 calls, priced by extrapolating a sweep from 128 to 1,024",
    )


def test_a_file_gives_back_the_profile_and_the_same_bytes(tmp_path: Path) -> None:
    profile = make_profile(make_entry(), make_entry("B", tp_degree=4, output_tokens=()))
    path = tmp_path / "new" / "profile.json"
    write_profile(profile, path)
    assert load_profile(path) == profile
    assert profile_to_json(load_profile(path)) == path.read_text(encoding="utf-8") == profile_to_json(profile)
    assert [entry.name for entry in path.parent.iterdir()] == ["profile.json"]
    keys = list(json.loads(path.read_text())["entries"][0])
    assert keys == sorted(keys)


@given(
    fixed=st.floats(0, 1e6), slope=st.floats(0, 1e3), spread=st.floats(0, 2), lengths=st.lists(st.integers(0, 10**6))
)
def test_numbers_survive_json_to_the_last_bit(fixed: float, slope: float, spread: float, lengths: list[int]) -> None:
    fit = SessionFit(fixed_s=fixed, per_call_s=slope, min_num_calls=3, max_num_calls=9, residual_std_frac=spread)
    text = profile_to_json(make_profile(make_entry(fit=fit, output_tokens=tuple(lengths))))
    entry = json.loads(text)["entries"][0]
    assert SessionFit(**entry["fit"]) == fit
    assert entry["output_tokens"] == lengths


def test_a_profile_that_cannot_be_written_or_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file" / "profile.json"
    path.parent.write_text("in the way")
    with pytest.raises(ProfileError, match=r"profile .*profile\.json: cannot be written \("):
        write_profile(make_profile(), path)
    assert path.parent.read_text() == "in the way"
    with pytest.raises(ProfileError, match=r"profile .*none\.json: cannot be read \(No such file"):
        load_profile(tmp_path / "none.json")


def broken(**changes: object) -> str:
    data = json.loads(profile_to_json(make_profile()))
    data["entries"][0] |= changes
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[]", "the file: Expected `object`, got `array`"),
        ("{}", "the file: Object missing required field `source`"),
        ('{"source": "", "entries": []}', "the file: profile: source must be a non-empty string"),
        (broken(colour="red"), r"entries\[0\]: unknown key 'colour', known are \['expert', "),
        (broken(load_s="soon"), r"entries\[0\]\.load_s: Expected `float`, got `str`"),
        (broken(load_s=float("inf")), "not JSON"),
        (broken(fit={"fixed_s": 1.0}), r"entries\[0\]\.fit: Object missing required field `per_call_s`"),
        (
            broken(points=[{"num_calls": 0, "session_s": 1.0, "output_tokens": 1}]),
            r"entries\[0\]\.points\[0\]: sweep point: num_calls must be at least 1, got 0",
        ),
    ],
)
def test_what_is_not_a_profile_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(text)
    with pytest.raises(ProfileError, match=rf"profile .*profile\.json: {message}"):
        load_profile(path)


@given(st.dictionaries(st.integers(1, 1000), st.floats(0.1, 1000), min_size=1, max_size=6))
def test_convex_pieces_rise_and_are_nowhere_above_what_was_measured(times: dict[int, float]) -> None:
    pieces = convex_pieces(make_points(times))
    slopes = [slope for _, slope in pieces]
    assert slopes == sorted(slopes)
    assert min(slopes) >= 0
    assert pieces[0][0] >= 0
    for size, seconds in times.items():
        assert max(fixed + slope * size for fixed, slope in pieces) <= seconds * (1 + 1e-9)


@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(0, 10)), min_size=1, max_size=3),
    st.lists(st.integers(1, 500), min_size=2, max_size=6, unique=True),
)
def test_convex_times_are_met_exactly(lines: list[tuple[float, float]], sizes: list[int]) -> None:
    times = {size: 1.0 + max(fixed + slope * size for fixed, slope in lines) for size in sizes}
    pieces = convex_pieces(make_points(times))
    for size, seconds in times.items():
        assert max(fixed + slope * size for fixed, slope in pieces) == pytest.approx(seconds)


def test_repeats_of_a_size_count_by_their_mean() -> None:
    points = make_points({10: 90.0, 20: 130.0}) + make_points({10: 110.0})
    assert convex_pieces(points) == ((70.0, 3.0),)
