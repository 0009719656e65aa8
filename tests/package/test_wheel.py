"""The wheel, in an environment of its own and away from the checkout; what it needs beside: test_conventions.py."""

import sys
import zipfile
from pathlib import Path

import pytest

from tests.package.built_wheel import borrowing_environment, build_wheel, call, tracked_files
from tests.package.test_conventions import PROJECT
from tests.readme_blocks import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("build"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return borrowing_environment(wheel, tmp_path_factory.mktemp("borrowing") / "environment")


def test_nothing_but_mosaic_stands_in_site_packages(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"mosaic", "mosaic_moa"}
    assert "mosaic/py.typed" in names


def test_wheel_and_source_distribution_can_be_published(wheel: Path) -> None:
    built = sorted(wheel.parent.iterdir())
    assert [path.name.removeprefix(f"mosaic_moa-{PROJECT['version']}") for path in built] == [
        "-py3-none-any.whl", ".tar.gz",
    ]  # fmt: skip
    call(sys.executable, "-m", "twine", "check", "--strict", *built, cwd=wheel.parent)


def test_the_wheel_has_every_file_of_the_bundle(wheel: Path) -> None:
    bundled = {name.removeprefix("mosaic/bundled/") for name in zipfile.ZipFile(wheel).namelist()}
    wanted = {name for name in tracked_files() if name.split("/")[0] in ("sim", "conf")}
    assert {name for name in wanted if not name.endswith("README.md")} <= bundled


def test_the_command_plans_runs_sweeps_and_compares(environment: Path, tmp_path: Path) -> None:
    mosaic = environment / "bin" / "mosaic"
    assert call(mosaic, "--version", cwd=tmp_path).startswith("mosaic 0.")
    assert "ilp on gpqa" in call(mosaic, "run", "workload=gpqa", "hydra.run.dir=one", cwd=tmp_path)
    assert (tmp_path / "one" / "summary.json").exists()
    points = ["scheduler=round_robin,least_loaded", "hydra.sweep.dir=many", "workload=gpqa"]
    said = call(mosaic, "run", "-m", "hydra/launcher=joblib", *points, cwd=tmp_path)
    assert "compare: mosaic compare many" in said.splitlines()
    assert "least_loaded" in call(mosaic, "compare", "many", cwd=tmp_path)


def test_a_wheel_and_a_checkout_run_alike(environment: Path, tmp_path: Path) -> None:
    point = ["workload=gpqa", "scheduler=round_robin"]
    call(environment / "bin" / "mosaic", "run", *point, "hydra.run.dir=wheel", cwd=tmp_path)
    call(sys.executable, ROOT / "experiments" / "run.py", *point, "hydra.run.dir=checkout", cwd=tmp_path)
    for name in ("summary.json", "plan.json", "calls.parquet", "config.yaml"):
        assert (tmp_path / "wheel" / name).read_bytes() == (tmp_path / "checkout" / name).read_bytes(), name
