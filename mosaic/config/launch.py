"""How a command line starts runs through Hydra: a plain run, a sweep, and what is said before and after one."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from mosaic.config.compose import CONF, SharingLoader, default_choices
from mosaic.config.errors import BAD_INPUT, exit_with_message
from mosaic.core.checks import require_name

NO_LOGGING = {"version": 1, "root": {"level": "ERROR"}, "disable_existing_loggers": True}
"""What Hydra's choice ``disabled`` holds."""


class Launch(Callback):
    """Checks the names of folders, lets the points of a sweep share compositions, and says how they are compared.

    conf/config.yaml hooks it into Hydra.
    """

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        _require_folder(config, "run")

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        _require_folder(config, "sweep")
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        hydra.config_loader = SharingLoader(hydra.config_loader)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        print(f"compare: mosaic compare {config.hydra.sweep.dir}")


def _require_folder(config: DictConfig, mode: str) -> None:
    """Refuse an empty name of a folder, which Hydra takes for the folder where the command was given."""
    # NOTE: it cannot be resolved before a job has started: it holds the names of choices.
    named: Any = OmegaConf.to_container(config.hydra[mode], resolve=False)
    with exit_with_message():
        require_name(named["dir"], f"hydra.{mode}.dir")


def compose_single(arguments: Sequence[str]) -> DictConfig | None:
    """Compose the single run that a command line asks for, and make its folder, as Hydra would.

    Hydra's own command composes twice: first to see whether this is a sweep. None where more is wanted (a flag, a
    sweep, a setting of Hydra's beside the folder), or where composing fails: that is left to Hydra's command, with its
    messages.
    """
    if any(argument.startswith("-") for argument in arguments):
        return None
    try:
        with initialize_config_dir(str(CONF), job_name="run", version_base="1.3"):
            config = compose("config", [*arguments], return_hydra_config=True)
    except BAD_INPUT:
        return None
    if not _is_plain(config.hydra):
        return None
    _require_folder(config, "run")
    HydraConfig.instance().set_config(config)
    folder = Path(os.path.abspath(config.hydra.run.dir))
    with read_write(config.hydra), open_dict(config):
        config.hydra.runtime.output_dir = str(folder)
        HydraConfig.instance().set_config(config)
        folder.mkdir(parents=True, exist_ok=True)
        del config["hydra"]
    return config


def _is_plain(hydra: Any) -> bool:
    """Tell whether Hydra would do no more than make the folder and run: files may hold its settings too."""
    more = (hydra.output_subdir, hydra.job.chdir, hydra.job.env_set, hydra.verbose, hydra.callbacks.keys() - {"launch"})
    return (
        hydra.mode is not RunMode.MULTIRUN
        and all(override.startswith("hydra.run.dir=") for override in hydra.overrides.hydra)
        and not any(more)
        and hydra.job_logging == hydra.hydra_logging == NO_LOGGING
    )


def points_of(overrides: Sequence[Override]) -> list[list[str]]:
    """List the points of a sweep, in the order in which Hydra's basic sweeper runs them."""
    points: list[list[str]] = BasicSweeper.split_arguments([*overrides], None)[0]
    return points


def check_sweep(config: DictConfig, run: DictConfig) -> None:
    """Check that points lie in the sweep's folder, and on real engines run in turn: they would time each other.

    Raises
    ------
    ValueError
        If they do not.
    """
    folder, whole = Path(run.runtime.output_dir).resolve(), Path(run.sweep.dir).resolve()
    if not folder.is_relative_to(whole):
        with suppress(OSError):  # Hydra has made it
            folder.rmdir()
        raise ValueError(f"hydra.sweep.subdir must name a folder in hydra.sweep.dir, got {run.sweep.subdir!r}")
    name, launcher = config.get("backend", {}).get("name"), run.runtime.choices["hydra/launcher"]
    if name in ("vllm", "endpoint") and launcher != "basic":
        raise ValueError(f"hydra/launcher must be basic with backend={name}, got {launcher!r}")


def also_chosen(run: DictConfig) -> str:
    """Name the groups that were chosen by another group's file, and neither by the command line nor by default."""
    choices = dict(run.runtime.choices)
    given = {override.lstrip("+").partition("=")[0] for override in run.overrides.task}
    return ", ".join(
        f"{group}={choices[group]}"
        for group, default in default_choices(choices).items()
        if group not in given and choices.get(group) not in (None, default)
    )
