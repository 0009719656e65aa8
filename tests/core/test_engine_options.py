"""The options that simulated and real engines share."""

from dataclasses import replace

import pytest

from mosaic.core.cluster import Worker
from mosaic.core.engine_options import Device, EngineOptions, ModelLoading, Order
from mosaic.core.kv_memory import ACTIVATION_BYTES, free_kv_bytes, kv_capacity_tokens
from tests.factories import make_expert, make_gpu

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


def test_the_capacity_is_what_is_given_or_what_the_weights_leave():
    expert, workers = make_expert(), (Worker(0, make_gpu()), Worker(1, make_gpu()))
    per_token = expert.shape.kv_bytes_per_token(2)
    free = make_gpu().usable_bytes - expert.shape.weight_bytes // 2 - ACTIVATION_BYTES
    assert free_kv_bytes(make_gpu(), expert.shape.weight_bytes, 2) == free
    assert kv_capacity_tokens(expert, workers) == kv_capacity_tokens(expert, workers, EngineOptions())
    assert kv_capacity_tokens(expert, workers) == free // per_token
    assert kv_capacity_tokens(expert, workers, EngineOptions(kv_cache_tokens=77)) == 77
    assert kv_capacity_tokens(expert, workers, EngineOptions(kv_cache_memory_bytes=10 * per_token + 1)) == 10
