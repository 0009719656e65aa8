"""The options that simulated and real engines share."""

from dataclasses import replace

import pytest

from mosaic.core.engine_options import Device, EngineOptions, ModelLoading, Order

CPU = ModelLoading(device=Device.CPU, dtype="float32")


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (ModelLoading, {"device": "tpu"}, "engine.device must be one of"),
        (ModelLoading, {"dtype": ""}, "engine.dtype must be a non-empty string"),
        (ModelLoading, {"device": "cpu"}, "engine.dtype must be a type by its name on CPU, got 'auto'"),
        (ModelLoading, {"load_format": "gguf"}, "engine.load_format must be one of"),
        (EngineOptions, {"order": "random"}, "engine.order must be one of"),
        (EngineOptions, {"watermark_frac": 1.0}, "engine.watermark_frac must be below 1"),
        (EngineOptions, {"max_num_seqs": 0}, "engine.max_num_seqs must be at least 1"),
        (EngineOptions, {"max_num_batched_tokens": 0}, "engine.max_num_batched_tokens must be at least 1"),
        (EngineOptions, {"kv_cache_tokens": 0}, "engine.kv_cache_tokens must be at least 1"),
        (
            EngineOptions,
            {"kv_cache_tokens": 16, "kv_cache_memory_bytes": 1},
            "engine.kv_cache_tokens must be null where",
        ),
        (
            EngineOptions,
            {"loading": CPU, "block_size": 16},
            "engine.block_size must be a multiple of 32 on CPU, got 16",
        ),
        (EngineOptions, {"loading": CPU, "block_size": 32}, "engine.kv_cache_memory_bytes must be a number of bytes"),
        (
            EngineOptions,
            {"order": "mixed", "max_num_batched_tokens": 8},
            "engine.max_num_batched_tokens must be at least max_num_seqs=256 when order is mixed, got 8",
        ),
    ],
)
def test_options_are_checked(cls, values, message):
    with pytest.raises(ValueError, match=message):
        cls(**values)


def test_running_a_checkpoints_code_must_be_said_plainly():
    with pytest.raises(TypeError, match="engine.trust_remote_code must be true or false, got 'false'"):
        ModelLoading(trust_remote_code="false")


def test_the_order_decides_the_budget_and_the_watermark():
    whole, mixed = EngineOptions(), EngineOptions(order=Order.MIXED)
    assert (whole.watermark, mixed.watermark) == (0.01, 0.0)
    assert (whole.batched_tokens(8192), whole.batched_tokens(100), mixed.batched_tokens(8192)) == (8192, 2048, 2048)
    assert replace(mixed, max_num_batched_tokens=512).batched_tokens(8192) == 512
    assert EngineOptions(watermark_frac=0.25).watermark == 0.25


def test_chunks_of_v0_take_none_of_v1s_semantics():
    chunked = EngineOptions(order=Order.CHUNKED)
    assert (chunked.watermark, chunked.caches_prefixes, chunked.batched_tokens(8192)) == (0.01, False, 2048)
