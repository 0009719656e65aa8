import csv
import re
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from click.testing import Result
from typer.testing import CliRunner

from experiments.fit_hardware import main, read_recipe
from sim.hardware.hardware import FittedAttention, Hardware, MeasuredAttention, hardware_from_config
from sim.hardware.skew_time import IDLE_FRAC

RECIPES = Path(__file__).resolve().parents[2] / "experiments" / "hardware" / "recipes"
SHAPE = RECIPES.parent / "shapes" / "llama3_8b.yaml"
CHUNKS, CONTEXTS = (16, 256, 2048), (0, 512, 4096)
DECODES, KV = (1, 16, 128), (16, 512, 4096)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])


def prefill_us(chunk: float, context: float) -> float:
    return 8 + 0.05 * chunk + 0.02 * context


def decode_us(num_seqs: float, kv: float) -> float:
    return 8 + 0.1 * num_seqs + 0.01 * kv


def joint_us(chunk: float, context: float, num_seqs: float, kv: float) -> float:
    return prefill_us(chunk, context) + 0.5 * num_seqs + 0.03 * kv + 0.001 * chunk * num_seqs


def write_per_operator(folder: Path, *, tp_degree: int = 1) -> Path:
    """Tables whose times are known, in the per-operator layout."""
    (folder / f"tp{tp_degree}").mkdir(parents=True)
    (folder / "tables.yaml").write_text("model: m\ngpu: g\nvllm_version: 0.0.1\nprofiled_at: '2026-01-02T03'\n")
    operators = {"qkv_proj": 100, "layernorm": 2, "embedding": 5, "final_layernorm": 3}
    write_csv(
        folder / f"tp{tp_degree}" / "dense.csv",
        ("layer", "tokens", "time_us"),
        [(name, tokens, us + 0.1 * tokens) for name, us in operators.items() for tokens in (1, 64, 512, 2048)],
    )
    write_csv(
        folder / f"tp{tp_degree}" / "per_sequence.csv",
        ("layer", "sequences", "time_us"),
        [(name, n, us + 0.2 * n) for name, us in (("lm_head", 700), ("sampler", 20)) for n in (1, 64, 256)],
    )
    alone = [(0, 0, n, kv, decode_us(n, kv)) for n in DECODES for kv in KV]
    alone += [(c, p, 0, 0, prefill_us(c, p)) for c in CHUNKS for p in CONTEXTS]
    both = [(c, p, n, kv, joint_us(c, p, n, kv)) for c in CHUNKS for p in CONTEXTS for n in DECODES for kv in KV]
    write_csv(
        folder / f"tp{tp_degree}" / "attention.csv",
        ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us"),
        alone + both,
    )
    return folder


def write_per_layer(folder: Path) -> Path:
    """Tables whose times are known, in the per-layer layout."""
    write_csv(
        folder / "x_linear_ms_per_layer.csv",
        ("tensor_parallel_size", "num_tokens", "linear_ms_per_layer"),
        [(tp, tokens, (0.3 + 0.001 * tokens) / tp) for tp in (1, 2) for tokens in (1, 64, 256, 4096)],
    )
    write_csv(
        folder / "x_attn_prefill_ms_per_layer.csv",
        ("prompt_tokens", "attn_prefill_ms_per_layer_32q_heads"),
        [(n, 1e-4 * n + 1e-7 * n * n) for n in (64, 512, 4096)],
    )
    write_csv(
        folder / "x_attn_decode_ms_per_layer.csv",
        ("batch_size", "kv_tokens_per_request", "attn_decode_ms_per_layer"),
        [(b, kv, 0.01 + 0.0002 * b + 2e-6 * b * kv) for b in (1, 16, 64, 256) for kv in (128, 1024)],
    )
    write_csv(
        folder / "x_all_reduce_ms.csv",
        ("tensor_parallel_size", "message_bytes", "all_reduce_ms"),
        [(2, size, 0.03 + 1e-8 * size) for size in (2048, 1_000_000, 64_000_000)],
    )
    write_csv(folder / "x_cpu_overhead_ms.csv", ("batch_size", "cpu_ms"), [(b, 0.8 + 0.04 * b) for b in (8, 64, 128)])
    return folder


