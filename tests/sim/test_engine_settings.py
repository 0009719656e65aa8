import pytest

from mosaic.core.engine_options import EngineOptions, Order


def test_the_token_budget_follows_the_order():
    assert EngineOptions(order=Order.PREFILL_FIRST).batched_tokens(32768) == 32768
    assert EngineOptions(order=Order.PREFILL_FIRST).batched_tokens(1000) == 2048
    assert EngineOptions(order=Order.MIXED).batched_tokens(32768) == 2048
    assert EngineOptions(order="mixed", max_num_batched_tokens=512).batched_tokens(32768) == 512


def test_the_watermark_follows_the_order():
    assert EngineOptions(order=Order.PREFILL_FIRST).watermark == 0.01
    assert EngineOptions(order=Order.MIXED).watermark == 0.0
    assert EngineOptions(order=Order.MIXED, watermark_frac=0.05).watermark == 0.05
    assert EngineOptions(order=Order.PREFILL_FIRST, watermark_frac=0.0).watermark == 0.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"order": "v2"}, r"order must be one of \['prefill_first', 'chunked', 'mixed'\], got 'v2'"),
        ({"max_num_seqs": 0}, "max_num_seqs must be at least 1, got 0"),
        ({"block_size": 0}, "block_size must be at least 1, got 0"),
        ({"max_num_batched_tokens": 0}, "max_num_batched_tokens must be at least 1, got 0"),
        ({"kv_cache_tokens": 15}, "kv_cache_tokens must be at least 16, got 15"),
        ({"watermark_frac": -0.1}, "watermark_frac must be at least 0, got -0.1"),
        ({"watermark_frac": 1}, "watermark_frac must be below 1, got 1"),
        (
            {"order": "mixed", "max_num_batched_tokens": 255},
            "max_num_batched_tokens must be at least max_num_seqs=256 when order is mixed, got 255",
        ),
        ({"order": "mixed", "max_num_seqs": 4096}, "must be at least max_num_seqs=4096"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        EngineOptions(**changes)


def test_numbers_must_be_whole():
    with pytest.raises(TypeError, match=r"max_num_seqs must be a whole number, got 2\.5"):
        EngineOptions(max_num_seqs=2.5)
