from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sim.hardware.curves import Curve, Grid, curve_from_text, curve_to_text, grid_from_text, grid_to_text
from sim.hardware.hardware import Hardware, hardware_from_config
from tests.factories import make_shape
from tests.sim.random_runs import committed_hardware

CONF = Path(__file__).resolve().parents[2] / "conf" / "hardware"


def make_config(**changes: Any) -> dict[str, Any]:
    config: dict[str, Any] = {
        "name": "test_gpu",
        "memory_gib": 80.0,
        "load_bytes_per_s": 4e8,
        "memory_bytes_per_s": 2e12,
        "tables": {
            "llama_tp1": {
                "shape": asdict(make_shape()),
                "tp_degree": 1,
                "source": "made up",
                "dense_us": "1:300 256:600 512:1100",
                "attention": {
                    "decode_fixed_us": 10.0,
                    "decode_per_seq_us": 0.1,
                    "decode_per_kv_token_us": 0.0026,
                    "prefill_per_token_us": 0.1,
                    "prefill_per_token_pair_us": 1e-4,
                },
            }
        },
    }
    return {**config, **changes}


def grid_attention() -> dict[str, Any]:
    return {
        "decode_us": "16 1024 4096\n1 8 12 30\n64 20 200 800\n",
        "prefill_us": "0 1024\n16 8 30\n2048 170 300\n",
        "beside_us": "16 1024\n1 0 10\n64 40 300\n",
        "beside_per_token_pair_us": 0.001,
    }


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_committed_hardware_loads_and_names_its_sources(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    assert config.pop("_target_") == "sim.hardware.hardware_from_config"
    hardware = hardware_from_config(**config)
    assert hardware.gpu.name == path.stem
    assert {"cpu", "load"} <= hardware.sources.keys()
    for table in hardware.tables:
        assert table.source
        assert all(0 <= error < 0.15 for error in table.mape.values())


def test_committed_a100_loads_the_published_experts_in_38_to_47_s() -> None:
    hardware = committed_hardware("a100_80gb")
    assert hardware.load_s(make_shape(num_parameters=7_620_000_000), 1) == pytest.approx(38.1)
    assert hardware.load_s(make_shape(num_parameters=9_400_000_000), 4) == pytest.approx(47.0)


def test_the_load_scale_multiplies_the_whole_load() -> None:
    settings = {"load_fixed_s": 2.5, "load_bytes_per_s": 4e8}
    once = hardware_from_config(**make_config(**settings))
    for scale in (0.0, 0.1, 4.0):
        scaled = hardware_from_config(**make_config(**settings, load_scale=scale))
        assert scaled.load_s(make_shape(), 2) == pytest.approx(scale * once.load_s(make_shape(), 2))
    at_once = hardware_from_config(**make_config(load_fixed_s=2.5, load_bytes_per_s=None, load_scale=2.0))
    assert at_once.load_s(make_shape(), 1) == 5.0


def test_load_rejects_a_degree_below_one() -> None:
    with pytest.raises(ValueError, match="tp_degree must be at least 1, got 0"):
        hardware_from_config(**make_config()).load_s(make_shape(), 0)


def test_host_time_scales_with_phi() -> None:
    settings = {"cpu_base_s": 1e-3, "cpu_per_seq_s": 1e-5}
    once = hardware_from_config(**make_config(**settings))
    thrice = hardware_from_config(**make_config(**settings, cpu_overhead_scale=3.0))
    assert thrice.cpu_s(100) == pytest.approx(3 * once.cpu_s(100)) == pytest.approx(6e-3)


def two_models() -> Hardware:
    config = make_config()
    large = deepcopy(config["tables"]["llama_tp1"])
    large["shape"]["num_parameters"] = 32_000_000_000
    config["tables"]["large_tp1"] = large
    return hardware_from_config(**config)


@pytest.mark.parametrize(("num_parameters", "name"), [(7 * 10**9, "llama_tp1"), (30 * 10**9, "large_tp1")])
def test_table_nearest_in_size_is_chosen(num_parameters: int, name: str) -> None:
    shape = make_shape(num_parameters=num_parameters)
    assert two_models().table_for(shape, 1).name == name


def test_degree_without_table_names_the_allowed_ones() -> None:
    with pytest.raises(ValueError, match=r"test_gpu: tp_degree must be one of \[1\], got 2"):
        two_models().table_for(make_shape(), 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memory_gib": 0}, "memory_gib must be above 0, got 0"),
        ({"name": " "}, "hardware.name must be a non-empty string"),
        ({"tables": {}}, "test_gpu: tables must be at least one"),
        ({"tables": [1]}, "tables must be a mapping"),
        ({"load_bytes_per_s": -1.0}, "load_bytes_per_s must be above 0, got -1.0"),
        ({"memory_bytes_per_s": None}, "memory_bytes_per_s must be given, got None"),
        ({"cpu_overhead_scale": -1.0}, "cpu_overhead_scale must be at least 0"),
        ({"load_scale": -0.5}, "load_scale must be at least 0"),
        ({"cpu_base_s": float("nan")}, "cpu_base_s must be finite"),
        ({"graph_max_seqs": 1.5}, "graph_max_seqs must be a whole number"),
        ({"memory_utilization_frac": 1.5}, "memory_utilization_frac must be at most 1"),
        ({"all_reduce_us": {2: "1:nope"}}, "all_reduce_us.2 must be numbers"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        hardware_from_config(**make_config(**changes))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("dense_us", None, "llama_tp1.dense_us must be text, got None"),
        ("dense_us", "1:2:3", "dense_us must be pairs knot:value"),
        ("dense_us", "", "dense_us must be pairs knot:value"),
        ("dense_us", "2:1 1:2", "curve: knots must be strictly increasing"),
        ("dense_us", "1:-3", "curve: value must be at least 0"),
        ("tp_degree", 0, "tp_degree must be at least 1"),
        ("tp_degree", 2, "all_reduce must be given for tp_degree 2 of table llama_tp1"),
        ("source", "", "source must be a non-empty string"),
        ("colour", "red", r"free of unknown keys \(\['colour'\]\)"),
        ("attention", {}, r"llama_tp1.attention must be complete \(missing"),
        ("attention", 3, "llama_tp1.attention must be a mapping, got 3"),
        ("attention", {"decode_us": ""}, r"complete \(missing \['beside_per_token_pair_us'"),
        ("attention", {**grid_attention(), "decode_us": "1 2\n1 2 3"}, "decode_us must be a line of column knots"),
        ("attention", {**grid_attention(), "decode_us": "1 2\n1 2 3\n2 4"}, "decode_us must be a knot and 2 values"),
        ("attention", {**grid_attention(), "decode_us": "1 2\n1 2 3\n1 2 3"}, "grid: rows must be strictly increasing"),
        (
            "attention",
            {**grid_attention(), "beside_per_token_pair_us": -1},
            "beside_per_token_pair_us must be at least",
        ),
    ],
)
def test_bad_tables_are_named(key: str, value: object, message: str) -> None:
    config = make_config()
    config["tables"]["llama_tp1"][key] = value
    with pytest.raises((ValueError, TypeError), match=message):
        hardware_from_config(**config)


@pytest.mark.parametrize(
    ("rows", "columns", "values", "message"),
    [
        ((1.0,), (1.0, 2.0), ((1.0, 2.0),), "grid: rows must be at least two"),
        ((1.0, 2.0), (1.0,), ((1.0,), (2.0,)), "grid: columns must be at least two"),
        ((1.0, 2.0), (1.0, 2.0), ((1.0, 2.0),), "grid: values must be 2 rows"),
        ((1.0, 2.0), (1.0, 2.0), ((1.0, 2.0), (1.0,)), "grid: row must be 2 numbers"),
    ],
)
def test_ragged_grids_are_rejected(rows: Any, columns: Any, values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Grid(rows, columns, values)


def test_curve_interpolates_extrapolates_and_stays_positive() -> None:
    curve = Curve((10.0, 20.0, 40.0), (1.0, 3.0, 4.0))
    assert [curve(x) for x in (10, 15, 20, 30, 60)] == pytest.approx([1.0, 2.0, 3.0, 3.5, 5.0])
    assert curve(0) == 0.0
    assert Curve((1.0,), (7.0,))(99) == 7.0


@given(st.floats(1, 64), st.floats(16, 1024))
def test_grid_row_agrees_with_the_grid(y: float, x: float) -> None:
    grid = grid_from_text(grid_attention()["beside_us"], "beside_us")
    low, high = grid.row(y)
    assert grid(y, x) == pytest.approx(low + (high - low) * (x - 16) / 1008, abs=1e-12)


def test_tables_survive_being_written_as_text() -> None:
    grid = grid_from_text(grid_attention()["decode_us"], "decode_us")
    assert grid_from_text(grid_to_text(grid), "again") == grid
    curve = curve_from_text("1:300 256:600", "dense_us")
    assert curve_from_text(curve_to_text(curve), "again") == curve
