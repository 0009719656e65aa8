"""The options that simulated and real engines share."""

from dataclasses import replace

from mosaic.core.engine_options import Device, EngineOptions, ModelLoading, Order

CPU = ModelLoading(device=Device.CPU, dtype="float32")


def test_the_order_decides_the_budget_and_the_watermark():
    whole, mixed = EngineOptions(), EngineOptions(order=Order.MIXED)
    assert (whole.watermark, mixed.watermark) == (0.01, 0.0)
    assert (whole.batched_tokens(8192), whole.batched_tokens(100), mixed.batched_tokens(8192)) == (8192, 2048, 2048)
    assert replace(mixed, max_num_batched_tokens=512).batched_tokens(8192) == 512
    assert (EngineOptions(watermark_frac=0.0).watermark, replace(mixed, watermark_frac=0.05).watermark) == (0.0, 0.05)


def test_chunks_of_v0_take_none_of_v1s_semantics():
    chunked = EngineOptions(order=Order.CHUNKED)
    assert (chunked.watermark, chunked.caches_prefixes, chunked.batched_tokens(8192)) == (0.01, False, 2048)
