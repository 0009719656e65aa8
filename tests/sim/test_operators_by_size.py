from collections.abc import Callable
from dataclasses import replace
from math import ceil
from typing import Any

import pytest
import yaml

from mosaic.core.cluster import Gpu
from mosaic.core.workload import ModelShape
from sim.hardware.curves import Curve, Grid
from sim.hardware.hardware import Hardware, hardware_from_config
from sim.hardware.iteration_time import iteration_time
from sim.hardware.operators_by_size import OperatorsBySize
from tests.config.test_conf_data import CONF

BYTES_PER_S = 2e12
SHAPE = ModelShape(
    num_parameters=8_030_261_248,
    num_layers=32,
    hidden_size=4096,
    ffn_size=14336,
    num_query_heads=32,
    num_kv_heads=8,
    head_dim=128,
    vocab_size=128256,
)


def grid(rows: tuple[float, ...], columns: tuple[float, ...], cell: Callable[[float, float], float]) -> Grid:
    return Grid(rows, columns, tuple(tuple(cell(y, x) for x in columns) for y in rows))


def gemm_s(num_tokens: float, millions: float) -> float:
    """Weights are read once, and each token takes a little."""
    return 2e6 * millions / BYTES_PER_S + 1e-9 * millions * (num_tokens - 1)


def decode_s(num_heads: int, num_seqs: float, tokens: float) -> float:
    return 1e-6 + 1e-9 * num_heads * num_seqs * tokens


def prefill_s(tokens: float, num_heads: float) -> float:
    return 1e-9 * num_heads * tokens


def make_operators(**changes: Any) -> OperatorsBySize:
    """Operators whose times are known, and linear between the knots of every grid."""
    given: dict[str, Any] = {
        "source": "made up",
        "gemm": grid((1, 512, 16384), (0.25, 1024), gemm_s),
        "decode": {
            heads: grid((1, 512), (16, 65536), lambda y, x, n=heads: decode_s(n, y, x))  # type: ignore[misc]
            for heads in (1, 2, 8)
        },
        "prefill": grid((1, 65536), (1, 64), prefill_s),
        "head_dim": 128,
        "small_fixed_s": 3e-6,
        "mape": {},
    }
    return OperatorsBySize(**given | changes)


def make_hardware(operators: OperatorsBySize) -> Hardware:
    return Hardware(
        gpu=Gpu(name="gpu", memory_bytes=80 * 2**30),
        tables=(),
        by_size=operators,
        load_bytes_per_s=1e9,
        all_reduce={2: Curve((0.0, 1e9), (5e-6, 5e-6)), 8: Curve((0.0, 1e9), (7e-6, 7e-6))},
    )


def layer_s(num_tokens: int, degree: int) -> float:
    """Products, norms, rotary embedding and activation of a layer of SHAPE, in closed form."""
    heads, kv_heads = 32 // degree, ceil(8 / degree)
    weights = 4096 * 128 * (heads + 2 * kv_heads + heads) + 3 * 4096 * 14336 // degree
    num_products_fixed = gemm_s(num_tokens, weights / 1e6)
    values = 8 * 4096 + 2 * 128 * (heads + kv_heads) + 3 * 14336 // degree
    return num_products_fixed + 3e-6 + 2 * values * num_tokens / BYTES_PER_S


@pytest.mark.parametrize(("degree", "link_s"), [(1, 0.0), (2, 5e-6), (8, 7e-6)])
def test_a_model_costs_its_own_operators_at_any_degree(degree: int, link_s: float) -> None:
    time = iteration_time(make_hardware(make_operators()), SHAPE, degree)
    num_seqs, tokens, kv_heads = 16, 1000, ceil(8 / degree)
    head_s = gemm_s(num_seqs, SHAPE.vocab_size * SHAPE.hidden_size / degree / 1e6)
    attention_s = decode_s(kv_heads, num_seqs, tokens)
    expected_s = 32 * (layer_s(num_seqs, degree) + attention_s + 2 * link_s) + head_s
    assert time.decode_span_s(num_seqs, num_seqs * tokens, 1) == pytest.approx(expected_s, rel=1e-9)


