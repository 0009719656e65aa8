import csv
from itertools import product

import pytest

from experiments.analysis.pairing import compare_runs, t_interval
from experiments.analysis.run_points import collect_runs
from experiments.analysis.tradeoff_points import ALWAYS, NEVER, Estimate, Outcome, can_be_drawn, measure_outcomes
from experiments.compare import OUTCOME_COLUMNS, TRADEOFF_COLUMNS, main
from experiments.figures.point_labels import PointLabel, place_labels
from experiments.figures.style import new_figure
from experiments.figures.tradeoff import draw_tradeoff
from tests.experiments.test_compare import make_run

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
    outcomes = measure_outcomes(compare_runs(collect_runs([root])[0], baseline=baseline).rows)
    return {outcome.policy: outcome for outcome in outcomes}


def make_outcome(scheduler="ilp", setting="gate=never", *, case="w", time_s=100.0, accuracy=0.6, **changes) -> Outcome:
    fields = {
        "case": case, "policy": f"{scheduler} {setting}".strip(), "scheduler": scheduler, "gate": "never",
        "aggregator": "tp4", "num_seeds": 4, "end_to_end_s": Estimate(time_s, time_s * 0.99, time_s * 1.01),
        "accuracy_frac": Estimate(accuracy, accuracy - 0.01, accuracy + 0.01), "skip_frac": 0.5,
        "skip_frac_source": None, "change_pp": None, "change_from": None, "num_changes": 0,
    }  # fmt: skip
    return Outcome(**(fields | changes))


def test_change_is_paired_with_the_run_that_never_skips(tmp_path):
    outcome = outcomes_of(make_pairs(tmp_path))["round_robin gate=majority"]
    assert outcome.change_from == NEVER
    assert outcome.change_pp.mean == pytest.approx(-0.5)
    assert outcome.change_pp[1:] == pytest.approx(t_interval([-2.0, 1.0]))
    assert (outcome.accuracy_frac.mean, outcome.skip_frac, outcome.num_changes) == (pytest.approx(0.605), 0.8, 2)
    assert (outcome.skip_frac_source, outcome.end_to_end_s.mean) == ("fitted", 250.0)


def test_reference_has_no_change_and_its_skips_come_from_nothing(tmp_path):
    outcome = outcomes_of(make_pairs(tmp_path))["round_robin gate=never"]
    assert (outcome.change_pp, outcome.change_from, outcome.num_changes) == (None, None, 0)
    assert (outcome.skip_frac, outcome.skip_frac_source) == (0.0, None)


def test_without_a_run_that_never_skips_the_run_itself_knows_what_it_gave_up(tmp_path):
    make_gated(tmp_path, "a", accuracy_frac=0.68)
    (outcome,) = outcomes_of(tmp_path).values()
    assert (outcome.change_from, outcome.change_pp) == (ALWAYS, Estimate(pytest.approx(-2.0), None, None))


def test_real_run_that_cannot_know_shows_no_change(tmp_path):
    make_gated(tmp_path, "a", always_aggregate_accuracy_frac=None)
    (outcome,) = outcomes_of(tmp_path).values()
    assert (outcome.change_pp, outcome.change_from) == (None, None)


@pytest.mark.parametrize("changes", [{"scheduler": "ilp"}, {"problem_fingerprint": "other"}, {"workload": "v"}])
def test_change_needs_the_same_scheduler_calls_and_world(tmp_path, changes):
    make_gated(tmp_path, "never", gate="never")
    make_gated(tmp_path, "majority", accuracy_frac=0.69, **changes)
    make_gated(tmp_path, "base", scheduler="fifo")
    outcome = next(o for o in outcomes_of(tmp_path, baseline="fifo").values() if o.accuracy_frac.mean == 0.69)
    assert (outcome.change_from, outcome.change_pp.mean) == (ALWAYS, pytest.approx(-1.0))


def test_change_is_taken_under_the_same_aggregator_where_they_disagree(tmp_path):
    for aggregator, never in (("tp4", 0.60), ("dp4", 0.61)):
        make_gated(tmp_path, f"never-{aggregator}", gate="never", aggregator=aggregator, accuracy_frac=never)
        make_gated(tmp_path, f"majority-{aggregator}", aggregator=aggregator, accuracy_frac=0.62)
    make_gated(tmp_path, "majority-auto", aggregator="auto", accuracy_frac=0.62)
    outcomes = outcomes_of(tmp_path)
    assert outcomes["round_robin aggregator=tp4 gate=majority"].change_pp.mean == pytest.approx(2.0)
    assert outcomes["round_robin aggregator=dp4 gate=majority"].change_pp.mean == pytest.approx(1.0)
    assert outcomes["round_robin aggregator=auto gate=majority"].change_from == ALWAYS  # which never: nobody can tell


def test_seeds_without_the_reference_are_left_out_of_the_change_and_counted(tmp_path, capsys):
    make_pairs(tmp_path)
    make_gated(tmp_path, "majority7", seed=7)
    outcome = outcomes_of(tmp_path)["round_robin gate=majority"]
    assert (outcome.num_changes, outcome.num_seeds) == (2, 3)
    assert main([str(tmp_path)]) == 0
    assert "] from 2 pairs" in capsys.readouterr().out


def test_runs_of_the_older_shape_have_no_outcome_and_no_figure(tmp_path):
    for scheduler in ("round_robin", "ilp"):
        make_run(tmp_path / scheduler, scheduler)
    outcomes = outcomes_of(tmp_path).values()
    assert all((o.accuracy_frac, o.end_to_end_s, o.skip_frac, o.aggregator) == (None,) * 4 for o in outcomes)
    assert can_be_drawn(tuple(outcomes)) == ()


