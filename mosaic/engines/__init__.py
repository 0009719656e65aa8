"""Real engines: vLLM and OpenAI-compatible servers, and the processes that drive them."""

from mosaic.core.engine_options import EngineOptions
from mosaic.engines.backend import EngineBackend
from mosaic.engines.launcher import Patience
from mosaic.engines.local_launcher import LocalLauncher
from mosaic.engines.requests import Prompts, RunContent
from mosaic.engines.vllm_engines import VllmEngines

__all__ = [
    "EngineBackend",
    "EngineOptions",
    "LocalLauncher",
    "Patience",
    "Prompts",
    "RunContent",
    "VllmEngines",
]
