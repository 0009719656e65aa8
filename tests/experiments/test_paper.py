"""The reproduction: what is measured of a run, numbers beside published ones, and what README shows of it."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from matplotlib.patches import Rectangle
from scipy.stats import t as student_t

from experiments.studies.paper import STUDY, Number, compare, find_misses, number_table, show, show_error
from experiments.studies.paper_figures import FIGURES, figure3
from experiments.studies.paper_points import (
    BENCHMARKS,
    TYPICAL_SEEDS,
    measure_tail,
    split_of,
)
from experiments.studies.published import FITTED, PREDICTED, TOKENS_PER_CALL, expert_tokens, fit_target, read_published
from mosaic.comparison.estimate import estimate, t_interval
from mosaic.core.results import RunResult
from mosaic.core.workload import AGGREGATE
from mosaic.figures.style import lay_out
from tests.run_records import make_key, make_record, make_session

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "results" / "paper"


@pytest.fixture(scope="module")
def tables() -> Mapping[str, pl.DataFrame]:
    return {name: pl.read_csv(COMMITTED / f"{name}.csv", infer_schema_length=None) for name in STUDY.tables}


def make_number(
    *values: float, published: float = 10.0, unit: str = "s", kind: str = PREDICTED, runs: int = 1
) -> Number:
    return Number(
        workload="gpqa",
        quantity="wall",
        unit=unit,
        kind=kind,
        published=published,
        simulated=estimate(values),
        one_run=t_interval(values, runs),
    )


def test_the_interval_of_one_run_by_hand() -> None:
    quantile = student_t.ppf(0.975, 2)
    one, four = make_number(8.0, 10.0, 12.0), make_number(8.0, 10.0, 12.0, runs=4)
    assert one.one_run == pytest.approx((10 - quantile * 2 * (4 / 3) ** 0.5, 10 + quantile * 2 * (4 / 3) ** 0.5))
    assert four.one_run == pytest.approx((10 - quantile * 2 * (7 / 12) ** 0.5, 10 + quantile * 2 * (7 / 12) ** 0.5))


def test_a_published_value_outside_of_one_runs_interval_is_a_miss() -> None:
    values = (9.9, 10.0, 10.1)
    low, high = make_number(*values).one_run
    assert low is not None
    assert high is not None
    assert not make_number(*values, published=high - 0.01).is_miss
    assert make_number(*values, published=high + 0.01).is_miss
    assert make_number(*values, published=low - 0.01).is_miss


def test_one_seed_has_no_interval_and_misses_nothing() -> None:
    number = make_number(20.0)
    assert (number.one_run, number.is_miss, number.half_widths) == ((None, None), False, 0.0)
    assert number.is_far, "but how far off it is can be said"
    assert "| 20.0 s | - | +100.0% | - | - | predicted |" in number_table([number])


def test_errors_are_relative_or_differences() -> None:
    assert show_error(make_number(11.0)) == "+10.0%"
    assert show_error(make_number(0.5, published=0.45, unit="frac")) == "+5.0 points"
    assert show_error(make_number(-0.5, published=0.25, unit="pp")) == "-0.75 pp"
    assert show_error(make_number(-0.3, published=-0.25, unit="rho")) == "-0.05"


def test_values_are_shown_in_their_units() -> None:
    shown = [show(*pair) for pair in ((1557.4, "s"), (165.0, "s"), (1.7, "x"), (2696.2, "tokens"), (0.8462, "frac"))]
    assert shown == ["1,557 s", "165.0 s", "1.70x", "2,696", "84.6%"]


def test_what_is_far_off_though_inside_is_listed() -> None:
    wide = make_number(5.0, 13.0, 19.0)
    assert not wide.is_miss
    assert wide.is_far
    assert not make_number(5.0, 10.0, 15.5).is_far, "2% off"
    assert not replace(wide, unit="frac").is_far, "only relative errors are"


def test_misses_come_predictions_first_and_worst_first() -> None:
    near, far = make_number(9.9, 10.0, 10.1, published=11.0), make_number(9.9, 10.0, 10.1, published=20.0)
    fitted = make_number(9.9, 10.0, 10.1, published=50.0, kind=FITTED)
    inside = make_number(9.0, 10.0, 11.0)
    assert find_misses([fitted, near, inside, far]) == [far, near, fitted]


def test_the_tail_is_what_runs_when_a_twentieth_of_the_calls_is_left() -> None:
    """A stage of 40 calls loads from 100 on and ends at 150, the last two of them alone from 138 on."""
    ends = [float(ts) for ts in range(101, 139)] + [145.0, 150.0]
    calls = [
        make_record(key=make_key(f"q{i}", node=AGGREGATE), finished_ts=ts, output_tokens=10 + i, admitted_ts=100.0)
        for i, ts in enumerate(ends)
    ]
    calls.append(make_record("q0", finished_ts=99.0, output_tokens=9_999))
    sessions = [make_session(node=AGGREGATE, load=(100.0, 1.0), end_ts=150.0), make_session(session=1)]
    tail = measure_tail(RunResult(calls=tuple(calls), sessions=tuple(sessions), num_workers=4))
    assert tail == {"num_merged": 40, "tail_frac": pytest.approx((150 - 138) / 50), "longest_tokens": 49}


def test_an_unreadable_answer_agrees_with_none() -> None:
    votes = (("a", "a", "a"), ("a", None, "a"), (None, None, "b"), (None, None, None), ("a", "b", "c"))
    assert [split_of(each) for each in votes] == [0, 1, 2, 2, 2]


def test_every_published_number_of_a_run_is_compared(tables: Mapping[str, pl.DataFrame]) -> None:
    numbers = compare(tables)
    assert len(numbers) == 53
    assert {number.workload for number in numbers} == set(BENCHMARKS)
    assert [number.simulated.num for number in numbers if number.quantity == "end to end, speedup"] == [16, 16, 64]


def test_the_timelines_are_of_the_seeds_nearest_to_the_means(tables: Mapping[str, pl.DataFrame]) -> None:
    runs = pl.concat([tables["runs"], tables["gpqa"]], how="vertical_relaxed")
    runs = runs.filter(pl.col("policy").is_in(["round_robin", "ilp"]), drawn="run")
    wall_s = pl.col("expert_makespan_s")
    for workload, seed in TYPICAL_SEEDS.items():
        own = runs.filter(workload=workload).with_columns(off=(wall_s / wall_s.mean().over("policy") - 1).abs())
        assert own.group_by("seed").agg(pl.col("off").sum()).sort("off")["seed"][0] == seed


def test_bars_add_up_to_the_makespan(tables: Mapping[str, pl.DataFrame]) -> None:
    axes = figure3(tables).axes[0]
    bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    runs = tables["runs"].filter(workload="mmlu_pro", policy="round_robin")
    assert sum(bar.get_width() for bar in bars[:3]) == pytest.approx(runs["expert_makespan_s"].mean())
    assert len(bars) == 6


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_leaves_a_figure(name: str, tables: Mapping[str, pl.DataFrame]) -> None:
    figure = FIGURES[name](tables)
    lay_out(figure)
    drawn = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert drawn.x0 >= 0
    assert drawn.y0 >= 0
    assert drawn.x1 <= width
    assert drawn.y1 <= height


def test_readme_shows_the_committed_page() -> None:
    page, readme = (COMMITTED / "paper.md").read_text(), (ROOT / "README.md").read_text()
    misses = re.search(r"Misses: (\d+ of \d+) published numbers, (\d+ of the \d+) predicted ones", page)
    assert misses is not None
    assert all(words in " ".join(readme.split()) for words in misses.groups())
    (row, *_) = re.findall(r"^\| end to end, ILP and tau = 2/3 \|(.*)\|$", page, re.M)
    assert re.findall(r"\(([-+][\d.]+%)\)", row) == re.findall(r"[-+]\d+\.\d%", readme)
    assert "results/paper/timelines_mmlu_pro.png" in readme


def published(quantity: str, workload: str = "mmlu_pro") -> list[float]:
    values: list[float] = read_published().filter(quantity=quantity, workload=workload)["value"].to_list()
    return values


def value(quantity: str, workload: str = "mmlu_pro") -> float:
    (found,) = published(quantity, workload)
    return found


def test_a_fit_reads_what_may_be_fitted_only() -> None:
    assert fit_target("round robin, busy seconds of worker 2") == 165
    with pytest.raises(
        ValueError, match=r"'ILP, speedup of the expert stage' of gpqa must be fitted or built on, got \['predicted'\]"
    ):
        fit_target("ILP, speedup of the expert stage", "gpqa")
    with pytest.raises(ValueError, match="end to end, speedup"):
        fit_target("end to end, speedup", "nothing of that name")
    assert expert_tokens("mmlu_pro") == {"LlamaR1": 3146, "QwenR1": 3734, "Gemma": 291}


def test_only_what_a_fit_reads_is_called_fitted() -> None:
    rows = read_published().select("quantity", "workload", "kind").rows()
    kinds = {(quantity, workload): kind for quantity, workload, kind in rows}
    walls = [kinds["round robin, expert stage", benchmark] for benchmark in BENCHMARKS]
    assert walls == ["follows from fits", "fitted", "fitted"], "MMLU-Pro's four workers are fitted, not its wall"
    for quantity in ("ILP, expert stage", "aggregator at tau = 2/3", "end to end, speedup"):
        assert {kinds[quantity, benchmark] for benchmark in BENCHMARKS} == {"predicted"}


def test_the_round_robin_wall_is_that_of_the_busiest_worker() -> None:
    workers = [value(f"round robin, busy seconds of worker {worker}") for worker in range(4)]
    assert max(workers) == pytest.approx(value("round robin, expert stage"), rel=0.01)
    idle = 1 - sum(workers) / (4 * max(workers))
    assert idle == pytest.approx(value("round robin, idle share of GPU time"), abs=0.01)


@pytest.mark.parametrize("workload", BENCHMARKS)
def test_published_speedups_are_those_of_the_walls(workload: str) -> None:
    before_s, after_s = value("round robin, expert stage", workload), published("ILP, expert stage", workload)[0]
    assert before_s / after_s == pytest.approx(value("ILP, speedup of the expert stage", workload), abs=0.01)
    before_s += value("aggregator, every question", workload)
    after_s += value("aggregator at tau = 2/3", workload)
    assert before_s == pytest.approx(value("end to end, round robin, every question", workload), abs=1)
    assert after_s == pytest.approx(value("end to end, ILP and tau = 2/3", workload), abs=1)
    assert before_s / after_s == pytest.approx(value("end to end, speedup", workload), abs=0.005)


@pytest.mark.parametrize("workload", BENCHMARKS)
def test_more_questions_are_skipped_at_two_thirds(workload: str) -> None:
    all_agree, two_agree = value("skipped at tau = 1", workload), value("skipped at tau = 2/3", workload)
    assert 0 < 1 - two_agree < all_agree < two_agree
    assert value("no two experts agree", workload) == pytest.approx(1 - two_agree)


def test_the_mean_over_all_calls_follows_from_the_means_by_agreement() -> None:
    tokens = [value(f"mean tokens of a question's calls, {split}") for split in ("3:0", "2:1", "1:1:1")]
    assert tokens == sorted(tokens)
    assert pytest.approx((960 * tokens[0] + 817 * tokens[1] + 323 * tokens[2]) / 2100) == TOKENS_PER_CALL
    assert pytest.approx(1646, abs=0.5) == TOKENS_PER_CALL