def test_figure_needs_two_policies_in_one_world():
    one, other = make_outcome(), make_outcome(setting="gate=majority")
    assert can_be_drawn([one]) == ()
    assert can_be_drawn([one, make_outcome(case="v")]) == ()
    assert can_be_drawn([one, make_outcome("fifo", accuracy_frac=None)]) == ()
    assert can_be_drawn([one, other, make_outcome(case="v")]) == (one, other, make_outcome(case="v"))


def test_command_writes_the_tradeoff_and_the_columns_of_the_second_stage(tmp_path, capsys):
    make_pairs(tmp_path)
    assert main([str(tmp_path), "--metric", "end_to_end_s", "--baseline", "round_robin gate=never"]) == 0
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if "gate=majority" in line)
    for word in ("80.0% fitted", "60.50%", "-0.50 [-19.56, +18.56]", "1.600"):
        assert word in line
    assert "change: accuracy in percentage points, less that of gate=never" in printed
    assert "tradeoff.csv, tradeoff.png" in printed
    assert (tmp_path / "tradeoff.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((tmp_path / "tradeoff.csv").read_text().splitlines()))
    assert list(rows[0]) == [*TRADEOFF_COLUMNS, *OUTCOME_COLUMNS]
    assert [row["gate"] for row in rows] == ["never", "majority"]
    assert float(rows[1]["end_to_end_s"]) == 250.0
    assert float(rows[1]["change_pp"]) == pytest.approx(-0.5)
    assert rows[0]["change_pp"] == ""
    wide = list(csv.DictReader((tmp_path / "compare.csv").read_text().splitlines()))
    assert [row["accuracy_frac"] for row in wide] == [row["accuracy_frac"] for row in rows]


def test_change_against_always_aggregating_is_marked(tmp_path, capsys):
    make_gated(tmp_path, "a", accuracy_frac=0.68)
    assert main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "-2.00*" in printed
    assert "*change: accuracy in percentage points, less that of the same run had it never skipped" in printed


@pytest.fixture
def drawn(monkeypatch):
    """Collect the figures that are rendered, to read their words."""
    figures = []
    monkeypatch.setattr("experiments.figures.tradeoff.png_bytes", lambda figure: figures.append(figure) or b"")
    return figures


def words_of(figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts] + [t.get_text() for t in figure.texts]


def test_markers_with_room_carry_their_names(drawn):
    policies = product(("round_robin", "ilp"), ("gate=never", "gate=majority tau=0.667"))
    draw_tradeoff(
        [make_outcome(*names, time_s=100.0 + 50 * n, accuracy=0.6 + n / 50) for n, names in enumerate(policies)]
    )
    words = words_of(drawn[0])
    assert words.count("never") == words.count("majority tau=0.667") == 2
    assert words.count("round_robin") == words.count("ilp") == 1  # the legend of colours
    assert "end-to-end time (s)" in words


def test_markers_on_one_spot_are_named_by_a_legend(drawn):
    outcomes = [make_outcome(setting=f"gate=majority tau=0.{n}", time_s=700.0 + n / 100) for n in range(14)]
    draw_tradeoff([*outcomes, make_outcome(time_s=2000.0)])
    words = words_of(drawn[0])
    assert all(words.count(f"majority tau=0.{n}") == 1 for n in range(14))
    markers = {line.get_marker() for line in drawn[0].axes[0].lines} - {"None", ""}
    assert len(markers) == 15
    assert "end-to-end time (min)" in words


def test_policies_without_a_setting_carry_their_scheduler(drawn):
    single = {"end_to_end_s": Estimate(100.0, None, None), "num_seeds": 1}
    draw_tradeoff([make_outcome("a", "", **single), make_outcome("b", "", accuracy=0.5, num_seeds=1)])
    words = words_of(drawn[0])
    assert words.count("a") == words.count("b") == 1
    assert "one seed, no interval" in words


def test_fitted_skip_shares_are_declared_with_the_worlds_they_hold_in(drawn):
    fitted = {"skip_frac_source": "fitted"}
    other = make_outcome(case="v", skip_frac_source="measured", num_seeds=3)
    draw_tradeoff([make_outcome(**fitted), make_outcome("b", **fitted)])
    draw_tradeoff([make_outcome(**fitted), make_outcome("b", **fitted), other])
    assert "skip shares and levels of accuracy are fitted" in words_of(drawn[0])
    assert "skip shares and levels of accuracy are fitted on w" in words_of(drawn[1])
    assert any("over 3 to 4 seeds" in word for word in words_of(drawn[1]))
    assert not any("measured" in word for word in words_of(drawn[1]))


def test_names_cover_neither_markers_nor_each_other_nor_leave_the_axes():
    figure = new_figure(2.0)
    axes = figure.add_axes((0.1, 0.1, 0.8, 0.8))
    labels = [PointLabel(f"name {n}", x, y) for n, (x, y) in enumerate(product((0, 0.3, 0.6, 1), (0, 0.5, 1)))]
    assert place_labels(axes, labels, marker_pt=4, font_pt=6)
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 12
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    frame = axes.get_window_extent().padded(1)
    assert all(frame.containsx(x) and frame.containsy(y) for box in boxes for x, y in box.corners())
    for label, text in zip(labels, sorted(axes.texts, key=lambda text: int(text.get_text().split()[1])), strict=True):
        assert not text.get_window_extent().contains(*axes.transData.transform((label.x, label.y)))


def test_name_without_room_is_left_out():
    axes = new_figure(2.0).add_axes((0.1, 0.1, 0.8, 0.8))
    assert not place_labels(
        axes, [PointLabel("long " * 60, 0.5, 0.5), PointLabel("b", 0.1, 0.1)], marker_pt=4, font_pt=6
    )
    assert [text.get_text() for text in axes.texts] == ["b"]
