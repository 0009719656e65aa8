"""What a sweep says when all of its points are done."""

from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class SweepHint(Callback):
    """Names the command that compares the points (conf/config.yaml hooks it into Hydra)."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        print(f"compare: python experiments/compare.py {config.hydra.sweep.dir}")
