"""A vLLM-like engine in simulated time: batching, KV cache, decoding. Free of SimPy."""

from mosaic.core.engine_options import EngineOptions, Order
from sim.engine.engine import Engine

__all__ = ["Engine", "EngineOptions", "Order"]
