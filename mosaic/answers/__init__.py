"""From a response to an answer, and whether two answers are equal."""

from mosaic.answers.extraction import Comparison, comparison, extract_answer

__all__ = ["Comparison", "comparison", "extract_answer"]
