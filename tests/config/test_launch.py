"""What a command line asks for: a run or a sweep, each point as Hydra would have composed it."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from mosaic.config import launch
from mosaic.config.compose import CONF, Composer, compose_config
from mosaic.config.launch import launch_of, points_of

POINTS = [
    ["seed=0", "scheduler=ilp", "workload=gpqa"],
    ["scheduler=ilp", "workload=gpqa", "seed=3"],
    ["scheduler=fifo", "scheduler.window_questions=50", "workload.seed=1"],
    ["scheduler.max_replicas=2", "profile.sweep.shard_sizes=[64,128]"],
    ["seed=1", "+pool.experts.LlamaR1.note=x"],
    ["~world.merged_tokens.LlamaR1", "seed=2"],
    ["+policy=ilp_lifted", "seed=2"],
]


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    before = HydraConfig.instance().cfg
    yield
    HydraConfig.instance().cfg = before


@pytest.fixture
def composers() -> Any:
    """Hydra's own composition of a point, and ours."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        master = compose("config", ["hydra.sweep.dir=somewhere"], return_hydra_config=True)
        loader = GlobalHydra.instance().config_loader()
        yield lambda point: loader.load_sweep_config(master, point), Composer(loader, master).compose


def test_a_run_has_its_folder_and_what_the_user_sets(tmp_path: Path) -> None:
    arguments = ["scheduler=fifo", "workload=gpqa", "seed=3", "hydra.run.dir=out/../there"]
    asked = launch_of(arguments)
    (point,) = asked.points
    assert asked.sweep_dir is None
    assert point.config == compose_config(arguments[:3])
    assert point.folder == tmp_path / "there"
    assert point.overrides == tuple(arguments[:3])
    (point,) = launch_of(arguments[:2]).points
    assert point.folder.parent == tmp_path / "results" / "runs"
    assert point.folder.name.endswith("_gpqa_fifo")
    assert not list(tmp_path.iterdir())


def test_a_sweep_has_its_points_and_a_folder_for_each(tmp_path: Path) -> None:
    asked = launch_of(["-m", "seed=0,1", "workload=gpqa", "hydra/launcher=joblib", "hydra.sweep.dir=here"])
    assert (asked.sweep_dir, (asked.side_by_side or {})["n_jobs"]) == ("here", -1)
    for seed, point in enumerate(asked.points):
        assert point.config == compose_config([f"seed={seed}", "workload=gpqa"])
        assert point.folder == tmp_path / "here" / f"seed={seed},workload=gpqa"
        assert point.name == point.folder.name
    assert launch_of(["-m", "seed=0,1"]).side_by_side is None


def test_a_preset_sweeps_without_a_flag_and_lets_its_keys_be_chosen(tmp_path: Path) -> None:
    few = ["workload=gpqa", "seed=0", "scheduler=round_robin", "cluster.num_workers=2,4"]
    asked = launch_of(["+experiment=ablate_gpus", *few])
    assert asked.sweep_dir == "results/multirun/ablate_gpus"
    assert [point.config["cluster"]["num_workers"] for point in asked.points] == [2, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["seed=0,1"], "add --multirun"),
        (
            ["--config-name", "mine"],
            "--config-name must be left out: --config-dir names a folder of your own, got 'mine'",
        ),
        (["--config-dir", "nowhere"], "--config-dir must be a folder, got 'nowhere'"),
        (
            ["-m", "seed=0", "hydra.sweep.subdir=../x"],
            "must name a folder in hydra.sweep.dir, got '../x'",
        ),
        (
            ["-m", "backend=vllm", "hydra/launcher=joblib"],
            "must be basic with backend=vllm, got 'joblib'",
        ),
        (["hydra.job.chdir=true"], "hydra.job.chdir must be False, got True"),
        (["hydra.output_subdir=.hydra"], "hydra.output_subdir must be None, got '.hydra'"),
        (["hydra.verbose=true"], "hydra.verbose must be False, got True"),
        (["hydra/job_logging=default"], "hydra.job_logging.root.level must be ERROR, got 'INFO'"),
        (["hydra.run.dir="], "hydra.run.dir must be a non-empty string"),
        (["-m", "hydra.sweep.dir="], "hydra.sweep.dir must be a non-empty string"),
    ],
    ids=str,
)
def test_what_no_run_reads_is_refused(arguments: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, HydraException)) as error:
        launch_of(arguments)
    assert message in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ("sweep: {dir: there}", None),
        ("output_subdir: .hydra", "output_subdir"),
        ("job: {env_set: {A: b}}", "job.env_set"),
        ("callbacks: {mine: {_target_: hydra.experimental.callback.Callback}}", "callbacks"),
    ],
)
def test_settings_of_hydra_in_a_file_are_refused_too(
    settings: str, key: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = Path(shutil.copytree(CONF, tmp_path / "conf"))
    (conf / "experiment" / "mine.yaml").write_text(f"# @package _global_\nhydra:\n  {settings}\n")
    monkeypatch.setattr(launch, "CONF", conf)
    if key is None:
        assert launch_of(["+experiment=mine"]).points
        return
    with pytest.raises(ValueError, match=f"hydra.{key} must be"):
        launch_of(["+experiment=mine"])


@pytest.mark.slow
def test_every_point_is_what_hydra_composes_from_its_files(composers) -> None:
    for point in [*POINTS, *POINTS]:
        hydras, ours = (each(point) for each in composers)
        assert OmegaConf.to_container(ours) == OmegaConf.to_container(hydras)


def test_a_choice_of_groups_is_composed_once_and_points_share_no_values() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        master = compose("config", [], return_hydra_config=True)
        loader = GlobalHydra.instance().config_loader()
        composed = []
        original = loader.load_sweep_config
        loader.load_sweep_config = lambda *given: composed.append(given[1]) or original(*given)  # type: ignore[method-assign]
        ours = Composer(loader, master)
        found = [
            ours.compose([f"scheduler={scheduler}", f"cluster.num_workers={number}"])
            for number in (2, 3)
            for scheduler in ("round_robin", "least_loaded")
        ]
    assert composed == [["scheduler=round_robin"], ["scheduler=least_loaded"]]
    assert [point.cluster.num_workers for point in found] == [2, 2, 3, 3]


@pytest.mark.slow
@pytest.mark.parametrize("point", [["scheduler=none_such"], ["sceduler.max_replicas=1"], ["seed=1", "pool=x"]])
def test_what_cannot_be_composed_is_told_in_hydras_words(composers, point) -> None:
    messages = []
    for each in composers:
        with pytest.raises(HydraException) as error:
            each(point)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_points_are_listed_as_hydra_runs_them() -> None:
    overrides = OverridesParser.create().parse_overrides(["a=1,2", "b=x", "c=range(0,2)", "+d='p,q'"])
    assert points_of(overrides) == [
        ["a=1", "b=x", "c=0", "+d='p,q'"],
        ["a=1", "b=x", "c=1", "+d='p,q'"],
        ["a=2", "b=x", "c=0", "+d='p,q'"],
        ["a=2", "b=x", "c=1", "+d='p,q'"],
    ]
