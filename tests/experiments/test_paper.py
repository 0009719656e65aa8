"""The reproduction: rows beside published numbers, tables, and the command itself with one seed."""

import csv
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from scipy.stats import t as student_t

from experiments.studies.paper_figures import typical_place
from experiments.studies.paper_report import describe, errors_csv, misses
from experiments.studies.paper_rows import FITTED, PREDICTED, Row
from experiments.studies.paper_runs import BENCHMARKS, POOLS, PaperRun, PaperRuns, paper_points, run_all
from experiments.studies.paper_tables import error_table, show, show_error, to_csv, to_markdown, walls_table
from mosaic.core.errors import RunFolderError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "results" / "paper"
FIGURES = (
    "figure1_lengths", "figure2_skew", "figure3_data_parallel", "figure3_throughput", "figure5_timelines",
    "figure6_end_to_end", "figure7_agreement",
)  # fmt: skip
TABLES = (
    "table1_accuracy", "table3_slots", "table4_walls", "pools", "errors", "figure2_idle", "aggregator_tail",
    "open_ranges", "spread", "model_ablation", "abilities",
)  # fmt: skip


def make_row(*values: float, published: float = 10.0, unit: str = "s", kind: str = PREDICTED, runs: int = 1) -> Row:
    return Row(
        quantity="wall",
        benchmark="gpqa",
        unit=unit,  # type: ignore[arg-type]
        published=published,
        values=values,
        kind=kind,  # type: ignore[arg-type]
        num_published=runs,
    )


def test_intervals_by_hand() -> None:
    row = make_row(8.0, 10.0, 12.0)
    quantile = student_t.ppf(0.975, 2)
    assert row.mean == 10
    assert row.interval == pytest.approx((10 - quantile * 2 / 3**0.5, 10 + quantile * 2 / 3**0.5))
    assert row.predictive == pytest.approx((10 - quantile * 2 * (4 / 3) ** 0.5, 10 + quantile * 2 * (4 / 3) ** 0.5))
    four = replace(row, num_published=4)
    assert four.predictive == pytest.approx((10 - quantile * 2 * (7 / 12) ** 0.5, 10 + quantile * 2 * (7 / 12) ** 0.5))


def test_a_published_value_outside_of_one_runs_interval_is_a_miss() -> None:
    values = (9.9, 10.0, 10.1)
    edge = make_row(*values).predictive
    assert edge is not None
    assert make_row(*values, published=edge[1] - 0.01).is_miss is False
    assert make_row(*values, published=edge[1] + 0.01).is_miss is True
    assert make_row(*values, published=edge[0] - 0.01).is_miss is True


def test_one_seed_has_no_interval_and_misses_nothing() -> None:
    row = make_row(20.0)
    assert (row.interval, row.predictive, row.is_miss, row.num_intervals_off) == (None, None, None, 0.0)
    assert row.is_far, "but how far off it is can be said"


def test_errors_are_relative_or_differences() -> None:
    assert make_row(11.0).error == pytest.approx(0.1)
    assert show_error(make_row(11.0)) == "+10.0%"
    share = make_row(0.5, published=0.45, unit="frac")
    assert share.error == pytest.approx(0.05)
    assert show_error(share) == "+5.0 points"
    assert show_error(make_row(-0.5, published=0.25, unit="pp")) == "-0.75 pp"
    assert show_error(make_row(-0.3, published=-0.25, unit="rho")) == "-0.05"


def test_values_are_shown_in_their_units() -> None:
    shown = [show(*pair) for pair in ((1557.4, "s"), (165.0, "s"), (1.7, "x"), (2696.2, "tokens"), (0.8462, "frac"))]
    assert shown == ["1,557 s", "165.0 s", "1.70x", "2,696", "84.6%"]


def test_what_is_far_off_though_inside_is_listed() -> None:
    wide = make_row(5.0, 13.0, 19.0)
    assert wide.is_miss is False
    assert wide.is_far
    assert not make_row(5.0, 10.0, 15.5).is_far, "2% off"
    assert not replace(wide, unit="frac").is_far, "only relative errors are"


def test_misses_come_predictions_first_and_worst_first() -> None:
    near, far = make_row(9.9, 10.0, 10.1, published=11.0), make_row(9.9, 10.0, 10.1, published=20.0)
    fitted = make_row(9.9, 10.0, 10.1, published=50.0, kind=FITTED)
    inside = make_row(9.0, 10.0, 11.0)
    assert misses([fitted, near, inside, far]) == [far, near, fitted]
    assert describe(near).startswith("GPQA, wall: published 11.0 s, simulated 10.0 s (-9.1%), one run 9.")


def test_tables_are_written_for_pages_and_programs() -> None:
    table = error_table([make_row(9.9, 10.0, 10.1, published=11.0)])
    page = to_markdown(table).splitlines()
    assert page[0].startswith("| quantity | benchmark | published | simulated |")
    assert page[1] == "| " + " | ".join(["---"] * 9) + " |"
    assert "| MISS | predicted |" in page[2]
    assert to_csv([("a", "b"), (None, "1,5")]) == 'a,b\n,"1,5"\n'


def test_errors_are_written_as_numbers() -> None:
    lines = list(csv.DictReader(errors_csv([make_row(11.0), make_row(9.0, 10.0, 11.0)]).splitlines()))
    assert [line["num_seeds"] for line in lines] == ["1", "3"]
    assert lines[0]["low"] == lines[0]["is_miss"] == ""
    assert float(lines[1]["simulated_mean"]) == 10
    assert lines[1]["is_miss"] == "False"


