"""From runs to means, intervals, sentences and a drawing."""

import csv
from itertools import pairwise
from math import inf, sqrt
from pathlib import Path
from typing import Any

import pytest

from experiments.analysis.ablation import Ablation, make_ablation
from experiments.analysis.run_table import collect_runs
from experiments.figures.ablation import draw_ablation, tick_labels
from experiments.figures.end_labels import spread
from experiments.lab.style import SCHEDULER_COLOURS, line_looks
from experiments.studies.ablation_text import ablation_csv, describe_ablation
from tests.experiments.ablation_runs import figure_config, make_points, make_run, make_spec

T_2 = 4.302653
"""Student's t of two degrees of freedom at 97.5%."""
MAKESPANS_S = {
    ("ilp", 2): [100.0, 110.0, 120.0], ("ilp", 4): [50.0, 66.0, 60.0],
    ("round_robin", 2): [200.0, 220.0, 240.0], ("round_robin", 4): [200.0, 200.0, 200.0],
}  # fmt: skip


def ablation_of(root: Path, makespans_s: Any = MAKESPANS_S, **changes: Any) -> Ablation:
    make_points(root, makespans_s)
    return make_ablation(make_spec(**changes), collect_runs([root])[0])


def estimate_of(ablation: Ablation, line: str, x: object, panel: int = 0) -> Any:
    (row,) = [row for row in ablation.rows_of(ablation.spec.panels[panel], line) if row.x == x]
    return row.estimate


def test_means_and_intervals_over_seeds(tmp_path: Path) -> None:
    found = estimate_of(ablation_of(tmp_path), "ILP", 2)
    half = T_2 * 10 / sqrt(3)
    assert found == (pytest.approx(110.0), pytest.approx(110 - half, rel=1e-5), pytest.approx(110 + half, rel=1e-5), 3)


def test_relative_to_its_own_value_elsewhere_is_paired_by_seed(tmp_path: Path) -> None:
    panels = [{"key": "expert_makespan_s", "label": "relative", "relative_to": {"x": 2}}]
    ablation = ablation_of(tmp_path, panels=panels)
    assert estimate_of(ablation, "ILP", 4).mean == pytest.approx((0.5 + 0.6 + 0.5) / 3)
    assert estimate_of(ablation, "ILP", 2) == (1.0, 1.0, 1.0, 3)
    assert estimate_of(ablation, "round robin", 4).mean == pytest.approx((1 + 200 / 220 + 200 / 240) / 3)


def test_relative_to_another_line_at_the_same_place_or_at_one(tmp_path: Path) -> None:
    panels = [
        {"key": "expert_makespan_s", "label": "same place", "relative_to": {"line": "ILP"}},
        {"key": "expert_makespan_s", "label": "at 2", "relative_to": {"line": "ILP", "x": 2}},
    ]
    ablation = ablation_of(tmp_path, panels=panels)
    assert estimate_of(ablation, "round robin", 4, 0).mean == pytest.approx((4 + 200 / 66 + 200 / 60) / 3)
    assert estimate_of(ablation, "round robin", 4, 1).mean == pytest.approx((2 + 200 / 110 + 200 / 120) / 3)


def test_absolute_values_are_in_the_table_where_the_figure_shows_relative_ones(tmp_path: Path) -> None:
    panels = [{"key": "expert_makespan_s", "label": "relative", "relative_to": {"x": 2}}]
    rows = list(csv.DictReader(ablation_csv(ablation_of(tmp_path, panels=panels)).splitlines()))
    assert len(rows) == 8
    means = {(row["line"], row["x"], row["measure"]): row["mean"] for row in rows}
    assert means["ILP", "2", "expert_makespan_s"] == "110"
    assert means["ILP", "4", "relative"] == "0.533333"
    assert {row["relative_to"] for row in rows if row["measure"] == "relative"} == {"the same line at 2"}
    assert rows[0]["num_seeds"] == "3"


def test_a_share_is_drawn_in_percent_and_changes_in_points(tmp_path: Path) -> None:
    for k, idle in ((2, 0.10), (4, 0.25)):
        make_run(tmp_path / f"{k}", seed=0, config={"k": k}, gpu_idle_frac=idle)
    spec = make_spec(panels=[{"key": "gpu_idle_frac", "label": "idle (%)", "times": 100}], lines={"ILP": {}})
    ablation = make_ablation(spec, collect_runs([tmp_path])[0])
    assert estimate_of(ablation, "ILP", 4) == (25.0, None, None, 1)
    assert "ILP: 10 at 2 to 25 at 4, +15.0 points" in describe_ablation(ablation, num_points=2, missing=[])


