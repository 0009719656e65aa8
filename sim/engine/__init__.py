"""Simulates a vLLM-like engine: batching, KV cache, decoding. Does not use SimPy."""

from mosaic.core.engine_options import EngineOptions, Order
from sim.engine.engine import Engine

__all__ = ["Engine", "EngineOptions", "Order"]
