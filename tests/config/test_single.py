"""A plain single run is composed once, by Hydra's public functions; all else is left to Hydra's command."""

import shutil
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig

from mosaic.config import launch
from mosaic.config.compose import CONF, compose_config, plain
from mosaic.config.launch import compose_single


@pytest.fixture(autouse=True)
def clean(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = HydraConfig.instance().cfg
    yield
    HydraConfig.instance().cfg = before


def test_a_plain_run_is_composed_and_has_its_folder(tmp_path) -> None:
    arguments = ["scheduler=fifo", "workload=gpqa", "seed=3", "hydra.run.dir=out/../there"]
    config = compose_single(arguments)
    assert config is not None
    assert plain(config) == compose_config(arguments[:3])
    assert "hydra" not in config
    assert HydraConfig.get().runtime.output_dir == str(tmp_path / "there")
    assert list(HydraConfig.get().overrides.task) == arguments[:3]
    assert (tmp_path / "there").is_dir()


def test_the_folder_is_named_by_the_choices(tmp_path) -> None:
    assert compose_single(["scheduler=fifo", "workload=gpqa"]) is not None
    (folder,) = (tmp_path / "results" / "runs").iterdir()
    assert folder.name.endswith("_gpqa_fifo")


@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "seed=0,1"],
        ["--cfg", "job"],
        ["--config-dir", "somewhere"],
        ["seed=0,1"],
        ["scheduler=none_such"],
        ["+experiment=ablate_k"],
        ["hydra.job.chdir=true"],
        ["hydra.output_subdir=.hydra"],
        ["hydra.verbose=true"],
        ["hydra/job_logging=default"],
    ],
    ids=" ".join,
)
def test_what_asks_for_more_is_left_to_hydra(arguments, tmp_path) -> None:
    assert compose_single(arguments) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "is_plain"),
    [
        ("sweep: {dir: there}", True),
        ("output_subdir: .hydra", False),
        ("job: {chdir: true}", False),
        ("job: {env_set: {A: b}}", False),
        ("job_logging: {root: {level: INFO}}", False),
        ("callbacks: {mine: {_target_: hydra.experimental.callback.Callback}}", False),
    ],
)
def test_settings_of_hydra_in_a_file_are_left_to_hydra(settings, is_plain, tmp_path, monkeypatch) -> None:
    conf = Path(shutil.copytree(CONF, tmp_path / "conf"))
    (conf / "experiment" / "mine.yaml").write_text(f"# @package _global_\nhydra:\n  {settings}\n")
    monkeypatch.setattr(launch, "CONF", conf)
    assert (compose_single(["+experiment=mine"]) is not None) == is_plain
