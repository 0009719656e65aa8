"""What a sweep draws when all of its points are done."""

import atexit
import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from experiments.config.errors import BAD_INPUT, exit_with_message, explain_error


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
