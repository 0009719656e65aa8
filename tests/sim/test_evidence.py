from dataclasses import replace
from typing import Any

import pytest
import yaml

from mosaic.core.cluster import Cluster
from sim.cluster.evidence import evidence_lines
from sim.hardware.hardware import Hardware, hardware_from_config
from sim.hardware.operators_by_size import MeasuredRange
from tests.config.test_conf_data import CONF
from tests.factories import make_cluster, make_expert, make_mixed_cluster
from tests.run_records import make_record, make_result, make_session
from tests.sim.test_moe_time import make_sparse_shape, sparse_hardware

FILES = sorted((CONF / "hardware").glob("*.yaml"))
EXPERTS = [make_expert("A"), make_expert("B")]


def make_hardware(name: str, measured: MeasuredRange | None, **changes: Any) -> Hardware:
    config = yaml.safe_load((CONF / "hardware" / "a100_80gb.yaml").read_text()) | {"name": name} | changes
    hardware = hardware_from_config(**{key: value for key, value in config.items() if key != "_target_"})
    return replace(hardware, tables=tuple(replace(table, measured=measured) for table in hardware.tables))


def lines_of(calls: tuple[Any, ...], *kinds: Hardware, max_num_seqs: int = 256, num_calls: int = 3) -> list[str]:
    """A session of each expert, B's on the last kind of worker."""
    cluster: Cluster = make_mixed_cluster(*(kind.gpu for kind in kinds))
    sessions = [make_session(0), make_session(1, expert="B", workers=(len(kinds) - 1,))]
    result = make_result(*(replace(session, num_calls=num_calls) for session in sessions), calls=calls)
    return evidence_lines(result, cluster, {kind.gpu.name: kind for kind in kinds}, EXPERTS, max_num_seqs)


def test_a_run_within_what_was_measured_says_what_is_known() -> None:
    call = make_record(prompt_tokens=900, output_tokens=100)
    assert lines_of((call,), make_hardware("x", MeasuredRange(3, 1000), evidence="off by 3%")) == ["x: off by 3%"]


def test_a_run_beyond_what_was_measured_says_how_far() -> None:
    calls = (make_record(prompt_tokens=900, output_tokens=100), make_record("q1", prompt_tokens=901, output_tokens=100))
    kind = make_hardware("x", MeasuredRange(2, 1000), evidence="off by 3%")
    assert lines_of(calls, kind) == ["x: off by 3%; extrapolated: batch 3 > 2, context 1,001 > 1,000"]
    assert lines_of(calls, kind, max_num_seqs=2) == ["x: off by 3%; extrapolated: context 1,001 > 1,000"]
    assert lines_of(calls[:1], kind, num_calls=300) == ["x: off by 3%; extrapolated: batch 256 > 2"]


def test_kinds_of_workers_have_lines_of_their_own() -> None:
    calls = (make_record(output_tokens=5000), make_record("q1", expert="B", session=1, output_tokens=6000))
    near = make_hardware("near", MeasuredRange(256, 1000), evidence="")
    far = make_hardware("far", MeasuredRange(256, 5800), evidence="well known")
    assert lines_of(calls, near, far) == [
        "near: no evidence; extrapolated: context 5,100 > 1,000",
        "far: well known; extrapolated: context 6,100 > 5,800",
    ]


def test_ranks_have_batches_of_their_own() -> None:
    hardware = sparse_hardware()
    table = replace(hardware.table_for(make_sparse_shape(), 1), measured=MeasuredRange(2, 1000))
    kind = replace(hardware, tables=(table,), evidence="guess")
    cluster = make_cluster(2, gpu=kind.gpu)
    expert = make_expert("A", tp_degree=2, shape=make_sparse_shape(), dp_attention=True)
    lines = [
        evidence_lines(
            make_result(replace(make_session(0, workers=(0, 1)), num_calls=number)),
            cluster,
            {kind.gpu.name: kind},
            [expert],
            256,
        )
        for number in (4, 5)
    ]
    assert lines == [[f"{kind.gpu.name}: guess"], [f"{kind.gpu.name}: guess; extrapolated: batch 3 > 2"]]


def test_where_no_range_is_known_nothing_is_called_extrapolated() -> None:
    assert lines_of((make_record(output_tokens=10**6),), make_hardware("x", None, evidence="guess")) == ["x: guess"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_kind_of_gpu_says_how_far_it_can_be_trusted_in_a_line_of_the_screen(path: Any) -> None:
    config = yaml.safe_load(path.read_text())
    assert config["evidence"]
    line = f"  hardware  {config['name']}: {config['evidence']}; extrapolated: context 32,768 > 16,384"
    assert len(line) <= 100


@pytest.mark.parametrize("value", [0, -1])
def test_a_measured_range_counts(value: int) -> None:
    tables = yaml.safe_load((CONF / "hardware" / "a100_80gb.yaml").read_text())["tables"]
    tables["llama3_8b_tp1"]["measured"]["tokens"] = value
    with pytest.raises(ValueError, match=r"llama3_8b_tp1.measured.tokens must be at least 1, got"):
        make_hardware("x", None, tables=tables)
