"""The study of quotes: its rows, what it says of them, and what it draws."""

from dataclasses import replace

import pytest

from experiments.figures.quotes import Quoted, draw_quotes
from experiments.studies.quote_pilots import Row, simulated_rows
from experiments.studies.quote_report import (
    AIM,
    NUM_FIRST_SEEDS,
    calibration_of,
    coverage,
    main_rows,
    quoted_p90_s,
    report,
    split_seeds,
    without,
)
from experiments.studies.rows import read_rows, rows_csv
from mosaic.quote.interval import CALIBRATION
from tests.commands.command_line import ROOT

ROW = Row(
    workload="a", seed=0, per_expert=128, num_pilot_calls=20, num_calls=100, num_gpus=4, plan="ilp (paper)",
    central_s=100.0, spread=0.1, truth_s=100.0, affine_s=150.0, truth_experts_s=100.0,
)  # fmt: skip


def rows_of(*workloads: str) -> list[Row]:
    return [
        replace(ROW, workload=name, seed=seed, truth_s=100.0 + 2.0 * (seed - 5))
        for name in workloads
        for seed in range(11)
    ]


def test_rows_are_read_as_they_were_written(tmp_path) -> None:
    rows = rows_of("a", "b")
    (tmp_path / "pilots.csv").write_text(rows_csv(Row, rows))
    assert read_rows(tmp_path / "pilots.csv", Row) == rows


def test_rows_of_another_kind_are_refused(tmp_path) -> None:
    (tmp_path / "pilots.csv").write_text("workload,seed\ngpqa,1\n")
    with pytest.raises(ValueError, match=r"pilots.csv: columns must be workload, .* got workload, seed"):
        read_rows(tmp_path / "pilots.csv", Row)
    assert read_rows(tmp_path / "none.csv", Row) == []


def test_a_workload_is_calibrated_on_the_others_alone() -> None:
    rows = rows_of("a", "b")
    strange = [replace(row, workload="c", truth_s=1000.0) for row in rows[:11]]
    assert without([*rows, *strange], "c") == replace_source(without(rows, "c"), "all workloads but c")
    assert quoted_p90_s(strange[0], [*rows, *strange]) < 1000
    assert without([*rows, *strange], "a").p90_score > without(rows, "a").p90_score


def replace_source(calibration, source):
    return replace(calibration, source=source)


def test_real_pilots_are_scored_and_teach_nothing() -> None:
    rows = rows_of("a", "b")
    real = [replace(row, workload="tiny_mcq", num_gpus=2, truth_s=500.0) for row in rows[:11]]
    assert calibration_of([*rows, *real], "x") == calibration_of(rows, "x")
    assert quoted_p90_s(real[0], [*rows, *real]) > quoted_p90_s(replace(real[0], workload="c"), rows)


def test_the_headline_is_of_workloads_and_seeds_that_were_left_out() -> None:
    early = rows_of("a", "b")
    late = [replace(row, seed=row.seed + NUM_FIRST_SEEDS, truth_s=100.0 if row.seed < 8 else 1000.0) for row in early]
    assert split_seeds([*early, *late], 128) == (early, late)
    assert coverage(late, early) == pytest.approx(8 / 11)
    text = report([*early, *late], "command")
    assert "workloads and seeds that were left out the truth lies under P90 in 72.7% of 22 pilots." in text
    assert "the truth lies under P90 in 85% to 95%: 72.7% (MISSED)" in text
    assert text.index("72.7%") < text.index("All pilots")


def test_the_report_counts_by_hand() -> None:
    text = report(rows_of("a", "b"), "command")
    line = next(line for line in text.splitlines() if line.startswith("| **all**"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1] == "22"
    assert float(cells[2].rstrip("%")) >= 90
    assert cells[6] == "50%"
    assert len(main_rows(rows_of("a"), 128)) == 11
    assert main_rows([replace(ROW, num_gpus=8)], 128) == []


def test_quotes_promise_what_the_committed_pilots_showed() -> None:
    rows = read_rows(ROOT / "results" / "quote" / "pilots.csv", Row)
    early, late = split_seeds(rows, 128)
    assert len(late) >= 50
    assert AIM[0] <= coverage(late, early) <= AIM[1]
    assert calibration_of(main_rows(rows, 128), "all").p90_score == pytest.approx(CALIBRATION.p90_score, abs=5e-4)


def test_a_simulated_pilot_gives_a_row_for_each_number_of_gpus() -> None:
    rows = list(simulated_rows("gpqa", 0, 20, (2, 4)))
    assert [row.num_gpus for row in rows] == [2, 4]
    for row in rows:
        assert row.num_pilot_calls == pytest.approx(80, abs=10)
        assert row.central_s == pytest.approx(row.truth_s, rel=1.5)
        assert row.truth_experts_s <= row.truth_s
        assert row.spread > 0


def test_quotes_are_drawn_by_workload() -> None:
    pilots = [Quoted(name, 100.0, 150.0, truth) for name in ("a", "b") for truth in (90.0, 160.0)]
    assert draw_quotes(pilots).startswith(b"\x89PNG")
