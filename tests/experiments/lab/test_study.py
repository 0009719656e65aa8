"""A study measures what its tables lack, goes on after a kill, and pairs runs with their baselines."""

import polars as pl
import pytest

from experiments.lab.study import Point, Row, Study, Sweep, Tables, run_study
from experiments.lab.tables import beside, markdown, means, wide
from mosaic.comparison.estimate import Estimate

POINTS = tuple(Point(labels={"name": name, "num_gpus": num}) for num in (1, 2) for name in ("slow", "fast"))


class Scale:
    """Takes times that are known, and counts what it measured; stops after a while if it shall."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.measured: list[tuple[object, ...]] = []
        self._stop_after = stop_after

    def __call__(self, point: Point, seed: int) -> Row:
        if len(self.measured) == self._stop_after:
            raise KeyboardInterrupt
        self.measured.append((*point.labels.values(), seed))
        num = point.labels["num_gpus"]
        assert isinstance(num, int)
        return {"taken_s": (8.0 if point.labels["name"] == "slow" else 2.0) * (1 + seed) / num, "note": None}


def make_study(scale: Scale, points: tuple[Point, ...] = POINTS, num_seeds: int = 3) -> Study:
    def report(tables: Tables) -> str:
        rows = means(beside(tables["runs"], pl.col("name") == "slow", ["num_gpus"]), ["num_gpus", "name"],
                     taken=pl.col("taken_s"), speedup=pl.col("taken_s_base") / pl.col("taken_s"))  # fmt: skip
        return markdown(wide(rows, ["num_gpus"], "name", "{speedup:.1f}x"), {"num_gpus": "GPUs"})

    sweep = Sweep(points=points, measure=scale, num_seeds=num_seeds, in_turn=True)
    return Study(name="scale", about="", title="Scale", tables={"runs": sweep}, report=report)


def run(study: Study, out, **options) -> list[str]:
    lines: list[str] = []
    run_study(study, out, show=lines.append, **options)
    return lines


def test_every_point_and_seed_is_measured_once_and_reported(tmp_path) -> None:
    scale = Scale()
    run(make_study(scale), tmp_path)
    assert len(scale.measured) == len(set(scale.measured)) == 12
    assert (tmp_path / "scale.md").read_text() == (
        "# Scale\n\n`python experiments/study.py scale`, 3 seeds.\n\n"
        "| GPUs | slow | fast |\n| --- | --- | --- |\n"
        "| 1 | 1.0x [1.0, 1.0] | 4.0x [4.0, 4.0] |\n| 2 | 1.0x [1.0, 1.0] | 4.0x [4.0, 4.0] |"
    ).replace("x [1.0, 1.0]", " [1.0, 1.0]x").replace("x [4.0, 4.0]", " [4.0, 4.0]x")


def test_a_stopped_study_goes_on_and_ends_with_the_same_bytes(tmp_path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(make_study(Scale(stop_after=7)), tmp_path / "stopped")
    again = Scale()
    run(make_study(again), tmp_path / "stopped")
    assert len(again.measured) == 12 - 7
    run(make_study(Scale()), tmp_path / "whole")
    for name in ("runs.csv", "scale.md"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_measurement_may_give_several_rows(tmp_path) -> None:
    scale = Scale()

    def parts(point: Point, seed: int) -> list[Row]:
        whole = scale(point, seed)["taken_s"]
        return [{"part": "load", "taken_s": 1.0}, {"part": "serve", "taken_s": whole}, {"part": "end", "taken_s": None}]

    sweep = Sweep(points=POINTS, measure=parts, num_seeds=2, in_turn=True)
    study = Study(name="parts", about="", title="Parts", tables={"runs": sweep}, report=lambda tables: "")
    run(study, tmp_path, num_seeds=1)
    run(study, tmp_path)
    table = pl.read_csv(tmp_path / "runs.csv")
    assert len(scale.measured) == len(set(scale.measured)) == 8
    assert table["part"].to_list() == ["load", "serve", "end"] * 8
    assert table["seed"].to_list() == [0, 0, 0, 1, 1, 1] * 4
    assert table.filter(part="serve")["taken_s"].to_list() == [8.0, 16.0, 2.0, 4.0, 4.0, 8.0, 1.0, 2.0]


def test_more_seeds_and_more_points_are_added_to_a_table(tmp_path) -> None:
    run(make_study(Scale(), POINTS[:2]), tmp_path, num_seeds=1)
    scale = Scale()
    run(make_study(scale), tmp_path, num_seeds=2)
    assert len(scale.measured) == 8 - 2
    assert pl.read_csv(tmp_path / "runs.csv")["seed"].to_list() == [0, 1] * 4


def test_drawing_measures_nothing(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"runs\.csv: there is nothing to draw"):
        run(make_study(Scale()), tmp_path, draw_only=True)
    run(make_study(Scale()), tmp_path)
    (tmp_path / "scale.md").unlink()
    scale = Scale()
    run(make_study(scale), tmp_path, draw_only=True)
    assert (tmp_path / "scale.md").exists()
    assert scale.measured == []


def test_a_table_of_another_study_is_refused(tmp_path) -> None:
    (tmp_path / "runs.csv").write_text("world,seed\nx,0\n")
    with pytest.raises(ValueError, match=r"runs\.csv: first columns must be name, num_gpus, seed, got world, seed"):
        run(make_study(Scale()), tmp_path)


def test_points_are_told_apart_by_their_labels() -> None:
    with pytest.raises(ValueError, match="study: labels of points"):
        make_study(Scale(), (*POINTS, POINTS[0]))


def test_rows_without_a_partner_or_a_value_are_left_out() -> None:
    table = pl.DataFrame({"name": ["a", "b", "b"], "seed": [0, 0, 1], "x": [1.0, 3.0, None]})
    assert beside(table, pl.col("name") == "a", [])["x_base"].to_list() == [1.0, 1.0]
    assert means(table, ["name"], x=pl.col("x")) == [
        {"name": "a", "x": Estimate(1.0)}, {"name": "b", "x": Estimate(3.0)},
    ]  # fmt: skip
    assert means(table.filter(seed=1), ["name"], x=pl.col("x")) == [{"name": "b", "x": None}]
