"""Which calls a question needs, what they read, and the final answer; `rules` decide what may be skipped."""

from mosaic.pipelines.rules import Calibrated, FasterMoa, Majority, Never, Rule, Weighted

__all__ = ["Calibrated", "FasterMoa", "Majority", "Never", "Rule", "Weighted"]
