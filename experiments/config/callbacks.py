"""What a sweep says and draws when all of its points are done."""

import atexit
import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from experiments.config.errors import BAD_INPUT, exit_with_message, explain_error
from mosaic.core.checks import require_name


class NamedFolders(Callback):
    """Refuses an empty name of a folder, which Hydra takes for the folder where the command was given."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        _require_folder(config, "run")

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        _require_folder(config, "sweep")


def _require_folder(config: DictConfig, mode: str) -> None:
    # NOTE: it cannot be resolved before a job has started: it holds the names of choices.
    named = OmegaConf.to_container(config.hydra[mode], resolve=False)
    with exit_with_message():
        require_name(named["dir"], f"hydra.{mode}.dir")


class SweepHint(Callback):
    """Names the command that compares the points (conf/config.yaml hooks it into Hydra)."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        print(f"compare: python experiments/compare.py {config.hydra.sweep.dir}")


class SweepFigure(Callback):
    """Draws a sweep as its preset describes (conf/ablation.yaml hooks it into Hydra).

    The description is checked before the first point runs. Points that failed are named, and the others drawn.
    """

    def __init__(self, **figure: Any) -> None:
        self.figure = figure

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        from experiments.studies.ablation_spec import read_spec
        from experiments.studies.ablation_sweep import FILES

        with exit_with_message():
            read_spec(self.figure)
            for name in FILES:  # of an earlier sweep, which this one replaces
                (Path(config.hydra.sweep.dir) / name).unlink(missing_ok=True)
        # NOTE: where a point failed, Hydra raises its error and calls no on_multirun_end.
        atexit.register(self._draw_rest, config)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        atexit.unregister(self._draw_rest)
        with exit_with_message():
            self._draw(config)

    def _draw(self, config: DictConfig) -> None:
        from experiments.studies.ablation_sweep import draw_sweep

        folder = Path(config.hydra.sweep.dir)
        print(draw_sweep(config, self.figure, folder), end="")
        print(f"figure: {folder / 'ablation.png'}")

    def _draw_rest(self, config: DictConfig) -> None:
        """Draw what a sweep that failed has left, if it has left anything."""
        from experiments.studies.ablation_sweep import point_names

        try:
            if any((Path(config.hydra.sweep.dir) / name).is_dir() for name in point_names(config)):
                self._draw(config)
        except BAD_INPUT as error:
            print(f"error: {explain_error(error)}", file=sys.stderr)
