"""What a sweep says when all of its points are done."""

from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from mosaic.config.errors import exit_with_message
from mosaic.core.checks import require_name


class NamedFolders(Callback):
    """Refuses an empty name of a folder, which Hydra takes for the folder where the command was given."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        _require_folder(config, "run")

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        _require_folder(config, "sweep")


def _require_folder(config: DictConfig, mode: str) -> None:
    # NOTE: it cannot be resolved before a job has started: it holds the names of choices.
    named: Any = OmegaConf.to_container(config.hydra[mode], resolve=False)
    with exit_with_message():
        require_name(named["dir"], f"hydra.{mode}.dir")


class SweepHint(Callback):
    """Names the command that compares the points (conf/config.yaml hooks it into Hydra)."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        print(f"compare: mosaic compare {config.hydra.sweep.dir}")
