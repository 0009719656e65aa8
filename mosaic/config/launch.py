"""Composes the run, or the points of a sweep, that a command line requests."""

import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra import initialize_config_dir
from hydra import main as hydra_main
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.core.utils import env_override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from mosaic.config.compose import CONF, Composer, default_choices, parsed, plain
from mosaic.core.checks import require, require_name
from mosaic.core.safe_text import from_file_name

SHOWN = ("help", "hydra_help", "cfg", "info", "shell_completion")
"""Flags by which Hydra displays something, without a run."""
UNREAD = {
    "config_path": "left out: --config-dir names a folder of your own",
    "config_name": "left out: --config-dir names a folder of your own",
    "experimental_rerun": "left out: it runs whatever code its file names",
}
"""Flags of Hydra that are refused, with the rule."""
IGNORED: Mapping[str, Any] = {
    "output_subdir": None, "verbose": False, "callbacks": {}, "job.chdir": False, "job.env_set": {},
    "sweeper._target_": f"{BasicSweeper.__module__}.{BasicSweeper.__name__}", "sweeper.max_batch_size": None,
    "job_logging.root.level": "ERROR", "hydra_logging.root.level": "ERROR",
}  # fmt: skip
"""Settings of Hydra that no run reads, with their values in conf/config.yaml."""


class Point(NamedTuple):
    """A run that a command line requests."""

    config: dict[str, Any]
    """Resolved."""
    folder: Path
    overrides: tuple[str, ...] = ()
    """The user's settings."""
    name: str | None = None
    """Among the points of a sweep."""
    also_chosen: str = ""
    """Groups chosen by another group's file, and neither by the command line nor by default."""
    again: str | None = None
    """The override that sends the same command to the same folder; None: hydra.run.dir."""


class Launch(NamedTuple):
    """The request of a command line."""

    points: list[Point]
    sweep_dir: str | None = None
    """The folder of a sweep, as it was named; None: a single run."""
    side_by_side: dict[str, Any] | None = None
    """Settings of joblib for a sweep's processes; None: points run one after the other."""


def launch_of(arguments: Sequence[str]) -> Launch:
    """Compose all points that a command line requests, before the first one runs.

    Raises
    ------
    ValueError, TypeError, HydraException
        Naming the key, the rule and the value.
    """
    given = get_args_parser().parse_args([*arguments])
    for name, rule in UNREAD.items():
        require(getattr(given, name) is None, f"--{name.replace('_', '-')}", rule, getattr(given, name))
    if any(getattr(given, name) for name in SHOWN):
        _show()
        return Launch([])
    with initialize_config_dir(str(CONF), job_name="run", version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        overrides = parsed(_overrides(given))
        is_swept = given.multirun or any(override.is_sweep_override() for override in overrides)
        config = loader.load_configuration(
            "config", _overrides(given), RunMode.MULTIRUN if is_swept else RunMode.RUN, validate_sweep_overrides=False
        )
        is_sweep = given.multirun or config.hydra.mode is RunMode.MULTIRUN
        mode = RunMode.MULTIRUN if is_sweep else RunMode.RUN
        ConfigLoaderImpl.validate_sweep_overrides_legal(overrides, mode, from_shell=True)
        _check_settings(config.hydra, "sweep" if is_sweep else "run")
        return _sweep(Composer(loader, config), config) if is_sweep else Launch([_single(config)])


def _overrides(given: Namespace) -> list[str]:
    if given.config_dir is None:
        return [*given.overrides]
    require(Path(given.config_dir).is_dir(), "--config-dir", "a folder", given.config_dir)
    return [f"hydra.searchpath=['file://{os.path.abspath(given.config_dir)}']", *given.overrides]


def _show() -> None:
    """Let Hydra show its help or a configuration."""
    # NOTE: otherwise Hydra prints errors its own way, with tracebacks, and ends the process itself.
    with env_override({"HYDRA_FULL_ERROR": "1"}):
        hydra_main(version_base="1.3", config_path=str(CONF), config_name="config")(lambda config: None)()


def _check_settings(hydra: DictConfig, mode: str) -> None:
    """Refuse settings of Hydra that would be ignored, and an empty folder name: it would be the current folder."""
    for key, value in IGNORED.items():
        require(OmegaConf.select(hydra, key) == value, f"hydra.{key}", f"{value}", OmegaConf.select(hydra, key))
    # NOTE: it cannot be resolved yet: it holds the names of choices.
    named: Any = OmegaConf.to_container(hydra[mode], resolve=False)
    require_name(named["dir"], f"hydra.{mode}.dir")


def _single(config: DictConfig) -> Point:
    HydraConfig.instance().set_config(config)
    hydra = config.hydra
    folder, overrides = Path(os.path.abspath(hydra.run.dir)), tuple(hydra.overrides.task)
    return Point(plain(config), folder, overrides, also_chosen=_also_chosen(hydra))


def _sweep(composer: Composer, master: DictConfig) -> Launch:
    hydra = master.hydra
    HydraConfig.instance().set_config(master)
    whole, launcher = str(hydra.sweep.dir), hydra.runtime.choices["hydra/launcher"]
    require(launcher in ("basic", "joblib"), "hydra/launcher", "basic or joblib", launcher)
    swept = [f"{key}={value}" for key, value in (hydra.sweeper.params or {}).items()]
    points = []
    for number, overrides in enumerate(points_of(parsed([*swept, *hydra.overrides.task]))):
        config = composer.compose(overrides)
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.job.num, config.hydra.job.id = number, f"run_{number}"
        HydraConfig.instance().set_config(config)
        below = str(config.hydra.sweep.subdir)
        folder = Path(os.path.abspath(Path(whole, below)))
        if not folder.resolve().is_relative_to(Path(whole).resolve()):
            raise ValueError(f"hydra.sweep.subdir must name a folder in hydra.sweep.dir, got {below!r}")
        name = from_file_name(os.path.relpath(folder, whole))
        point = Point(plain(config), folder, tuple(overrides), name=name, again=f"hydra.sweep.dir={whole}")
        backend = point.config["backend"]["name"]
        is_real = backend in ("vllm", "endpoint")  # points on real engines would time each other
        require(not is_real or launcher == "basic", "hydra/launcher", f"basic with backend={backend}", launcher)
        points.append(point)
    return Launch(points, whole, None if launcher == "basic" else _joblib_settings(hydra.launcher))


def _joblib_settings(launcher: DictConfig) -> dict[str, Any]:
    """Read the settings of joblib; Hydra keeps whole numbers as text if a word is allowed too."""
    settings: Any = OmegaConf.to_container(launcher, resolve=True)
    words = {key: value for key, value in settings.items() if key not in ("_target_", "backend")}
    return {key: int(value) if str(value).isdecimal() else value for key, value in words.items()}


def points_of(overrides: Sequence[Override]) -> list[list[str]]:
    """List the points of a sweep, in the order in which Hydra's basic sweeper runs them."""
    points: list[list[str]] = BasicSweeper.split_arguments([*overrides], None)[0]
    return points


def _also_chosen(hydra: DictConfig) -> str:
    choices = dict(hydra.runtime.choices)
    given = {override.lstrip("+").partition("=")[0] for override in hydra.overrides.task}
    return ", ".join(
        f"{group}={choices[group]}"
        for group, default in default_choices(choices).items()
        if group not in given and choices.get(group) not in (None, default)
    )