def fit(folder: Path, out: Path, **changes: Any) -> Result:
    """Fit tables by a recipe; ``fit`` adds to what is fitted."""
    fitted = {"tables": [{"folder": folder.name, "shape": "llama3_8b"}]} | changes.pop("fit", {})
    recipe = folder.parent / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"name": "gpu", "memory_gib": 24.0, **changes, "fit": fitted}))
    app = typer.Typer()
    app.command()(main)
    return CliRunner().invoke(app, [str(recipe), "--data", str(folder.parent), "--out", str(out)])


def load(out: Path) -> Hardware:
    config = yaml.safe_load(out.read_text())
    assert config.pop("_target_") == "sim.hardware.hardware_from_config"
    return hardware_from_config(**config)


def test_per_operator_tables_are_recovered(tmp_path: Path) -> None:
    out = tmp_path / "gpu.yaml"
    assert fit(write_per_operator(tmp_path / "tables"), out).exit_code == 0
    (table,) = load(out).tables
    assert table.name == "llama3_8b_tp1"
    assert table.source.startswith("measured: m on g, vLLM 0.0.1, 2026-01-02")
    # Two norms a layer; embedding and final norm once.
    assert table.dense(512) == pytest.approx((100 + 2 * 2 + 3 * 51.2) * 1e-6, rel=0.03)
    assert table.once is not None
    assert table.once(64) == pytest.approx((8 + 12.8) * 1e-6, rel=0.03)
    assert table.head is not None
    assert table.head(256) == pytest.approx((720 + 2 * 51.2) * 1e-6, rel=0.03)
    attention = table.attention
    assert isinstance(attention, MeasuredAttention)
    assert attention.decode(64, 2048) == pytest.approx(decode_us(64, 2048) * 1e-6, rel=0.05)
    assert attention.prefill(1024, 1024) == pytest.approx(prefill_us(1024, 1024) * 1e-6, rel=0.05)
    again_s = attention.prefill(256, 512) + attention.beside(16, 512) + attention.beside_per_token_pair_s * 256 * 16
    assert again_s == pytest.approx(joint_us(256, 512, 16, 512) * 1e-6, rel=0.05)
    assert attention.beside_per_token_pair_s == pytest.approx(1e-9, rel=0.1)
    assert max(table.mape.values()) < 0.05
    assert table.measured == (max(DECODES), max(KV))


def test_curves_go_on_along_the_trend_and_not_along_a_tread(tmp_path: Path) -> None:
    folder = write_per_operator(tmp_path / "tables")
    write_csv(
        folder / "tp1" / "dense.csv",
        ("layer", "tokens", "time_us"),
        [("embedding", n, 1) for n in (1, 512, 1024, 1025, 2048)]
        + [("qkv_proj", n, us) for n, us in ((1, 100), (512, 500), (1024, 1000), (1025, 2000), (2048, 2000))],
    )
    assert fit(folder, tmp_path / "gpu.yaml").exit_code == 0
    assert load(tmp_path / "gpu.yaml").tables[0].dense(4096) == pytest.approx(4000e-6)


def test_per_layer_tables_are_recovered(tmp_path: Path) -> None:
    out = tmp_path / "gpu.yaml"
    assert fit(write_per_layer(tmp_path / "tables"), out, memory_bytes_per_s=1e12).exit_code == 0
    hardware = load(out)
    assert (hardware.cpu_base_s, hardware.cpu_per_seq_s) == pytest.approx((8e-4, 4e-5))
    assert hardware.all_reduce[2](1e6) == pytest.approx(40e-6, rel=0.03)
    one, two = hardware.tables
    assert one.measured == two.measured == (256, 1024)
    assert isinstance(one.attention, FittedAttention)
    assert isinstance(two.attention, FittedAttention)
    assert one.attention.decode_per_kv_token_s == pytest.approx(2e-9)
    assert one.attention.decode_per_seq_s == pytest.approx(2e-7)
    assert one.attention.decode_fixed_s == pytest.approx(1e-5)
    assert one.attention.prefill_per_token_s == pytest.approx(1e-7)
    assert one.attention.prefill_per_token_pair_s == pytest.approx(1e-10)
    # Of two GPUs each holds half of the heads.
    assert two.attention.decode_per_kv_token_s == pytest.approx(1e-9)
    assert two.attention.prefill_per_token_pair_s == pytest.approx(5e-11)
    assert two.dense(256) == pytest.approx(0.278e-3, rel=0.03)


