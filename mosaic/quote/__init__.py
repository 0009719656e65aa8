"""Says what a batch will take and cost on so many GPUs, from a pilot of its own calls."""

from mosaic.quote.forecast import best_plan
from mosaic.quote.pilot import Asked, ask, can_quote, quote_stages
from mosaic.quote.quotation import Kind, Quotation, describe, quote

__all__ = ["Asked", "Kind", "Quotation", "ask", "best_plan", "can_quote", "describe", "quote", "quote_stages"]
