"""The studies of plans: what they draw, how they summarise, and that the committed tables are theirs."""

from dataclasses import replace
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from experiments.plans import SECTIONS, STUDIES, _page
from experiments.studies.plan_cases import CASES, Outcome, cases_table
from experiments.studies.plan_runs import ROBUST, factor, quantile
from experiments.studies.rows import read_csv
from experiments.studies.wrong_means import Draw, draws_table, wrong_means_table

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "results" / "plans"


def make_draws() -> list[Draw]:
    base = [Draw("gpqa", "ilp", draw, 100.0 + draw, 100.0) for draw in range(20)]
    return [*base, *(Draw("gpqa", "robust", draw, 90.0 + draw / 2, None) for draw in range(20))]


def test_quantiles_are_values_that_enough_others_do_not_exceed() -> None:
    values = [float(value) for value in range(1, 51)]
    assert (quantile(values, 0.95), quantile(values, 0.5), quantile(values, 1.0)) == (48, 25, 50)
    assert quantile([3.0], 0.95) == 3.0


def test_factors_are_independent_and_within_the_error() -> None:
    drawn = {(name, draw): factor(name, 2.0, draw) for name in "ABC" for draw in range(100)}
    assert all(0.5 < value < 2 for value in drawn.values())
    assert len(set(drawn.values())) == 300
    assert sum(value > 1 for value in drawn.values()) == pytest.approx(150, abs=40)
    assert factor("A", 1.0, 5) == 1.0


def test_a_summary_sets_each_policy_beside_the_papers_on_the_same_draws() -> None:
    head, *rows = wrong_means_table(make_draws())
    ilp, robust = (dict(zip(head, row, strict=True)) for row in rows)
    assert ilp["p95 s"] == "118"
    assert ilp["p95 / ilp"] == "1.000"
    assert ilp["mean regret"] == "9.5%"
    assert robust["p95 / ilp"] == f"{99 / 118:.3f}"
    assert robust["mean regret"] == ""
    assert len(draws_table(make_draws())) == 41


def test_a_case_is_compared_with_its_first_plan_seed_by_seed() -> None:
    outcomes = [
        Outcome("c", "gpqa", "without", (100.0, 200.0, 300.0), "2 x A tp1", 0.5),
        Outcome("c", "gpqa", "with", (50.0, 100.0, 150.0), "1 x A tp2", 0.6),
    ]
    _, first, second = cases_table(outcomes)
    assert first[3:7] == ("200.0", "1.000", "1.000 to 1.000", "50.0%")
    assert second[3:7] == ("100.0", "0.500", "0.500 to 0.500", "60.0%")
    assert {case.workload for case in CASES} == {"gpqa", "medmcqa", "mmlu_pro"}


def test_the_robust_plan_of_the_study_is_the_configured_one() -> None:
    configured = instantiate(OmegaConf.load(ROOT / "conf" / "scheduler" / "robust.yaml"), _convert_="all")
    assert replace(ROBUST.scheduler, time_limit_s=configured.time_limit_s) == configured  # type: ignore[type-var]


def test_the_committed_page_is_made_of_the_committed_tables() -> None:
    assert (COMMITTED / "plans.md").read_text(encoding="utf-8") == _page(COMMITTED)
    assert set(SECTIONS) == {path.stem for path in COMMITTED.glob("*.csv")} - {"wrong_means_draws"}
    assert set(STUDIES) <= set(SECTIONS)
    summary = {tuple(row[:2]): row for row in read_csv(COMMITTED / "wrong_means.csv")[1:]}
    draws = [
        Draw(row[0], row[1], int(row[2]), float(row[3]), float(row[4]) if row[4] else None)
        for row in read_csv(COMMITTED / "wrong_means_draws.csv")[1:]
    ]
    again = {tuple(row[:2]): row for row in wrong_means_table(draws)[1:]}
    assert {key: list(row)[:6] for key, row in again.items()} == {key: list(row)[:6] for key, row in summary.items()}


@pytest.mark.slow
def test_the_command_writes_tables_and_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments import plans

    monkeypatch.setattr("sys.argv", ["plans", "--only", "wrong_means", "--draws", "1", "--out", str(tmp_path)])
    assert plans.main() == 0
    assert {path.name for path in tmp_path.iterdir()} == {"plans.md", "wrong_means.csv", "wrong_means_draws.csv"}
