"""The study of growth: a run is counted by itself, and one that fails is no row."""

import pytest

from experiments.lab.study import Point
from experiments.studies.growth import measure, point


@pytest.mark.slow
def test_a_run_of_each_size_is_counted_by_itself() -> None:
    large, small = (measure(point(num_calls, 4, "round_robin"), 0) for num_calls in (30_000, 300))
    assert 0 < small["cpu_s"] < large["cpu_s"]
    assert 50 < small["peak_mib"] < large["peak_mib"], "not the peak of all processes so far"


@pytest.mark.slow
def test_a_run_that_fails_is_no_row() -> None:
    with pytest.raises(RuntimeError, match="scheduler=none.*: ended with status 2"):
        measure(Point(labels={}, overrides=("scheduler=none",)), 0)
