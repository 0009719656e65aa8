import csv
from itertools import product
from types import SimpleNamespace

import pytest

from mosaic.commands.compare import TRADEOFF_COLUMNS, default_metric, in_columns
from mosaic.comparison.estimate import Estimate, t_interval
from mosaic.comparison.pairing import ALWAYS, NEVER, compare_runs
from mosaic.comparison.run_points import collect_runs
from mosaic.figures.tradeoff import draw_tradeoff, tradeoff_rows
from tests.commands.command_line import mosaic_status
from tests.comparison.test_compare import make_run

GATES = {"never": (0.0, 400.0), "majority": (0.8, 250.0)}
"""Skip share and end-to-end seconds."""


def make_gated(root, name, *, gate="majority", seed=0, scheduler="round_robin", accuracy_frac=0.6, **changes):
    skip_frac, end_s = GATES[gate]
    summary = {
        "gate": gate, "aggregator": "tp4", "skip_frac": skip_frac, "skip_frac_source": "fitted",
        "accuracy_frac": accuracy_frac, "always_aggregate_accuracy_frac": 0.7, "end_to_end_s": end_s,
    }  # fmt: skip
    return make_run(root / name, scheduler, 100.0, seed=seed, **(summary | changes))


def make_pairs(root, changes=((0.60, 0.58), (0.62, 0.63))):
    """Accuracies of never and majority, seed by seed."""
    for seed, pair in enumerate(changes):
        for gate, accuracy_frac in zip(GATES, pair, strict=True):
            make_gated(root, f"{gate}{seed}", gate=gate, seed=seed, accuracy_frac=accuracy_frac)
    return root


def outcomes_of(root, baseline="round_robin"):
    rows = compare_runs(collect_runs([root])[0], baseline=baseline).rows
    return {row["policy"]: SimpleNamespace(**in_columns(row)) for row in rows}


def make_outcome(
    scheduler="ilp", setting="gate=never", *, case="w", time_s=100.0, accuracy=0.6, num_known=4, **changes
):
    row = {
        "case": case, "policy": f"{scheduler} {setting}".strip(), "scheduler": scheduler, "second_stage": setting,
        "num_known": num_known, "end_to_end_s": Estimate(time_s, time_s * 0.99, time_s * 1.01, num_known),
        "accuracy_frac": Estimate(accuracy, accuracy - 0.01, accuracy + 0.01, num_known), "skip_frac_source": None,
    }  # fmt: skip
    return row | changes


def test_change_is_paired_with_the_run_that_never_skips(tmp_path):
    outcome = outcomes_of(make_pairs(tmp_path))["round_robin gate=majority"]
    assert outcome.change_from == NEVER
    assert outcome.change_pp == pytest.approx(-0.5)
    assert (outcome.change_low_pp, outcome.change_high_pp) == pytest.approx(t_interval([-2.0, 1.0]))
    assert (outcome.accuracy_frac, outcome.skip_frac, outcome.num_changes) == (pytest.approx(0.605), 0.8, 2)
    assert (outcome.skip_frac_source, outcome.end_to_end_s) == ("fitted", 250.0)


def test_reference_has_no_change_and_its_skips_come_from_nothing(tmp_path):
    outcome = outcomes_of(make_pairs(tmp_path))["round_robin gate=never"]
    assert (outcome.change_pp, outcome.change_from, outcome.num_changes) == (None, None, 0)
    assert (outcome.skip_frac, outcome.skip_frac_source) == (0.0, None)


def test_without_a_run_that_never_skips_the_run_itself_knows_what_it_gave_up(tmp_path):
    make_gated(tmp_path, "a", accuracy_frac=0.68)
    (outcome,) = outcomes_of(tmp_path).values()
    assert (outcome.change_from, outcome.change_pp) == (ALWAYS, pytest.approx(-2.0))
    assert (outcome.change_low_pp, outcome.change_high_pp) == (None, None)


def test_real_run_that_cannot_know_shows_no_change(tmp_path):
    make_gated(tmp_path, "a", always_aggregate_accuracy_frac=None)
    (outcome,) = outcomes_of(tmp_path).values()
    assert (outcome.change_pp, outcome.change_from) == (None, None)


