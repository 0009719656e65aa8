"""Every study: its committed page follows from its committed tables, and a row measured anew is the committed one."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from experiments.lab.preset import preset_names
from experiments.lab.study import key_types, run_study
from experiments.lab.tables import read_table
from experiments.measure_heads import heads_report
from experiments.study import find_studies, load_study

RESULTS = Path(__file__).resolve().parents[2] / "results"
OWN_FOLDERS = ("budgets", "gates", "growth", "paper", "validation")
COMMITTED = {name: name for name in OWN_FOLDERS} | {
    "answers": "calibration",
    "calibration": "calibration",
    "past_paper": "budgets",
    "quotes": "quote",
}
COMMITTED |= dict.fromkeys(preset_names(), "ablations")
"""Folder below results/ of each study."""
NOT_AGAIN = (("calibration", "fits"), ("past_paper", "runs"))
"""Tables whose rows take a minute each, or the questions of +experiment=budget_calibration.

What the fit finds is tested where its parts are (test_round_robin.py), budgets in
tests/config/test_reaction_options.py.
"""
FAST = ("ablate_tau", "answers")
"""Studies whose rows take a second or two."""
MEASURED_AT = {"quotes": (0, -1)}
"""Places among a study's points that are measured anew, where not the last alone: of GPQA's pilots an expert has one
size of session."""
CUT_BY_CLOCK = ("quotes",)
"""Studies whose plans have two wall seconds: on a busy machine one may be cut, and its row be another."""


def test_every_study_is_committed_and_says_what_it_is_about() -> None:
    assert {*find_studies()} == {*COMMITTED}
    for name in COMMITTED:
        study = load_study(name)
        assert study.name == name
        assert study.about.endswith(".")


@pytest.mark.parametrize("name", COMMITTED)
def test_the_committed_page_follows_from_the_committed_tables(name, tmp_path) -> None:
    study, committed = replace(load_study(name), figures={}), RESULTS / COMMITTED[name]
    for table in study.tables:
        shutil.copy(committed / f"{table}.csv", tmp_path)
    run_study(study, tmp_path, draw_only=True, show=lambda line: None)
    for file in (f"{name}.md", *(f"{table}.csv" for table in study.tables)):
        assert (tmp_path / file).read_text() == (committed / file).read_text()


def test_the_page_of_heads_follows_from_its_table() -> None:
    heads = pl.read_csv(RESULTS / "flexicache" / "heads.csv")
    assert (RESULTS / "flexicache" / "heads.md").read_text() == heads_report(heads, 16 / 22, 22 / 90)


def test_figures_are_written_beside_the_page(tmp_path) -> None:
    shutil.copy(RESULTS / "ablations" / "ablate_tau.csv", tmp_path)
    run_study(load_study("ablate_tau"), tmp_path, draw_only=True, show=lambda line: None)
    assert (tmp_path / "ablate_tau.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "ablate_tau.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("name", COMMITTED)
def test_figures_show_the_values_of_the_tables(name) -> None:
    study, committed = load_study(name), RESULTS / COMMITTED[name]
    tables = {table: pl.read_csv(committed / f"{table}.csv", infer_schema_length=None) for table in study.tables}
    for draw in study.figures.values():
        axes = draw(tables).axes
        assert axes[-1].get_xlabel()
        names = "".join(label.get_text() for label in axes[0].get_yticklabels())
        assert axes[0].get_ylabel() or any(char.isalpha() for char in names), (
            "an axis says what it shows, or its rows do"
        )
        assert all(each.has_data() for each in axes)


def marks_of(name: str) -> list[pytest.MarkDecorator]:
    if name in FAST:
        return []
    return [pytest.mark.slow, pytest.mark.alone] if name in CUT_BY_CLOCK else [pytest.mark.slow]


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks_of(name)) for name in COMMITTED])
def test_a_measurement_made_anew_is_the_committed_one(name) -> None:
    study, committed = load_study(name), RESULTS / COMMITTED[name]
    for table, sweep in study.tables.items():
        if sweep.in_turn or (name, table) in NOT_AGAIN:  # in turn: it takes times of the machine itself
            continue
        kept = read_table(committed / f"{table}.csv", key_types(sweep))
        for point in [sweep.points[place] for place in MEASURED_AT.get(name, (-1,))]:
            found = sweep.measure(point, 0)
            rows = [found] if isinstance(found, Mapping) else found
            for row, old in zip(rows, kept.filter(**point.labels, seed=0).to_dicts(), strict=True):
                numbers = {key: value for key, value in row.items() if isinstance(value, int | float)}
                assert {key: old[key] for key in numbers} == pytest.approx(numbers, rel=1e-9)
