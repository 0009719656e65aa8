"""Which calls a question needs, what they read, and the final answer; `gates` decide what may be skipped."""

from mosaic.pipelines.gates import Calibrated, Gate, Majority, Never, Unanimous, Weighted

__all__ = ["Calibrated", "Gate", "Majority", "Never", "Unanimous", "Weighted"]