@pytest.mark.parametrize("changes", [{"scheduler": "ilp"}, {"problem_fingerprint": "other"}, {"workload": "v"}])
def test_change_needs_the_same_scheduler_calls_and_world(tmp_path, changes):
    make_gated(tmp_path, "never", gate="never")
    make_gated(tmp_path, "majority", accuracy_frac=0.69, **changes)
    make_gated(tmp_path, "base", scheduler="fifo")
    outcome = next(o for o in outcomes_of(tmp_path, baseline="fifo").values() if o.accuracy_frac == 0.69)
    assert (outcome.change_from, outcome.change_pp) == (ALWAYS, pytest.approx(-1.0))


def test_change_is_taken_under_the_same_aggregator_where_they_disagree(tmp_path):
    for aggregator, never in (("tp4", 0.60), ("dp", 0.61)):
        make_gated(tmp_path, f"never-{aggregator}", gate="never", aggregator=aggregator, accuracy_frac=never)
        make_gated(tmp_path, f"majority-{aggregator}", aggregator=aggregator, accuracy_frac=0.62)
    make_gated(tmp_path, "majority-auto", aggregator="auto", accuracy_frac=0.62)
    outcomes = outcomes_of(tmp_path)
    assert outcomes["round_robin aggregator=tp4 gate=majority"].change_pp == pytest.approx(2.0)
    assert outcomes["round_robin aggregator=dp gate=majority"].change_pp == pytest.approx(1.0)
    assert outcomes["round_robin aggregator=auto gate=majority"].change_from == ALWAYS  # which never: nobody can tell


def test_seeds_without_the_reference_are_left_out_of_the_change_and_counted(tmp_path, capsys):
    make_pairs(tmp_path)
    make_gated(tmp_path, "majority7", seed=7)
    outcome = outcomes_of(tmp_path)["round_robin gate=majority"]
    assert (outcome.num_changes, outcome.num_seeds) == (2, 3)
    assert mosaic_status("compare", str(tmp_path)) == 0
    assert ") from 2 pairs" in capsys.readouterr().out


def test_figure_needs_two_second_stages_in_one_world():
    one, other, elsewhere = make_outcome(), make_outcome(setting="gate=majority"), make_outcome(case="v")
    same_gate = make_outcome("fifo")
    for rows in ([one], [one, elsewhere], [one, same_gate], [one, make_outcome("fifo", "a", accuracy_frac=None)]):
        with pytest.raises(ValueError, match="in no world gates or aggregators differ"):
            tradeoff_rows(rows)
    with pytest.raises(ValueError, match="no run knows its accuracy"):
        tradeoff_rows([one | {"accuracy_frac": None}])
    assert tradeoff_rows([one, other, same_gate, elsewhere]) == [one, other, same_gate]


def test_command_writes_the_tradeoff_and_the_columns_of_the_second_stage(tmp_path, capsys):
    make_pairs(tmp_path)
    assert mosaic_status("compare", str(tmp_path)) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("speedup over round_robin gate=never, end to end: ")
    line = next(line for line in printed.splitlines() if "gate=majority" in line)
    for word in ("80.0% fitted", "60.50%", "-0.50 (-2.00, +1.00)", "1.60"):
        assert word in line
    assert "change: accuracy in percentage points, less that of gate=never" in printed
    assert "tradeoff.png, tradeoff.csv" in printed
    assert (tmp_path / "tradeoff.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((tmp_path / "tradeoff.csv").read_text().splitlines()))
    assert list(rows[0]) == list(TRADEOFF_COLUMNS)
    assert [row["gate"] for row in rows] == ["never", "majority"]
    assert float(rows[1]["end_to_end_s"]) == 250.0
    assert float(rows[1]["change_pp"]) == pytest.approx(-0.5)
    assert rows[0]["change_pp"] == ""
    wide = list(csv.DictReader((tmp_path / "compare.csv").read_text().splitlines()))
    assert [row["accuracy_frac"] for row in wide] == [row["accuracy_frac"] for row in rows]


@pytest.mark.parametrize(
    ("aggregators", "metric"),
    [((None, None), "expert_makespan_s"), (("tp4", "tp4"), "end_to_end_s"), (("tp4", None), "end_to_end_s")],
)
def test_times_are_end_to_end_where_an_aggregator_runs(tmp_path, aggregators, metric):
    for number, aggregator in enumerate(aggregators):
        make_run(tmp_path / str(number), aggregator=aggregator, config={"aggregator": {"name": aggregator}})
    assert default_metric(collect_runs([tmp_path])[0]) == metric


def test_the_expert_stage_can_still_be_named(tmp_path, capsys):
    make_pairs(tmp_path)
    assert mosaic_status("compare", str(tmp_path), "--metric", "expert_makespan_s") == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "gate=majority" in line)
    assert "1.00" in line, "a gate changes nothing of it"