def test_points_are_distinct_and_the_first_seed_comes_first() -> None:
    points = paper_points(2)
    assert len({point.name for point in points}) == len(points)
    assert len({(point.overrides) for point in points}) == len(points)
    assert [point.seed for point in points] == sorted(point.seed for point in points)
    for benchmark in BENCHMARKS:
        policies = {point.policy for point in points if point.workload == benchmark}
        assert policies >= {"round_robin", "ilp", "unanimous", "ilp_questions", "ilp_profile"}
    for workload in POOLS.values():
        assert {point.policy for point in points if point.workload == workload} >= {
            "round_robin", "data_parallel", "ilp",
        }  # fmt: skip


def test_complete_points_are_not_run_again_and_other_runs_are_not_overwritten(tmp_path: Path) -> None:
    point = next(point for point in paper_points(1) if point.workload == "gpqa")
    run = run_all([point], tmp_path).of("gpqa", point.policy)[0]
    written = {path: path.stat().st_mtime_ns for path in run.folder.iterdir()}
    assert run_all([point], tmp_path).of("gpqa", point.policy)[0].summary == run.summary
    assert {path: path.stat().st_mtime_ns for path in run.folder.iterdir()} == written
    other = replace(point, overrides=(*point.overrides, "backend.max_num_seqs=64"))
    with pytest.raises(RunFolderError, match="holds the complete run of another configuration"):
        run_all([other], tmp_path)


def make_run(folder: Path, policy: str, seed: int, **summary: float) -> PaperRun:
    point = next(point for point in paper_points(seed + 1) if point.name == f"gpqa/{policy}/seed_{seed}")
    folder = folder / point.name
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summary))
    return PaperRun(point=point, folder=folder)


def test_the_timeline_is_of_the_seed_nearest_to_the_means(tmp_path: Path) -> None:
    walls = {"round_robin": (100.0, 200.0, 160.0), "ilp": (100.0, 80.0, 91.0)}
    runs = [
        make_run(tmp_path, policy, seed, expert_makespan_s=wall_s)
        for policy, own in walls.items()
        for seed, wall_s in enumerate(own)
    ]
    assert typical_place(PaperRuns(runs=tuple(runs)), "gpqa") == 2


def test_walls_by_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.studies.paper_tables.TITLES", {"gpqa": "GPQA"})
    runs = PaperRuns(
        runs=tuple(make_run(tmp_path, "ilp", seed, expert_makespan_s=900.0 + 100 * seed) for seed in (0, 1))
    )
    head, published, simulated = walls_table(runs)
    assert len(head) == len(published) == len(simulated)
    assert simulated == ("", "simulated", "900, 1,000", "950", "71 (7.4%)")
    assert published[:2] == ("GPQA", "published")


def paper(folder: Path) -> str:
    command = [sys.executable, str(ROOT / "experiments" / "paper.py"), "--seeds", "1", "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def one_seed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("paper") / "out"
    return folder, paper(folder)


def test_one_command_leaves_every_figure_and_table(one_seed: tuple[Path, str]) -> None:
    folder, shown = one_seed
    assert re.match(r"53 published numbers, one seed and so no interval: [1-9]\d* off by more than 10%\n", shown)
    expected = {f"{name}.{kind}" for name in FIGURES for kind in ("png", "pdf", "csv")}
    expected |= {f"{name}.csv" for name in TABLES} | {"report.md", "errors_short.md"}
    assert {path.name for path in folder.iterdir()} == expected | {"runs"}
    for name in FIGURES:
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert len((folder / f"{name}.csv").read_text().splitlines()) > 2


def test_the_report_holds_every_number_and_links_every_figure(one_seed: tuple[Path, str]) -> None:
    folder, _ = one_seed
    report = (folder / "report.md").read_text()
    for line in csv.DictReader((folder / "errors.csv").read_text().splitlines()):
        assert f"| {line['quantity']} |" in report
    assert set(re.findall(r"\]\((\w+)\.png\)", report)) == set(FIGURES)
    assert "## Misses: not known from one seed\n\nA single seed has no interval to miss." in report
    far = report.split("## Off by more than 10%\n")[1].split("## How to read this")[0]
    assert "| ILP, expert stage | GPQA |" in far


def test_only_what_a_fit_read_is_called_fitted(one_seed: tuple[Path, str]) -> None:
    folder, _ = one_seed
    lines = csv.DictReader((folder / "errors.csv").read_text().splitlines())
    kinds = {(line["quantity"], line["benchmark"]): line["kind"] for line in lines}
    walls = [kinds["round robin, expert stage", benchmark] for benchmark in BENCHMARKS]
    assert walls == ["follows from fits", "fitted", "fitted"], "MMLU-Pro's four workers are fitted, not its wall"
    gated = [kinds["aggregator at tau = 2/3", benchmark] for benchmark in BENCHMARKS]
    assert gated == ["predicted", "predicted", "predicted"]
    assert {kinds["ILP, expert stage", benchmark] for benchmark in BENCHMARKS} == {"predicted"}


def test_the_same_command_gives_the_same_bytes(one_seed: tuple[Path, str]) -> None:
    folder, _ = one_seed
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    paper(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_a_wrong_number_of_seeds_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "experiments" / "paper.py"), "--seeds", "0", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: --seeds must be at least 1, got 0\n")


def test_the_committed_report_is_of_the_committed_numbers() -> None:
    """README shows the end-to-end figure and the short table as experiments/paper.py wrote them."""
    readme = (ROOT / "README.md").read_text()
    assert (COMMITTED / "errors_short.md").read_text() in readme, "paste results/paper/errors_short.md into README.md"
    assert "results/paper/figure6_end_to_end.png" in readme
    report = (COMMITTED / "report.md").read_text()
    lines = list(csv.DictReader((COMMITTED / "errors.csv").read_text().splitlines()))
    missed = sum(line["is_miss"] == "True" for line in lines)
    assert f"## Misses: {missed} of {len(lines)} published numbers" in report
