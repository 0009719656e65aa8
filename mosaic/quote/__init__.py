"""Says what a batch will take and cost on so many GPUs, from a pilot of its own calls."""

from mosaic.quote.asking import Asked, ask
from mosaic.quote.best import best_plan
from mosaic.quote.quotation import Quotation, describe
from mosaic.quote.quote import Kind, quote

__all__ = ["Asked", "Kind", "Quotation", "ask", "best_plan", "describe", "quote"]