def test_categories_stand_in_the_order_of_their_names_and_null_is_one(tmp_path: Path) -> None:
    values = {("ilp", None): [1.0], ("ilp", 3): [2.0], ("ilp", 1): [3.0]}
    names = [{"value": 1, "label": "one"}, {"value": None, "label": "free"}]
    ablation = ablation_of(tmp_path, values, lines={"ILP": {}},
                           x={"key": "k", "label": "K", "scale": "category", "names": names})  # fmt: skip
    assert ablation.xs == (1, None, 3)
    assert [ablation.spec.x.show(x) for x in ablation.xs] == ["one", "free", "3"]


def test_lists_are_categories(tmp_path: Path) -> None:
    names = [{"value": ["A", "B"], "label": "forward"}, {"value": ["B", "A"], "label": "back"}]
    for number, order in enumerate((["B", "A"], ["A", "B"])):
        make_run(tmp_path / f"{number}", config={"order": order})
    spec = make_spec(x={"key": "order", "label": "order", "scale": "category", "names": names}, lines={"ILP": {}})
    assert make_ablation(spec, collect_runs([tmp_path])[0]).xs == (["A", "B"], ["B", "A"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": {"key": "kk", "label": "K"}}, "figure.x.key must be a key of the configuration, got 'kk'"),
        ({"panels": [{"key": "makespan", "label": "s"}]}, "number of summary.json, one of .*'expert_makespan_s'.*got"),
        ({"panels": [{"key": "costs", "label": "s"}]}, "number of summary.json.*got 'costs'"),
        ({"lines": {"ILP": {"schedler": "ilp"}}}, "key of 'ILP' must be one of the configuration or summary"),
        ({"lines": {"ILP": {"scheduler": "ilp"}}}, r"each run is on exactly one line, got \[\] for 'round_robin"),
        ({"lines": {"a": {}, "b": {}}}, r"each run is on exactly one line, got \['a', 'b'\]"),
        ({"lines": {"all": {}}}, "no two runs of one seed share a point"),
        ({"x": {"key": "workload.name", "label": "K"}}, "must be numbers on a linear axis"),
    ],
)  # fmt: skip
def test_a_description_that_does_not_fit_the_runs_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        ablation_of(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tittle": "x"}, r"figure: keys must be \['about', 'finding', 'lines', 'panels', 'title', 'x'\]"),
        ({"title": ""}, "figure.title must be a non-empty string"),
        ({"panels": []}, "figure.panels must be at least one panel"),
        ({"panels": {"key": "a"}}, "figure.panels must be a list"),
        ({"panels": [{"key": "a"}]}, "figure.panels missing .*'label'"),
        ({"panels": [{"key": "a", "label": "b", "scale": "cubic"}]}, "scale must be one of .*got 'cubic'"),
        ({"panels": [{"key": "a", "label": "b", "relative_to": {}}]}, "relative_to must be given a line, an x or both"),
        ({"panels": [{"key": "a", "label": "b", "relative_to": {"line": "c"}}]}, "relative_to.line must be one of"),
        ({"panels": [{"key": "a", "label": "b", "relative_to": {"y": 1}}]}, "relative_to got an unexpected .*'y'"),
        ({"x": {"key": "k", "label": "K", "names": [{"value": 1, "label": "a"}]}}, "given for scale: category only"),
        ({"x": {"key": "k", "label": "K", "scale": "category", "ticks": [{"value": 1, "label": "a"}]}}, "numbers only"),
        ({"lines": {}}, "figure.lines must be at least one line"),
        ({"lines": {"a": 1}}, "figure.lines.a must be a mapping, got 1"),
    ],
)
def test_a_bad_description_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make_spec(**changes)
    assert make_spec().x.key == figure_config()["x"]["key"]


def test_what_is_missing_is_said_and_the_rest_counts(tmp_path: Path) -> None:
    panels = [{"key": "expert_makespan_s", "label": "relative", "relative_to": {"x": 2}}]
    values = {("ilp", 2): [100.0], ("ilp", 4): [50.0, 60.0]}
    ablation = ablation_of(tmp_path, values, panels=panels)
    assert estimate_of(ablation, "ILP", 4) == (0.5, None, None, 1)
    text = describe_ablation(ablation, num_points=9, missing=[f"p{i}" for i in range(6)])
    assert "3 of 9 points" in text
    assert "missing: p4\nmissing: 1 more" in text
    assert "note: no complete point of 'round robin'" in text
    assert "note: no run to relate 'ilp-4-1' to" in text


