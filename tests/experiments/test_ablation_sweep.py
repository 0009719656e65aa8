"""A sweep as a user starts it: it draws its figure, resumes after a kill, and says what failed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.ablations import main
from experiments.studies.ablation_sweep import FILES
from tests.experiments.command_line import QUICK, RUN, SMALL, run_process

pytestmark = pytest.mark.slow

PRESET = """\
# @package _global_
defaults:
  - /ablation

hydra:
  sweeper:
    params:
      scheduler: least_loaded,round_robin
      cluster.num_workers: 2,3
      seed: 0,1
  callbacks:
    figure:
      title: GPUs
      about: A few calls.
      finding: Two take {0[round robin][2]} s.
      x: {key: cluster.num_workers, label: GPUs}
      panels: [{key: expert_makespan_s, label: expert stage (s)}]
      lines: {least loaded: {scheduler: least_loaded}, round robin: {scheduler: round_robin}}
"""
NUM_POINTS = 8


def arguments(folder: Path, text: str = PRESET) -> list[str]:
    """Write a preset of one's own and start it on a workload of 30 calls."""
    preset = folder / "conf" / "experiment" / "small.yaml"
    preset.parent.mkdir(parents=True, exist_ok=True)
    preset.write_text(text)
    return ["--config-dir", "conf", "+experiment=small", *SMALL, *QUICK, "hydra.launcher.n_jobs=1"]


def complete(folder: Path) -> dict[Path, int]:
    """List all files of complete points with the instants of their last change."""
    points = [path.parent for path in (folder / "results" / "multirun" / "small").glob("*/summary.json")]
    return {path: path.stat().st_mtime_ns for point in points for path in point.iterdir()}


def test_a_sweep_draws_and_one_that_is_complete_runs_nothing(tmp_path: Path) -> None:
    first = run_process(*arguments(tmp_path), "seed=0", cwd=tmp_path)
    assert (first.status, first.err) == (0, "")
    assert "4 of 4 points" in first.out
    assert "\nnot as the preset: seed=0\n" in first.out, "what was changed is said beside what the preset says"
    assert "+experiment" not in first.out
    sweep = tmp_path / "results" / "multirun" / "small"
    assert {path.name for path in sweep.iterdir() if path.is_file()} == {*FILES, "multirun.yaml"}
    contents = {name: (sweep / name).read_bytes() for name in FILES}
    files = complete(tmp_path)
    again = run_process(*arguments(tmp_path), "seed=0", cwd=tmp_path)
    assert again.status == 0
    assert again.out.count("already complete") == 4
    assert "makespan" not in again.out
    assert complete(tmp_path) == files
    assert {name: (sweep / name).read_bytes() for name in FILES} == contents, "drawn again, and the same"


def test_a_sweep_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    command = [sys.executable, str(RUN), *arguments(tmp_path)]
    process = subprocess.Popen(command, cwd=tmp_path, start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (files := complete(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    files = complete(tmp_path)
    num_complete = len({path.parent for path in files})
    assert 1 <= num_complete < NUM_POINTS, "killed after the first point and before the last"
    done = run_process(*arguments(tmp_path), cwd=tmp_path)
    assert done.status == 0
    assert done.out.count("already complete") == num_complete
    assert f"{NUM_POINTS} of {NUM_POINTS} points" in done.out
    after = complete(tmp_path)
    assert {path: after[path] for path in files} == files, "what was finished is untouched"
    assert len({path.parent for path in after}) == NUM_POINTS


def test_a_point_that_fails_is_named_and_the_others_are_drawn(tmp_path: Path) -> None:
    text = PRESET.replace("cluster.num_workers: 2,3", "cluster.num_workers: 0,2")
    outcome = run_process(*arguments(tmp_path, text), "seed=0", cwd=tmp_path)
    assert outcome.status == 2
    assert "num_workers must be at least 1, got 0" in outcome.err
    assert "2 of 4 points" in outcome.out
    named = [line for line in outcome.out.splitlines() if line.startswith("missing: ")]
    assert len(named) == 2
    assert all("cluster.num_workers=0" in line for line in named)
    sweep = tmp_path / "results" / "multirun" / "small"
    assert (sweep / "ablation.png").read_bytes().startswith(b"\x89PNG")


def test_only_the_points_of_this_sweep_are_drawn(tmp_path: Path) -> None:
    """The folder is fixed, so a narrower sweep finds the points of a wider one in it, whatever paths they name."""
    given = [*arguments(tmp_path), "scheduler=round_robin", "cluster.num_workers=2", "profile.store=a/b"]
    assert run_process(*given, cwd=tmp_path).status == 0
    outcome = run_process(*given, "seed=0", cwd=tmp_path)
    assert "1 of 1 points" in outcome.out
    assert "note: no complete point of 'least loaded'" in outcome.out


def test_a_bad_description_ends_the_sweep_before_its_first_point(tmp_path: Path) -> None:
    outcome = run_process(*arguments(tmp_path, PRESET.replace("lines:", "line:")), cwd=tmp_path)
    assert outcome.status == 2
    assert outcome.err.startswith("error: figure: keys must be ['about', 'finding', 'lines', 'panels', 'title', 'x']")
    assert complete(tmp_path) == {}


def test_a_finished_sweep_is_drawn_again_from_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_process(*arguments(tmp_path), "seed=0", "scheduler=round_robin", cwd=tmp_path)
    sweep = tmp_path / "results" / "multirun" / "small"
    contents = {name: (sweep / name).read_bytes() for name in FILES}
    for name in FILES:
        (sweep / name).unlink()
    monkeypatch.chdir(tmp_path)
    assert main(["--draw", str(sweep.relative_to(tmp_path))]) == 0
    assert capsys.readouterr().out.startswith("GPUs\nA few calls.")
    assert {name: (sweep / name).read_bytes() for name in FILES} == contents
    with pytest.raises(SystemExit):
        main(["--draw", str(tmp_path)])
    assert "folder must hold a sweep's multirun.yaml" in capsys.readouterr().err


def test_all_presets_run_one_after_the_other_and_keep_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["workload=gpqa", *QUICK, "seed=0", "scheduler=round_robin", "hydra.launcher.n_jobs=1"]
    assert main(["ablate_engine_order", "ablate_gpus", "cluster.num_workers=2", *given]) == 0
    out = capsys.readouterr().out
    assert [line.split()[:2] for line in out.splitlines()] == [
        ["1/2", "ablate_engine_order"], ["2/2", "ablate_gpus"], ["total", out.split("total")[1].split()[0]],
    ]  # fmt: skip
    kept = {path.name for path in (tmp_path / "results" / "multirun" / "ablations").iterdir()}
    names = ("ablate_engine_order", "ablate_gpus")
    assert kept == {f"{name}.{suffix}" for name in names for suffix in ("png", "pdf", "csv", "txt")}
    with pytest.raises(SystemExit):
        main(["ablate_nothing"])
    assert "PRESET must be one of ['ablate_aggregator'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["ablate_gpus", "hydra.sweep.dir=elsewhere"])
    assert "KEY=VALUE must be one that leaves the sweeps in results/multirun" in capsys.readouterr().err
