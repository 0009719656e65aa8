"""The tiny pool's models: their one shape, their limits, and the aggregator's prompt."""

from collections.abc import Sequence

from mosaic.core.workload import Expert, Family, ModelShape, Question
from mosaic.pipelines.aggregation import Response, lay_out

SHAPE = ModelShape(
    num_parameters=385_664,
    num_layers=2,
    hidden_size=128,
    ffn_size=256,
    num_query_heads=4,
    num_kv_heads=4,
    head_dim=32,
    vocab_size=448,
    bytes_per_value=4,
    tied_embeddings=True,
)
"""Of every model of the pool."""

CONTEXT_TOKENS = 512
"""Of an expert."""
MAX_OUTPUT_TOKENS = 320
"""Of an expert: half as much again as the longest response it is trained to write."""
JUDGE = Expert(
    name="TinyJudge",
    checkpoint="TinyJudge",
    shape=SHAPE,
    family=Family.INSTRUCT,
    temperature=0.0,
    max_output_tokens=64,
    context_tokens=1024,
)
"""The aggregator. What fills its context are estimates: ``aggregation`` counts four characters as a token."""


def judge_prompt(question: Question, responses: Sequence[Response]) -> str:
    """Write what the aggregator reads about a question; the responses are those of its slots, without thinking."""
    return lay_out(question, responses, JUDGE).text()
