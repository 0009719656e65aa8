"""FlexiCache's published numbers: the only place where they stand.

Source: FlexiCache, arXiv 2511.00868, on one H100 with 94 GB. Only the column of plain vLLM may be fitted to.
"""

OUTPUT_TOKENS = (100, 500, 1000, 1500)
"""Tokens that each request writes."""
VLLM_TOK_PER_S = (11179.0, 7742.0, 5610.0, 4549.0)
"""Llama-3.1-8B, prompt and output tokens per second, by output tokens. Fitted."""
FLEXICACHE_TOK_PER_S = (12433.0, 11480.0, 9965.0, 9445.0)
"""The same with a budget of 1,024 tokens. Never fitted to."""
MEMORY_SAVED_FRAC = 0.70
"""KV memory saved from 20k tokens on: more than this."""
UNSTABLE_OVERLAP_FRAC = 0.83
"""Share of the unstable heads that another task's documents find too."""
PROMOTED_FRAC = (0.23, 0.35)
"""Pages of the best ones that are new at a ranking, least and most over models and tasks."""
