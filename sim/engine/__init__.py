"""A vLLM-like engine in simulated time: batching, KV cache, decoding. Free of SimPy."""

from sim.engine.engine import Engine
from sim.engine.engine_settings import EngineSettings, Order

__all__ = ["Engine", "EngineSettings", "Order"]
