"""Reads answers from responses, and tells whether two answers are equal."""

from mosaic.answers.extraction import Comparison, comparison, extract_answer, is_correct, without_thinking

__all__ = ["Comparison", "comparison", "extract_answer", "is_correct", "without_thinking"]