def test_several_models_share_a_file_and_sharded_tables_need_an_all_reduce(tmp_path: Path) -> None:
    first = write_per_operator(tmp_path / "a")
    write_per_operator(tmp_path / "b", tp_degree=2)
    out = tmp_path / "gpu.yaml"
    both = {"tables": [{"folder": "a", "shape": "llama3_8b"}, {"folder": "b", "shape": "qwen3_32b"}]}
    link = {"fixed_us": 30, "bytes_per_s": 1e10}
    assert "fit.all_reduce must be given" in fit(first, out, fit=both).stderr
    guessed = fit(first, out, fit={**both, "all_reduce": {**link, "source": "assumed: PCIe"}})
    assert "the time of a run is a range" in guessed.stderr
    assert not out.exists()
    assert fit(first, out, fit={**both, "all_reduce": {**link, "source": "published: somewhere"}}).exit_code == 0
    hardware = load(out)
    assert [table.name for table in hardware.tables] == ["llama3_8b_tp1", "qwen3_32b_tp2"]
    assert hardware.all_reduce[2](1e6) == pytest.approx(130e-6, rel=1e-3)


def experts_us(tokens: float, experts: float) -> float:
    return 40 + 6 * experts + 0.05 * tokens


def test_routed_experts_are_recovered_without_what_a_cache_held(tmp_path: Path) -> None:
    for degree in (1, 2):
        write_per_operator(tmp_path / f"of_{degree}", tp_degree=degree)
    tables, out = (tmp_path / "of_1").rename(tmp_path / "tables"), tmp_path / "gpu.yaml"
    (tmp_path / "of_2" / "tp2").rename(tables / "tp2")
    # A token has 8 experts, so few tokens cannot reach many; 8 experts of the layer before are still in the cache.
    cells = [(n, e) for n in (1, 2, 4, 8, 16, 64, 512, 2048) for e in (8, 16, 32, 64, 128) if e <= 8 * n]
    rows = [(n, e, experts_us(n, e) if e > 8 else 20 + 0.05 * n) for n, e in cells]
    write_csv(tables / "tp1" / "moe.csv", ("tokens", "activated_experts", "time_us"), rows)
    link = {"fixed_us": 30, "bytes_per_s": 1e10, "source": "published: somewhere"}
    given = {"tables": [{"folder": "tables", "shape": "qwen3_30b_a3b"}], "all_reduce": link}
    assert "fit.cache_bytes must be given" in fit(tables, out, fit=given).stderr
    assert fit(tables, out, fit={**given, "cache_bytes": 1e8}).exit_code == 0
    for table in load(out).tables:
        assert table.experts is not None
        assert table.experts(512, 64) == pytest.approx(experts_us(512, 64) * 1e-6, rel=0.03)
        assert table.experts(2, 128) == pytest.approx(experts_us(16, 128) * 1e-6, rel=0.03)
        assert table.experts(64, 8) == pytest.approx(experts_us(64, 8) * 1e-6, rel=0.03)
        assert table.mape["experts"] < 0.03


def test_file_says_how_it_was_made_without_machine_paths(tmp_path: Path) -> None:
    out = tmp_path / "gpu.yaml"
    fit(write_per_operator(tmp_path / "tables"), out, cpu_base_s=0.001, sources={"cpu": "assumed: a guess"})
    text = out.read_text()
    assert str(tmp_path) not in text
    assert "recipes/recipe.yaml --data DIR --out conf/hardware/gpu.yaml" in text
    assert (load(out).cpu_base_s, load(out).sources["cpu"]) == (0.001, "assumed: a guess")


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_committed_file_has_what_its_recipe_gives(recipe: Path) -> None:
    """Its tables come from measurements that are not part of the project."""
    committed = yaml.safe_load((RECIPES.parents[2] / "conf" / "hardware" / recipe.name).read_text())
    given, fitted = read_recipe(recipe)
    sources = given.pop("sources", {})
    assert {key: committed[key] for key in given} == given
    assert sources.items() <= committed["sources"].items()
    assert {name.rpartition("_tp")[0] for name in committed["tables"]} == {tables.shape for tables in fitted.tables}


