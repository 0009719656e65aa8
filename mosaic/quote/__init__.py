"""Predicts the time and the cost of a batch on numbers of GPUs, from a pilot of its own calls."""

from mosaic.quote.forecast import best_plan
from mosaic.quote.pilot import can_quote, quote_stages, run_quote_pilot
from mosaic.quote.quotation import Kind, Quotation, describe, quote

__all__ = [
    "Kind",
    "Quotation",
    "best_plan",
    "can_quote",
    "describe",
    "quote",
    "quote_stages",
    "run_quote_pilot",
]
