"""Embeddings of tokens on real vLLM and tiny random checkpoints."""

import numpy as np
import pytest

from mosaic.engines.token_embeddings import TokenEmbeddings
from mosaic.pipelines.rules.faster_moa import frobenius_cosine, token_correlation
from tests.engines.executor_runs import OPTIONS, has_vllm
from tests.engines.tiny_checkpoint import write_tiny_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not has_vllm(), reason="vLLM is not installed")]


def test_a_text_has_an_embedding_for_each_of_its_tokens_the_same_each_time(tmp_path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "model")
    embed = TokenEmbeddings(checkpoint, 64, OPTIONS)
    one, other = embed("a short text"), embed("quite another one")
    assert one.shape == (len("a short text"), other.shape[1])
    assert one is embed("a short text")
    assert np.array_equal(one, TokenEmbeddings(checkpoint, 64, OPTIONS)("a short text"))
    assert frobenius_cosine(token_correlation(one), token_correlation(other)) < 1
    assert len(embed("x" * 200)) == 64, "a longer text loses its beginning"
    assert repr(embed) == "TokenEmbeddings('model', 64)"
