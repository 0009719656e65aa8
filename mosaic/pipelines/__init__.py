"""Decides which calls a question needs, what they read, and the final answer; `rules` decide what may be skipped."""

from mosaic.pipelines.rules.calibrated import Calibrated
from mosaic.pipelines.rules.faster_moa import FasterMoa
from mosaic.pipelines.rules.rule import Majority, Never, Rule
from mosaic.pipelines.rules.weighted import Weighted

__all__ = ["Calibrated", "FasterMoa", "Majority", "Never", "Rule", "Weighted"]
