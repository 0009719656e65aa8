"""Length distributions: moments by closed form, quantiles by hand, sources and files checked."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.world.lengths import ClippedLognormal, Empirical, length_distribution, length_distributions

GRID = [(i + 0.5) / 20_000 for i in range(20_000)]

REASONING = {
    "mean": {"value": 3146, "source": "published"},
    "sigma": {"value": 1.05, "source": "fitted"},
    "clip_tokens": {"value": 32768, "source": "published"},
}


@pytest.mark.parametrize(
    ("mean", "sigma", "clip"), [(3146, 1.05, 32768), (291, 0.8, 4096), (25_000, 1.5, 32768), (1.0, 0.5, 4096)]
)
def test_mean_is_that_of_the_clipped_draws(mean: float, sigma: float, clip: int) -> None:
    lengths = ClippedLognormal(mean=mean, sigma=sigma, clip_tokens=clip)
    # The equal-share grid is exact up to its resolution in the tail; lengths below a few tokens round up.
    unrounded = np.minimum(clip, np.exp(lengths.mu + sigma * _normal_quantiles()))
    assert float(np.mean(unrounded)) == pytest.approx(mean, rel=2e-3)
    if mean > 100:
        draws = [lengths.quantile(u) for u in GRID]
        assert sum(draws) / len(draws) == pytest.approx(mean, rel=2e-3)


def _normal_quantiles() -> np.ndarray:
    from statistics import NormalDist

    return np.array([NormalDist().inv_cdf(u) for u in GRID])


def test_scaling_multiplies_the_mean_and_keeps_shape_and_limit() -> None:
    lengths = length_distribution(REASONING, expert="A").scaled(0.5)
    assert isinstance(lengths, ClippedLognormal)
    assert (lengths.mean, lengths.sigma, lengths.clip_tokens) == (1573, 1.05, 32768)


@given(
    mean=st.floats(1, 3900), sigma=st.floats(0.05, 2.5), low=st.floats(1e-9, 1 - 1e-9), high=st.floats(1e-9, 1 - 1e-9)
)
def test_quantiles_rise_and_stay_within_one_and_the_cap(mean: float, sigma: float, low: float, high: float) -> None:
    lengths = ClippedLognormal(mean=mean, sigma=sigma, clip_tokens=4096)
    low, high = sorted((low, high))
    assert 1 <= lengths.quantile(low) <= lengths.quantile(high) <= 4096


@given(sample=st.lists(st.integers(1, 5000), min_size=1, max_size=30), u=st.floats(1e-6, 1 - 1e-6))
def test_empirical_quantile_is_the_least_value_that_covers_u(sample: list[int], u: float) -> None:
    value = Empirical(sample=tuple(sample)).quantile(u)
    assert value in sample
    assert sum(tokens <= value for tokens in sample) / len(sample) >= u * (1 - 1e-12)
    assert sum(tokens < value for tokens in sample) / len(sample) <= u


def test_empirical_mean_is_that_of_its_sample() -> None:
    lengths = Empirical(sample=(30, 10, 20))
    assert lengths.mean == 20
    assert lengths.scaled(0.01).sample == (1, 1, 1)
    assert lengths.scaled(1.5).sample == (15, 30, 45)


@pytest.mark.parametrize("u", [0.0, 1.0, -0.1, float("nan")])
def test_quantile_refuses_what_is_not_inside_the_unit_interval(u: float) -> None:
    for lengths in (Empirical(sample=(1, 2)), ClippedLognormal(mean=10, sigma=1, clip_tokens=100)):
        with pytest.raises(ValueError, match="u must be above 0 and below 1"):
            lengths.quantile(u)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (3146, "output_tokens.A must be a mapping, got 3146"),
        ({**REASONING, "mean": 3146}, r"output_tokens.A.mean must be \{value: NUMBER, source: .*got 3146"),
        ({**REASONING, "mean": {"value": "x", "source": "fitted"}}, "output_tokens.A.mean.value must be a number"),
        ({**REASONING, "mean": {"value": 9, "source": "x"}}, "output_tokens.A.mean.source must be one of"),
        (
            {**REASONING, "mean": {"value": 99999, "source": "fitted"}},
            "output_tokens.A: mean must be below clip_tokens",
        ),
        ({"mean": REASONING["mean"]}, r"output_tokens.A: keys must be one of .*got \['mean'\]"),
        ({"sample": "12", "source": "measured"}, "output_tokens.A.sample must be a list"),
        ({"sample": [], "source": "measured"}, "output_tokens.A: sample must be non-empty"),
        ({"sample": [3, float("nan")], "source": "measured"}, "output_tokens.A: .*must be a whole number, got nan"),
        ({"sample": [3], "source": "heard"}, "output_tokens.A: source must be one of"),
    ],
)
def test_configuration_errors_name_the_key(config: dict[str, object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        length_distribution(config, expert="A")


def test_distributions_of_a_workload_share_one_scale() -> None:
    config = {"A": REASONING, "B": {"sample": [10, 20], "source": "assumed"}}
    scaled = length_distributions(config, length_scale={"value": 2, "source": "fitted"})
    assert {name: lengths.mean for name, lengths in scaled.items()} == {"A": 6292, "B": 30}
    assert length_distributions(config)["B"] == Empirical(sample=(10, 20))
    with pytest.raises(ValueError, match=r"length_scale\.value must be above 0, got 0"):
        length_distributions(config, length_scale={"value": 0, "source": "fitted"})
    with pytest.raises(TypeError, match="output_tokens must be a mapping of experts or a path"):
        length_distributions([REASONING])  # type: ignore[arg-type]


def test_an_earlier_run_gives_its_finished_calls_of_the_role(tmp_path: Path) -> None:
    path = tmp_path / "calls.parquet"
    rows = [
        {"expert": "A", "role": "propose", "status": "finished", "output_tokens": 30},
        {"expert": "A", "role": "propose", "status": "cancelled", "output_tokens": 4},
        {"expert": "A", "role": "aggregate", "status": "finished", "output_tokens": 900},
        {"expert": "B", "role": "propose", "status": "finished", "output_tokens": 8},
        {"expert": "A", "role": "propose", "status": "finished", "output_tokens": 10},
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    assert length_distribution({"calls": path}, expert="A").sample == (10, 30)
    assert length_distribution({"calls": path}, expert="B").sample == (8,)
    assert {name: lengths.mean for name, lengths in length_distributions(path).items()} == {"A": 20, "B": 8}
    with pytest.raises(ValueError, match="must be a run that has calls of 'C'"):
        length_distribution({"calls": path}, expert="C")


def test_unusable_files_are_named(tmp_path: Path) -> None:
    bad = tmp_path / "calls.parquet"
    with pytest.raises(ValueError, match=r"calls\.parquet must be a readable parquet file"):
        length_distribution({"calls": bad}, expert="A")
    bad.write_text(json.dumps({}))
    with pytest.raises(ValueError, match=r"calls\.parquet must be a readable parquet file"):
        length_distribution({"calls": bad}, expert="A")
    pq.write_table(pa.table({"expert": ["A"]}), bad)
    with pytest.raises(ValueError, match=r"columns of .* must be a superset of .*got \['expert'\]"):
        length_distribution({"calls": bad}, expert="A")