def test_the_finding_takes_its_numbers_from_the_runs(tmp_path: Path) -> None:
    finding = "The ILP takes {0[ILP][2]} s and {0[ILP][4]} s."
    ablation = ablation_of(tmp_path, finding=finding)
    assert "\nThe ILP takes 110 s and 58.67 s.\n" in describe_ablation(ablation, num_points=12, missing=[])
    with_intervals = ablation_of(tmp_path / "intervals", finding="It takes {0[ILP][4]:interval} s.")
    assert "\nIt takes 58.67 [38.59, 78.75] s.\n" in describe_ablation(with_intervals, num_points=12, missing=[])
    without = ablation_of(tmp_path / "more", {("ilp", 2): [1.0]}, finding=finding)
    text = describe_ablation(without, num_points=12, missing=[])
    assert "\n(no sentence without a complete point of 4)\n" in text


def test_null_is_no_number(tmp_path: Path) -> None:
    make_run(tmp_path / "a", config={"k": 1}, skip_frac=None)
    make_run(tmp_path / "b", config={"k": 2}, skip_frac=0.5)
    spec = make_spec(panels=[{"key": "skip_frac", "label": "skipped"}], lines={"ILP": {}})
    ablation = make_ablation(spec, collect_runs([tmp_path])[0])
    assert [row.x for row in ablation.rows] == [2]
    assert ablation.notes == ("skip_frac is null or cannot be related in 'a'",)


def test_the_text_says_how_each_line_goes(tmp_path: Path) -> None:
    text = describe_ablation(ablation_of(tmp_path), num_points=12, missing=[])
    assert text.startswith("A title\nAbout it.\n\nIt is so.\n\n12 of 12 points")
    assert "  ILP: 110 at 2 to 58.67 at 4, -46.7% [-61.0, -32.3]" in text
    assert "  4  58.67 [38.59, 78.75]  200 [200, 200]" in text


@pytest.mark.parametrize("scale", ["linear", "log", "category"])
def test_a_figure_is_drawn_as_png_and_pdf_and_is_the_same_twice(scale: str, tmp_path: Path) -> None:
    panels = [
        {"key": "expert_makespan_s", "label": "expert stage (s)", "scale": "log"},
        {"key": "expert_makespan_s", "label": "relative", "relative_to": {"line": "ILP"}},
    ]
    ablation = ablation_of(tmp_path, panels=panels, x={"key": "k", "label": "K", "scale": scale})
    png, pdf = draw_ablation(ablation)
    assert png.startswith(b"\x89PNG")
    assert pdf.startswith(b"%PDF")
    assert draw_ablation(ablation) == (png, pdf)


def test_a_scheduler_has_one_colour_and_lines_of_one_scheduler_differ() -> None:
    looks = line_looks(["ILP", "round robin", "ILP, too"], ["ilp", "round_robin", "ilp"])
    assert looks["ILP"]["color"] == looks["ILP, too"]["color"] == SCHEDULER_COLOURS["ilp"]
    assert looks["ILP"]["linestyle"] != looks["ILP, too"]["linestyle"]
    assert looks["round robin"]["color"] == SCHEDULER_COLOURS["round_robin"]
    looks = line_looks(["two", "four"], ["ilp", "ilp"])
    assert looks["two"]["color"] != looks["four"]["color"]


def test_names_never_cover_each_other() -> None:
    heights = {"a": 0.1, "b": 0.1, "c": 0.2, "d": 0.1}
    places = spread({"a": 0.5, "b": 0.52, "c": 0.53, "d": 0.95}, heights)
    ordered = sorted(places, key=lambda name: places[name])
    for below, above in pairwise(ordered):
        assert places[above] - places[below] >= (heights[above] + heights[below]) / 2 - 1e-6
    assert places["d"] == 0.95, "whoever has room stays"


def test_values_that_have_no_room_are_marked_and_not_written() -> None:
    axis = make_spec(x={"key": "k", "label": "K"}).x
    ticks = tick_labels(axis, (0.3, 0.33, 0.34, 0.5, 1.0), 2.5)
    assert ticks == {0.3: "0.3", 0.33: "", 0.34: "", 0.5: "0.5", 1.0: "1"}


def test_ticks_may_stand_where_no_value_is() -> None:
    ticks = [{"value": 2 / 3, "label": "2/3"}, {"value": 1, "label": "1"}]
    axis = make_spec(x={"key": "k", "label": "K", "ticks": ticks, "steps": True}).x
    assert tick_labels(axis, (0.66, 0.67, 1.0)) == {2 / 3: "2/3", 1.0: "1"}
    assert axis.show(0.66) == "0.66"


def test_no_interval_leaves_what_is_possible() -> None:
    keys = ("gpu_idle_frac", "expert_makespan_s", "accuracy_change_pp")
    panels = make_spec(panels=[{"key": key, "label": key, "times": 100} for key in keys]).panels
    assert [panel.bounds for panel in panels] == [(0, 100), (0, inf), (-inf, inf)]
    relative = {"key": "gpu_idle_frac", "label": "idle", "relative_to": {"x": 1}}
    assert make_spec(panels=[relative]).panels[0].bounds == (0, inf)
