"""The study of quotes: what a pilot's P90 is learned from, and that quotes promise what the committed pilots showed."""

import polars as pl
import pytest

from experiments.studies.quotes import (
    AIM_PERCENT,
    ALL,
    NUM_FIRST_SEEDS,
    STUDY,
    calibrate_without,
    share_percent,
    split_seeds,
    summarise,
)
from mosaic.quote.quotation import CALIBRATION
from tests.commands.command_line import ROOT


def make_pilots(*workloads: str, first_seed: int = 0, truth_s: float | None = None) -> pl.DataFrame:
    """Make eleven pilots of each workload; P50 is that of the sixth."""
    pilots = pl.DataFrame({"seed": range(first_seed, first_seed + 11)}).with_columns(
        truth_s=pl.lit(truth_s) if truth_s else 100.0 + 2.0 * (pl.col("seed") - first_seed - 5),
        central_s=100.0, spread=0.1, affine_s=150.0, truth_experts_s=100.0,
    )  # fmt: skip
    return pl.concat([pilots.with_columns(workload=pl.lit(name)) for name in workloads])


def test_a_workload_is_calibrated_on_the_others_alone() -> None:
    pilots = make_pilots("a", "b")
    strange = pl.concat([pilots, make_pilots("c", truth_s=1000.0)])
    assert calibrate_without(strange, "c").p90_score == calibrate_without(pilots, "c").p90_score
    assert calibrate_without(strange, "a").p90_score > calibrate_without(pilots, "a").p90_score


def test_the_page_begins_with_workloads_and_seeds_that_were_left_out() -> None:
    early, late = make_pilots("a", "b"), make_pilots("a", "b", first_seed=NUM_FIRST_SEEDS)
    late = late.with_columns(truth_s=pl.when(pl.col("seed") < NUM_FIRST_SEEDS + 8).then(100.0).otherwise(1000.0))
    assert [len(part) for part in split_seeds(pl.concat([early, late]))] == [22, 22]
    of_all = summarise(late, early)[-1]
    assert (of_all["name"], of_all["number"]) == (ALL, 22)
    assert of_all["covered"].mean == pytest.approx(100 * 8 / 11)
    assert of_all["affine"].mean == pytest.approx(50)
    rows = pl.concat([early, late]).with_columns(plan=pl.lit("ilp (paper)"))
    page = STUDY.report({"pilots": rows})
    assert "the truth lies under P90 in 85 to 95%: 72.7% (MISSED)" in page
    assert page.index("72.7%") < page.index("All pilots")
    assert "left out" not in STUDY.report({"pilots": rows.filter(pl.col("seed") < NUM_FIRST_SEEDS)})


def test_a_share_has_the_exact_interval_of_the_binomial() -> None:
    share = share_percent(4, 4)
    assert share[:3] == pytest.approx((100, 100 * 0.025 ** (1 / 4), 100))


def test_quotes_promise_what_the_committed_pilots_showed() -> None:
    pilots = pl.read_csv(ROOT / "results" / "quote" / "pilots.csv")
    early, late = split_seeds(pilots)
    assert len(late) >= 50
    assert AIM_PERCENT[0] <= summarise(late, early)[-1]["covered"].mean <= AIM_PERCENT[1]
    assert calibrate_without(pilots, ALL).p90_score == pytest.approx(CALIBRATION.p90_score, abs=5e-4)