def test_change_against_always_aggregating_is_marked(tmp_path, capsys):
    make_gated(tmp_path, "a", accuracy_frac=0.68)
    assert mosaic_status("compare", str(tmp_path)) == 0
    printed = capsys.readouterr().out
    assert "-2.00*" in printed
    assert "*change: accuracy in percentage points, less that of the same run had it never skipped" in printed


@pytest.fixture
def drawn(monkeypatch):
    """Collect the figures that are rendered, to read their words."""
    figures = []
    monkeypatch.setattr("mosaic.figures.tradeoff.png_bytes", lambda figure: figures.append(figure) or b"")
    return figures


def words_of(figure) -> list[str]:
    (legend,) = figure.legends
    entries = [text.get_text() for text in legend.get_texts()]
    return [*entries, *legend.get_title().get_text().split("\n"), *(axes.get_xlabel() for axes in figure.axes)]


def test_colours_tell_schedulers_and_shapes_the_rest(drawn):
    policies = product(("round_robin", "ilp"), ("gate=never", "gate=majority tau=0.667"))
    rows = [make_outcome(*names, time_s=100.0 + 50 * n, accuracy=0.6 + n / 50) for n, names in enumerate(policies)]
    draw_tradeoff(rows)
    words = words_of(drawn[0])
    assert words[:4] == ["round_robin", "ilp", "never", "majority tau=0.667"]
    assert "end-to-end time (s)" in words
    points = [line for line in drawn[0].axes[0].lines if len(line.get_xdata()) == 1]
    assert len({line.get_color() for line in points}) == len({line.get_marker() for line in points}) == 2


def test_markers_on_one_spot_are_rings_around_each_other(drawn):
    rows = [make_outcome(setting=f"gate=majority tau=0.{n}", time_s=700.0 + n / 100) for n in range(14)]
    draw_tradeoff([*rows, make_outcome(time_s=2000.0)])
    words = words_of(drawn[0])
    assert all(words.count(f"majority tau=0.{n}") == 1 for n in range(14))
    points = [line for line in drawn[0].axes[0].lines if len(line.get_xdata()) == 1]
    assert len({line.get_marker() for line in points}) == 15
    assert len({line.get_markersize() for line in points}) == 14, "all on one spot are seen"
    assert "end-to-end time (min)" in words


def test_intervals_need_three_seeds_and_stay_within_what_is_possible(drawn):
    for num_known in (2, 3):
        wide = {
            "num_known": num_known,
            "end_to_end_s": Estimate(100.0, -900.0, 101.0, num_known),
            "accuracy_frac": Estimate(0.6, -0.2, 1.4, num_known),
        }
        rows = [make_outcome("a", "x") | wide, make_outcome("b", "y") | wide]
        draw_tradeoff(rows)
    two, three = (figure.axes[0] for figure in drawn)
    assert len(two.lines) == 2
    assert any("2 seeds, too few for an interval" in word for word in words_of(drawn[0]))
    low, high = min(min(line.get_ydata()) for line in three.lines), max(max(line.get_ydata()) for line in three.lines)
    assert (low, high) == (0.0, 100.0)
    assert min(min(line.get_xdata()) for line in three.lines) == 0.0


def test_policies_without_a_setting_are_told_by_their_scheduler(drawn):
    draw_tradeoff([make_outcome("a", "", num_known=1), make_outcome("b", "", accuracy=0.5, num_known=1)])
    words = words_of(drawn[0])
    assert words.count("a") == words.count("b") == 1
    assert "one seed, no interval" in words


def test_fitted_skip_shares_are_declared_with_the_worlds_they_hold_in(drawn):
    fitted = {"skip_frac_source": "fitted"}
    other = make_outcome(case="v", skip_frac_source="measured", num_known=3)
    draw_tradeoff([make_outcome(**fitted), make_outcome("b", **fitted)])
    draw_tradeoff([make_outcome(**fitted), make_outcome("b", **fitted), other])
    assert "skip shares and levels of accuracy are fitted" in words_of(drawn[0])
    assert "skip shares and levels of accuracy are fitted on w" in words_of(drawn[1])
    assert any("over 3 to 4 seeds" in word for word in words_of(drawn[1]))
    assert not any("measured" in word for word in words_of(drawn[1]))
