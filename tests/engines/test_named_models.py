"""Experts by the name of their checkpoint."""

import json
from pathlib import Path

import pytest

from mosaic.core.workload import Family
from mosaic.engines.checkpoints import CheckpointError
from mosaic.engines.named_models import expert_of_checkpoint
from tests.engines.tiny_checkpoint import CONTEXT, write_tiny_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write_tiny_checkpoint(tmp_path / "me" / "Tiny")
    return tmp_path / "me" / "Tiny"


def test_shape_context_and_kv_size_are_the_checkpoint_s(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    expert = expert_of_checkpoint(checkpoint=str(checkpoint))
    shape = expert.shape
    assert (expert.name, expert.context_tokens, expert.family) == ("Tiny", CONTEXT, Family.INSTRUCT)
    assert (shape.num_layers, shape.hidden_size) == (config["num_hidden_layers"], config["hidden_size"])
    assert shape.weight_bytes == pytest.approx((checkpoint / "model.safetensors").stat().st_size, abs=4)
    kv_heads, head_dim = config["num_key_value_heads"], config["head_dim"]
    assert shape.kv_bytes_per_token() == 2 * config["num_hidden_layers"] * kv_heads * head_dim * shape.bytes_per_value


def test_what_is_given_goes_before_what_is_read(checkpoint: Path) -> None:
    (checkpoint / "generation_config.json").write_text('{"temperature": 0.3}')
    assert expert_of_checkpoint(checkpoint=str(checkpoint)).temperature == 0.3
    expert = expert_of_checkpoint(
        checkpoint=str(checkpoint), name="Mine", temperature=0.0, max_output_tokens=7, context_tokens=64
    )
    assert (expert.name, expert.temperature, expert.max_output_tokens, expert.context_tokens) == ("Mine", 0.0, 7, 64)


def test_a_template_that_opens_thinking_is_a_reasoner_s(checkpoint: Path) -> None:
    (checkpoint / "chat_template.jinja").write_text("{{ messages }}<think>")
    assert expert_of_checkpoint(checkpoint=str(checkpoint)).family is Family.REASONING


def test_a_configuration_without_context_asks_for_it(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    del config["max_position_embeddings"]
    (checkpoint / "config.json").write_text(json.dumps(config))
    (checkpoint / "SHA256SUMS").unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match="max_position_embeddings must be there, or context_tokens be given"):
        expert_of_checkpoint(checkpoint=str(checkpoint))
