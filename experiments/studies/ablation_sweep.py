"""Which points a sweep has, and what it leaves in its folder beside their run folders: figure, table and text."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from experiments.analysis.ablation import make_ablation
from experiments.analysis.run_table import collect_runs
from experiments.config.sharing import override_dirname, points_of
from experiments.figures.ablation import draw_ablation
from experiments.studies.ablation_spec import read_spec
from experiments.studies.ablation_text import ablation_csv, describe_ablation
from mosaic.core.file_names import file_name

MULTIRUN = "multirun.yaml"
"""Hydra's own record of a sweep: the configuration before the points' overrides."""
SUFFIXES = (".png", ".pdf", ".csv", ".txt")
FILES = tuple(f"ablation{suffix}" for suffix in SUFFIXES)


def point_names(config: DictConfig) -> list[str]:
    """Name the folders of a sweep's points, as conf/config.yaml has Hydra name them."""
    params = [f"{key}={value}" for key, value in config.hydra.sweeper.params.items()]
    parser = OverridesParser.create()
    points = points_of(parser.parse_overrides([*params, *config.hydra.overrides.task]))
    naming = config.hydra.job.config
    return [file_name(override_dirname(parser.parse_overrides(point), naming)) for point in points]


def draw_sweep(config: DictConfig, figure: Mapping[str, Any], folder: Path) -> str:
    """Write figure, table and text of a sweep into its folder; return the text.

    Points of an earlier sweep into the same folder that this one does not have are left out.

    Raises
    ------
    ValueError, TypeError
        If no point is complete, or the description of the figure does not fit the runs.
    """
    spec = read_spec(figure)
    names = point_names(config)
    runs, skipped = collect_runs([folder / name for name in names if (folder / name).is_dir()])
    complete = {run.folder for run in runs}
    missing = [name for name in names if (folder / name).resolve() not in complete]
    ablation = make_ablation(spec, runs)
    # NOTE: a preset says in words what it varies and what stays, which the command line may have changed.
    given = [entry for entry in config.hydra.overrides.task if not entry.startswith("+experiment=")]
    text = describe_ablation(ablation, num_points=len(names), missing=missing, reasons=skipped, overrides=given)
    png, pdf = draw_ablation(ablation)
    contents = (png, pdf, ablation_csv(ablation).encode(), text.encode())
    for name, content in zip(FILES, contents, strict=True):
        (folder / name).write_bytes(content)
    return text


def draw_finished(folder: Path) -> str:
    """Draw again from a sweep's folder alone.

    Raises
    ------
    ValueError, TypeError
        If the folder is not one of a sweep with a figure.
    """
    path = folder / MULTIRUN
    if not path.is_file():
        raise ValueError(f"folder must hold a sweep's {MULTIRUN}, got '{folder}'")
    config = OmegaConf.load(path)
    if not isinstance(config, DictConfig):
        raise ValueError(f"{path}: must hold a mapping")
    figure = OmegaConf.select(config, "hydra.callbacks.figure")
    if figure is None:
        raise ValueError(f"folder must hold a sweep with a figure (hydra.callbacks.figure), got '{folder}'")
    described: Any = OmegaConf.to_container(figure)
    return draw_sweep(config, described, folder)