def test_a_chunk_takes_what_it_adds_to_the_prompt_before_it() -> None:
    time = iteration_time(make_hardware(make_operators()), SHAPE, 1)
    head_s = gemm_s(1, SHAPE.vocab_size * SHAPE.hidden_size / 1e6)
    alone_s = 32 * (layer_s(2048, 1) + prefill_s(2048, 32)) + head_s
    assert time.mixed_s([(2048, 0)], 0, 0) == pytest.approx(alone_s, rel=1e-9)
    quadratic = make_operators(
        prefill=grid((1, *range(1024, 65537, 1024)), (1, 64), lambda tokens, heads: 1e-12 * heads * tokens**2)
    )
    behind, first = (
        iteration_time(make_hardware(quadratic), SHAPE, 1).mixed_s([(2048, context)], 0, 0) for context in (4096, 0)
    )
    assert behind - first == pytest.approx(32 * 32 * 1e-12 * (6144**2 - 4096**2 - 2048**2), rel=1e-9)


def test_kv_heads_that_were_not_measured_are_more_sequences_of_fewer_heads() -> None:
    sixteen = replace(SHAPE, num_query_heads=48, num_kv_heads=16)
    attention = make_operators().decode_attention(sixteen, 1, is_alone=True)
    assert attention(8, 1000) == pytest.approx(decode_s(8, 16, 1000))
    assert make_operators().decode_attention(sixteen, 4, is_alone=True)(8, 1000) == pytest.approx(decode_s(2, 16, 1000))


def test_attention_grows_with_the_size_of_a_head() -> None:
    wide = replace(SHAPE, head_dim=256)
    operators = make_operators()
    assert operators.decode_attention(wide, 1, is_alone=True)(4, 500) == pytest.approx(2 * decode_s(8, 4, 500))
    assert operators.prefill_attention(wide, 1)(4096, 0) == pytest.approx(2 * prefill_s(4096, 32))


def test_what_a_head_adds_is_to_decodes_alone() -> None:
    operators = make_operators(decode_head_s=1e-6)
    alone, beside = (operators.decode_attention(SHAPE, 2, is_alone=is_alone)(64, 1000) for is_alone in (True, False))
    assert alone - beside == pytest.approx(64 * 16 * 1e-6)


def test_products_take_longer_in_an_engine_by_the_files_scale() -> None:
    config = yaml.safe_load((CONF / "hardware" / "h100_80gb.yaml").read_text())
    del config["_target_"]
    times = []
    for scale in (1.0, 1.5):
        config["by_size"] |= {"gemm_scale": scale, "small_fixed_us": 0.0}
        operators = hardware_from_config(**config).by_size
        assert operators is not None
        times.append((operators.dense(SHAPE, 1)(1024), operators.head(SHAPE, 1)(8), operators.prefill(1024, 32)))
    (dense_s, head_s, attention_s), (slow_dense_s, slow_head_s, slow_attention_s) = times
    assert (slow_dense_s, slow_head_s) == pytest.approx((1.5 * dense_s, 1.5 * head_s))
    assert slow_attention_s == attention_s
    config["by_size"] |= {"gemm_scale": 0.0}
    with pytest.raises(ValueError, match=r"h100_80gb: by_size.gemm_scale must be above 0, got 0.0"):
        hardware_from_config(**config)


def test_a_degree_without_all_reduce_is_refused() -> None:
    with pytest.raises(ValueError, match=r"hardware gpu: tp_degree must be one of \[1, 2, 8\], got 4"):
        iteration_time(make_hardware(make_operators()), SHAPE, 4)


def test_tables_and_operators_by_size_exclude_each_other() -> None:
    hardware = make_hardware(make_operators())
    with pytest.raises(ValueError, match="tables must be at least one, and none with by_size, got 1"):
        replace(hardware, tables=(hardware.table_for(SHAPE, 1),), memory_bytes_per_s=1e12)
