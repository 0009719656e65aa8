"""A preset as a study: runs on lines and an axis, ratios seed by seed, and a finding with its numbers."""

import polars as pl
import pytest
import yaml

from experiments.lab.preset import PRESETS, average, preset_names, preset_study, read_preset, report
from mosaic.comparison.estimate import Estimate
from mosaic.config.compose import compose_config
from tests.commands.command_line import run_process

STUDY = {
    "title": "Workers",
    "about": "What is varied.",
    "finding": "On {0[ILP][4]:interval} s, {1[naive][2]} times.",
    "x": {"key": "cluster.num_workers", "label": "GPUs"},
    "panels": [
        {"key": "time_s", "label": "time (s)"},
        {"key": "time_s", "label": "relative", "relative_to": {"line": "ILP"}},
        {"key": "time_s", "label": "scaling", "relative_to": {"x": 2}},
        {"key": "idle_frac", "label": "idle (%)", "times": 100},
    ],
    "lines": {"ILP": {"scheduler": "ilp"}, "naive": {"scheduler": "round_robin"}},
}
PARAMS = {"scheduler": "ilp,round_robin", "cluster.num_workers": "2,4", "seed": "range(0,3)"}


def write(path, **changes):
    path.write_text(yaml.safe_dump({"hydra": {"sweeper": {"params": PARAMS}}, "study": {**STUDY, **changes}}))
    return path


RUNS = pl.DataFrame(
    [
        {"line": line, "x": x, "seed": seed, "time_s": time_s * (1 + seed) * 2 / x, "idle_frac": idle}
        for line, time_s in (("ILP", 10.0), ("naive", 30.0))
        for x, idle in ((2, 0.25), (4, None))
        for seed in range(3)
    ]
)  # fmt: skip


def test_panels_are_averages_over_seeds_and_ratios_seed_by_seed(tmp_path) -> None:
    preset, _ = read_preset(write(tmp_path / "ablate_x.yaml"))
    found = {(row["panel"], row["line"], row["x"]): row["value"] for row in average(preset, RUNS)}
    assert found[0, "naive", "2"] == Estimate(60.0, pytest.approx(-14.5, abs=0.1), pytest.approx(134.5, abs=0.1), 3)
    assert [found[1, "naive", x][:3] for x in ("2", "4")] == [(3.0, 3.0, 3.0)] * 2
    assert [found[2, line, "4"][:3] for line in ("ILP", "naive")] == [(0.5, 0.5, 0.5)] * 2
    assert (found[3, "ILP", "2"].mean, found[3, "ILP", "4"]) == (25.0, None), "null is no number"


def test_the_page_has_the_finding_and_a_table_a_panel(tmp_path) -> None:
    preset, _ = read_preset(write(tmp_path / "ablate_x.yaml"))
    text = report("ablate_x", preset, RUNS)
    assert "On 10 [-2.421, 22.42] s, 3 times." in text
    assert "## relative (of ILP)\n\n| GPUs | ILP | naive |" in text
    assert "## scaling (of the same line at 2)" in text
    assert "(no finding without a run of 'naive')" in report("ablate_x", preset, RUNS.filter(line="ILP"))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"titel": "x"}, "ablate_x.yaml: study: .*unknown field `titel`"),
        ({"title": 3}, r"Expected `str`, got `int` - at `\$.title`"),
        ({"panels": [{"key": "time_s"}]}, r"missing required field `label` - at `\$.panels\[0\]`"),
        ({"panels": [{"key": "a", "label": "b", "relative_to": {"line": "fifo"}}]},
         r"relative_to.line must be one of \['ILP', 'naive'\], got 'fifo'"),
        ({"lines": []}, r"Expected `object`, got `array` - at `\$.lines`"),
    ],
)  # fmt: skip
def test_a_bad_preset_is_named(tmp_path, changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        read_preset(write(tmp_path / "ablate_x.yaml", **changes))


@pytest.mark.slow
@pytest.mark.parametrize("name", preset_names())
def test_every_point_of_a_preset_composes(name) -> None:
    (sweep,) = preset_study(name).tables.values()
    assert sweep.num_seeds >= 3
    for point in (sweep.points[0], sweep.points[-1]):
        assert compose_config([*point.overrides])["workload"]["name"]


def test_a_preset_says_how_it_is_run() -> None:
    for name in preset_names():
        assert f"#   python experiments/study.py {name}" in (PRESETS / f"{name}.yaml").read_text()


@pytest.mark.slow
def test_a_preset_is_a_sweep_of_run_folders_too(tmp_path) -> None:
    few = ("workload=gpqa", "seed=0", "scheduler=round_robin", "cluster.num_workers=2,4", "hydra.launcher.n_jobs=1")
    outcome = run_process("+experiment=ablate_gpus", *few, cwd=tmp_path)
    assert outcome.status == 0, outcome.err
    assert len(list((tmp_path / "results" / "multirun" / "ablate_gpus").glob("*/summary.json"))) == 2


def test_a_page_with_a_row_a_line_has_them_in_the_presets_order(tmp_path) -> None:
    preset, _ = read_preset(write(tmp_path / "ablate_x.yaml", layout="rows"))
    text = report("ablate_x", preset, RUNS)
    assert "## time (s)\n\n| policy | 2 | 4 |\n| --- | --- | --- |\n| ILP | 20" in text
    assert text.index("| ILP |") < text.index("| naive |")
