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


class FittedAnswers(NamedTuple):
    """What a benchmark's answers may be fitted to."""

    unanimous_frac: float
    """Questions on which all three experts agree."""
    distinct_frac: float
    """Questions on which no two agree."""
    always_accuracy_frac: float
    """When every question is aggregated."""


FITTED_ANSWERS = {
    "mmlu_pro": FittedAnswers(960 / 2100, 323 / 2100, 0.6319),
    "medmcqa": FittedAnswers(0.4748, 1 - 0.9018, 0.5969),
    "gpqa": FittedAnswers(0.3737, 1 - 0.8737, 0.5657),
}

UNANIMOUS_RIGHT_FRAC = {"majority": 0.8292, "aggregator": 0.8240}
"""MMLU-Pro, share of right answers where all three experts agree. Fitted."""

BUCKET_TOKENS = (1064.0, 1915.0, 2696.0)
"""MMLU-Pro, mean output tokens of a question's calls by agreement 3:0, 2:1, 1:1:1. Fitted."""

TOKENS_PER_CALL = (960 * BUCKET_TOKENS[0] + 817 * BUCKET_TOKENS[1] + 323 * BUCKET_TOKENS[2]) / 2100
"""MMLU-Pro, mean output tokens over all calls: follows from the buckets. Fitted."""

BUCKET_SPEARMAN = -0.27
"""MMLU-Pro, rank correlation of length with agreement."""

ALWAYS_AGGREGATE_S = {"mmlu_pro": 1514.7, "medmcqa": 516.49, "gpqa": 348.0}
"""Aggregator stage with every question aggregated: fits one mean length a benchmark."""

AGGREGATORS = {"mmlu_pro": "LlamaR1", "medmcqa": "Exaone", "gpqa": "QwenR1"}
"""Who merges the answers."""

GATED_AGGREGATE_S = {"mmlu_pro": 870.5, "medmcqa": 122.09, "gpqa": 227.73}
"""Aggregator stage at tau = 2/3. Predicted."""

ACCURACY_CHANGE_PP = {"mmlu_pro": (0.24, -0.62), "medmcqa": (-0.04, 0.32), "gpqa": (1.00, 0.49)}
"""At tau = 1 and 2/3. Predicted, but for MMLU-Pro's first, which follows from the fit."""

END_TO_END_SPEEDUP = {"mmlu_pro": 1.71, "medmcqa": 2.04, "gpqa": 2.34}
"""ILP and tau = 2/3 over round robin with every question aggregated. Predicted."""

END_TO_END_S = {"mmlu_pro": (4149.9, 2427.6), "medmcqa": (1321.0, 648.6), "gpqa": (2696.4, 1153.1)}
"""Both stages in seconds: round robin with every question aggregated (fitted), then ILP and tau = 2/3 (predicted)."""

AGGREGATE_SPEEDUP = {"mmlu_pro": 1.74, "medmcqa": 4.23, "gpqa": 1.53}
"""Of the aggregator stage at tau = 2/3 over aggregating every question. Predicted."""

PUBLISHED_MEANS = {"LlamaR1": 3146.0, "QwenR1": 3734.0, "Gemma": 291.0}
"""MMLU-Pro, mean output tokens per call with the hybrid pool, where published."""

POOL_TOKENS = {
    "hybrid": PUBLISHED_MEANS,
    "reasoning": {"LlamaR1": 2302.0, "QwenR1": 2522.0, "Skywork": 5339.0, "Stratos": 5822.0},
    "instruct": {},
}
"""MMLU-Pro, mean output tokens per call by pool and expert, where published. The workloads are built on them."""

POOL_MEAN_TOKENS = {"reasoning": 3289.0, "instruct": 518.0}
"""MMLU-Pro, mean output tokens over a pool's experts. The workloads are built on them."""

POPULARITY_RATIO = {"hybrid": 2.98, "reasoning": 5.46, "instruct": 92.4}
"""MMLU-Pro, slots of the most popular expert over those of the least popular one. The workloads are built on them."""
