"""Composes a plain single run once. Hydra's own command composes twice: first it asks whether this is a sweep."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict, read_write

from mosaic.config.callbacks import NamedFolders
from mosaic.config.compose import CONF
from mosaic.config.errors import BAD_INPUT

CALLBACKS = {"folders", "sweep_hint", "composition"}
"""Of conf/config.yaml. Of these a single run heeds what folders says at its start."""


def compose_single(arguments: Sequence[str]) -> DictConfig | None:
    """Compose the single run that a command line asks for, and make its folder, as Hydra would.

    None where more is asked for (a flag, a sweep, a setting of Hydra's beside the folder), or where composing fails:
    that is left to Hydra's command, with its messages.
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
    NamedFolders().on_run_start(config)
    hydra_config = HydraConfig.instance()
    hydra_config.set_config(config)
    folder = Path(os.path.abspath(config.hydra.run.dir))
    with read_write(config.hydra.runtime), open_dict(config.hydra.runtime):
        config.hydra.runtime.output_dir = str(folder)
    hydra_config.set_config(config)
    folder.mkdir(parents=True, exist_ok=True)
    with open_dict(config):
        del config["hydra"]
    return config


def _is_plain(hydra: Any) -> bool:
    """Tell whether Hydra would do no more than make the folder and run."""
    logging = {hydra.runtime.choices[f"hydra/{name}_logging"] for name in ("job", "hydra")}
    return (
        hydra.mode in (None, RunMode.RUN)
        and all(override.startswith("hydra.run.dir=") for override in hydra.overrides.hydra)
        and hydra.callbacks.keys() <= CALLBACKS
        and hydra.output_subdir is None
        and not (hydra.job.chdir or hydra.job.env_set or hydra.verbose)
        and logging == {"disabled"}
    )