def write_skew(folder: Path, streams: float) -> None:
    """Ratios as if so many pairs of sequence and KV head filled the bandwidth; Llama-3-8B has 8 heads."""
    rows = []
    for n, kvs in product((16, 64, 128), (256, 512, 1024)):
        for nb in (1, 2, 4):
            behind = IDLE_FRAC * streams / 8 * (3 * kvs - 3 * kvs * nb / n) if n >= 64 else 0.0
            mean_us = decode_us(n, kvs + 3 * kvs * nb / n)
            rows.append(("pure", n, nb, 0, 0, kvs, 4 * kvs, 3 * mean_us, 3 * (mean_us + KV_TOKEN_US * behind)))
    header = ("regime", "n", "nb", "pc", "kp", "kvs", "kv_big", "t_mean_us", "t_skew_us")
    write_csv(folder / "tp1" / "skew.csv", header, rows)


KV_TOKEN_US = 0.01 / 128
"""Slope of ``decode_us`` at the largest batch."""


def test_streams_are_recovered_from_ratios(tmp_path: Path) -> None:
    tables, out = write_per_operator(tmp_path / "tables"), tmp_path / "gpu.yaml"
    write_skew(tables, 60.0)
    assert fit(tables, out).exit_code == 0
    assert load(out).attention_streams == 0
    assert "error: decodes alone, batches that are not split" in fit(tables, out, num_sms=188).stdout
    hardware = load(out)
    assert (hardware.num_sms, hardware.attention_streams) == (188, pytest.approx(60.0, abs=2.0))
    assert "decodes alone of skew.csv; error" in hardware.sources["attention_streams"]


FILES = ("tp1/dense.csv", "tp1/per_sequence.csv", "tp1/attention.csv", "tables.yaml")
ALL = ""


def spoil(path: Path, old: str, new: str | None) -> None:
    """Replace the first part of a file that reads so, or all of it; None: there is no such file."""
    text = path.read_text()
    path.unlink()
    if new is not None:
        assert old in text
        path.write_text(text.replace(old or text, new, 1))


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("tp1/dense.csv", "tokens", "token", r"dense.csv: missing columns must be none of .*, got \['tokens'\]"),
        ("tp1/dense.csv", "100.1", "nan", "dense.csv, line 2: time_us must be a finite number, at least 0, got 'nan'"),
        ("tp1/dense.csv", "100.1", "-4", "line 2: time_us must be a finite number, at least 0, got '-4'"),
        ("tp1/dense.csv", "100.1", "slow", "line 2: time_us must be a finite number, at least 0, got 'slow'"),
        ("tables.yaml", "gpu: g", "", r"tables.yaml: missing keys must be none, got \['gpu'\]"),
        ("tables.yaml", "gpu: g", "gpu: [", "tables.yaml: must be a YAML file"),
        *((name, ALL, new, Path(name).name) for name in FILES for new in ("", None)),
    ],
)
def test_bad_tables_write_nothing(tmp_path: Path, name: str, old: str, new: str | None, message: str) -> None:
    folder, out = write_per_operator(tmp_path / "tables"), tmp_path / "gpu.yaml"
    spoil(folder / name, old, new)
    ended = fit(folder, out)
    assert ended.exit_code == 2
    assert re.search(message, ended.stderr)
    assert not out.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fit": {"tables": [{"folder": "none", "shape": "llama3_8b"}]}}, "folder must be a folder below --data"),
        ({"fit": {"tables": [{"folder": "empty", "shape": "llama3_8b"}]}}, "ms_per_layer.csv must be exactly one, got"),
        ({"fit": {"tables": []}}, "tables must be at least one, and none with by_size, got 0"),
        ({"fit": {"tables": [{"folder": "tables", "shape": "llama3_8b"}] * 2}}, "given once for each size, got"),
        ({"fit": {"tables": [{"folder": "tables", "shape": "other"}]}}, "shape must be one of"),
        ({"fit": {"log": "x"}}, "fit: Object contains unknown field `log`"),
        ({"num_sm": 3}, r"keys must be of .*, got \['num_sm'\]"),
        ({"memory_gib": -1.0}, "memory"),
    ],
)
def test_bad_recipes_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    (tmp_path / "empty").mkdir()
    ended = fit(write_per_operator(tmp_path / "tables"), tmp_path / "gpu.yaml", **changes)
    assert ended.exit_code == 2
    assert re.search(message, ended.stderr)
    assert not (tmp_path / "gpu.yaml").exists()
