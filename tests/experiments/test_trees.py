"""The study of trees: what is run, what a table says of known times, and the figure."""

import pytest

from experiments.config.compose import compose_config
from experiments.config.job import job_from
from experiments.figures.saved import draw_saved
from experiments.figures.style import png_bytes
from experiments.studies.rows import read_rows, rows_csv
from experiments.studies.tree_report import PUBLISHED, bars, report, stages_of
from experiments.studies.tree_runs import STAGES, Point, Row, Times, points

GPUS = (1, 6)
TAKEN_S = {"all to all": 100.0, "tree": 60.0, "no barrier": 50.0, "overlap": 55.0, "prefill ahead": 50.0, "exit": 40.0}


def make_rows(num_seeds: int = 3) -> list[Row]:
    """A world in which each stage takes what the table says, later seeds all the longer."""
    return [
        Row(
            kind=point.kind, name=point.name, num_gpus=point.num_gpus, shares=point.shares, seed=seed,
            end_to_end_s=TAKEN_S.get(point.name, 70.0) * (1 + seed), accuracy_frac=0.5, num_loads=6, num_calls=10,
        )
        for point in points(GPUS)
        for seed in range(num_seeds)
    ]  # fmt: skip


def test_rows_survive_their_file(tmp_path) -> None:
    rows = make_rows()
    (tmp_path / "runs.csv").write_text(rows_csv(Row, rows))
    assert read_rows(tmp_path / "runs.csv", Row) == rows


@pytest.mark.slow
def test_every_point_is_a_run_that_uses_what_it_names() -> None:
    found = list(points([2]))
    assert len(set(found)) == len(found)
    for point in found:
        job = job_from(compose_config([*point.overrides]), overrides=point.overrides).job
        assert job.cluster.num_workers == 2
        assert [len(layer) for layer in job.graph.layers] == (
            [1, 1, 1] if "all" in (*point.name.split(), *point.kind.split("_")) else [3, 3, 1]
        )


def test_what_is_saved_is_paired_by_seed() -> None:
    times = Times(make_rows())
    saved = dict(stages_of(times, 6, shares=True))
    assert {name: found.mean for name, found in saved.items()} == {
        name: pytest.approx(1 - TAKEN_S[name] / 100) for name in saved
    }
    assert all(found.low == pytest.approx(found.mean) for found in saved.values()), "whatever seeds do to all alike"
    baseline = Point(kind="tree", name="barrier", num_gpus=1, shares=False)
    assert times.saved_frac(baseline, baseline).mean == 0


def test_report_and_figure_say_what_was_saved_beside_what_was_published() -> None:
    rows = make_rows()
    text = report(rows, "the command")
    assert "| no | 6 | 200 | 40.0 [40.0, 40.0] | 50.0 [50.0, 50.0] | 45.0 [45.0, 45.0] |" in text
    assert "only direction and order can be compared" in text
    groups = bars(rows)
    assert [len(found) for _, found in groups] == [2, 2, 1]
    assert [saved.mean for _, saved in groups[-1][1][0].steps] == [saved for _, saved in PUBLISHED]
    assert png_bytes(draw_saved(groups, [name for name in STAGES if name != "all to all"])).startswith(b"\x89PNG")
