"""The paper's published numbers: the only place where they stand, read by the reports that compare against them.

Source: MOSAIC, arXiv 2606.03014. ``FITTED`` describes the baseline and may calibrate the simulator; ``PREDICTED`` may
only stand beside a prediction.
"""

from typing import NamedTuple

ROUND_ROBIN_WORKER_S = (430.0, 2620.0, 165.0, 2546.0)
"""MMLU-Pro, busy seconds (load and generate) of workers 0 to 3 under round robin. Fitted."""

ROUND_ROBIN_IDLE_FRAC = 0.45
"""MMLU-Pro, share of GPU time idle under round robin."""

ROUND_ROBIN_WALL_S = {"mmlu_pro": 2635.0, "medmcqa": 804.5, "gpqa": 2348.0}
"""Expert-stage makespan under round robin. MedMCQA's and GPQA's fit one length scale each."""


class PredictedWalls(NamedTuple):
    """Published expert-stage makespans of the ILP, never fitted to."""

    runs_s: tuple[float, ...]
    """The run of the results table, then seeds 0, 1, 2."""
    speedup: float
    """Over round robin, as published."""

    @property
    def mean_s(self) -> float:
        return sum(self.runs_s) / len(self.runs_s)


PREDICTED_ILP = {
    "mmlu_pro": PredictedWalls((1557.0, 1601.0, 1668.0, 1637.0), 1.69),
    "medmcqa": PredictedWalls((526.0, 585.0, 551.0, 527.0), 1.53),
    "gpqa": PredictedWalls((925.0, 925.0, 945.0, 896.0), 2.54),
}
