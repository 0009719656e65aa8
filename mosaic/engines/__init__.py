"""Real engines: vLLM and OpenAI-compatible servers, and the processes that drive them."""
