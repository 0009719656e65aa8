"""Predicted output lengths: all that a scheduler may know about how long an expert writes."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from mosaic.core.addition import add_in_order
from mosaic.core.checks import require, require_number


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthPrediction:
    """Predicted distribution of one expert's output tokens per call."""

    mean: float
    max: float
    std: float = 0.0

    def __post_init__(self) -> None:
        require_number(self.mean, "length prediction: mean", above=0)
        require_number(self.max, "length prediction: max", above=0)
        require_number(self.std, "length prediction: std", at_least=0)
        require(self.max >= self.mean, "length prediction: max", f"at least the mean {self.mean:g}", self.max)


def prediction_from_sample(lengths: Sequence[int]) -> LengthPrediction:
    """Summarise lengths measured on calibration questions.

    Raises
    ------
    ValueError
        If the sample is empty.
    """
    require(len(lengths) > 0, "length sample", "non-empty", list(lengths))
    mean = sum(lengths) / len(lengths)
    variance = add_in_order((length - mean) ** 2 for length in lengths) / len(lengths)
    return LengthPrediction(mean=mean, max=float(max(lengths)), std=sqrt(variance))
