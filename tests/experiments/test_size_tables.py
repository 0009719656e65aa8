from itertools import product
from pathlib import Path

import pytest
import yaml
from click.testing import Result

from mosaic.core.workload import ModelShape
from sim.hardware.iteration_time import iteration_time
from tests.experiments.test_closed_loop import write_points
from tests.experiments.test_fit_hardware import SHAPE, fit, load, write_csv

HEADS = [(kv * share, kv) for kv in (1, 2, 8) for share in (1, 4, 8)]
LINK_US = {2: 4.0, 8: 6.0}


def gemm_us(num_tokens: int, n: int, k: int) -> float:
    return 2 + n * k / 1e6 * (0.7 + 0.003 * num_tokens)


def decode_us(num_seqs: int, kv_heads: int, tokens: int) -> float:
    return 8 + 2e-4 * num_seqs * kv_heads * tokens


def prefill_us(tokens: int, heads: int) -> float:
    return 8 + 0.001 * heads * tokens + 1e-6 * heads * tokens**2


def write_by_size(folder: Path) -> Path:
    """Tables whose times are known. Heads that are not shared, and products narrower than a layer's, are of no use."""
    sizes, tokens = (128, 512, 1024, 2048, 4096, 8192, 16384), (1, 8, 64, 256, 512, 1024, 4096)
    gemm = [(m, n, k, gemm_us(m, n, k) * (9 if min(n, k) == 128 else 1)) for m, n, k in product(tokens, sizes, sizes)]
    write_csv(folder / "gemm_bf16_us.csv", ("m", "n", "k", "us"), gemm)
    lengths = (16, 256, 1024, 2048, 4096, 8192)
    header = ("num_heads", "num_kv_heads", "batch_size", "isl", "step", "us")
    prefill = [(q, kv, b, n, 0, b * prefill_us(n, q)) for (q, kv), b, n in product(HEADS, (1, 4), lengths) if q > kv]
    write_csv(folder / "context_attention_bf16_us.csv", header, prefill)
    header = ("num_heads", "num_kv_heads", "batch_size", "kv_tokens_per_sequence", "us")
    decode = [
        (q, kv, b, n, decode_us(b, kv, n) * (5 if q == kv else 1))
        for (q, kv), b, n in product(HEADS, (1, 64, 512), lengths)
    ]
    write_csv(folder / "generation_attention_bf16_us.csv", header, decode)
    link = [(degree, size, us) for degree, us in LINK_US.items() for size in (1024, 2**20, 2**26)]
    write_csv(folder / "all_reduce_us.csv", ("num_gpus", "message_size", "us"), link)
    return folder


def fit_sizes(folder: Path, out: Path, loops: Path | None = None) -> Result:
    by_size = {"folder": folder.name, "source": "measured: here", "small_fixed_us": 4.0}
    more = {} if loops is None else {"loops": {"file": loops.name, "shape": "llama3_8b", "source": "a server"}}
    return fit(folder, out, fit={"tables": [], "by_size": by_size, **more}, memory_gib=80.0)


@pytest.mark.parametrize("degree", [1, 2, 8])
def test_operators_by_size_price_a_model_at_every_degree_with_a_link(degree: int, tmp_path: Path) -> None:
    assert fit_sizes(write_by_size(tmp_path / "sizes"), tmp_path / "gpu.yaml").exit_code == 0
    shape = ModelShape(**yaml.safe_load(SHAPE.read_text()))
    time = iteration_time(load(tmp_path / "gpu.yaml"), shape, degree)
    heads, kv_heads = 32 // degree, 8 // degree
    products = ((heads + 2 * kv_heads) * 128, heads * 128, 2 * 14336 // degree, 14336 // degree)
    layer_us = sum(gemm_us(64, 4096, width) for width in products) + 4 + decode_us(64, kv_heads, 1024)
    layer_us += 2 * LINK_US.get(degree, 0.0)
    step_us = 32 * layer_us + gemm_us(64, 4096, shape.vocab_size // degree)
    assert time.decode_span_s(64, 64 * 1024, 1) * 1e6 == pytest.approx(step_us, rel=0.03)
    moved_us = 0.7e-6 * (
        8 * 4096 + 2 * 128 * (heads + kv_heads) + 3 * 14336 // degree
    )  # a token's, at 0.7 us per MB x 2
    layer_us = sum(gemm_us(4096, 4096, width) for width in products) + 4 + 4096 * moved_us
    assert load(tmp_path / "gpu.yaml").table_for(shape, degree).measured == (512, 8192)
    prompt_us = 32 * (layer_us + prefill_us(4096, heads) + 2 * LINK_US.get(degree, 0.0))
    assert time.mixed_s([(4096, 0)], 0, 0) * 1e6 == pytest.approx(prompt_us, rel=0.03)


def test_loops_fit_what_the_tables_lack(tmp_path: Path) -> None:
    folder, out = write_by_size(tmp_path / "sizes"), tmp_path / "gpu.yaml"
    fit_sizes(folder, out)
    shape = ModelShape(**yaml.safe_load(SHAPE.read_text()))
    step_ms = iteration_time(load(out), shape, 1).decode_span_s(1, 200, 1) * 1e3
    loops = write_points(tmp_path / "loops.csv", isl=128, concurrency=1, tp=1, ttft_ms=step_ms + 3, tpot_ms=step_ms + 3)
    ended = fit_sizes(folder, out, loops)
    assert ended.exit_code == 0, ended.stderr
    hardware = load(out)
    slower_ms = iteration_time(hardware, shape, 1).decode_span_s(1, 200, 1) * 1e3
    assert slower_ms - step_ms == pytest.approx(3, rel=0.1)
    assert hardware.sources["cpu"].startswith("fitted: rounds of 1 points of a server; mean absolute error of TPOT 0.")


def test_loops_need_operators_by_size(tmp_path: Path) -> None:
    tables = write_by_size(tmp_path / "sizes")
    loops = write_points(tmp_path / "loops.csv")
    given = {"loops": {"file": loops.name, "shape": "llama3_8b", "source": "a server"}, "tables": []}
    ended = fit(tables, tmp_path / "gpu.yaml", fit=given)
    assert ended.exit_code == 2
    assert "fit.loops must be given with fit.by_size" in ended.stderr
