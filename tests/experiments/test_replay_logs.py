import json
from math import inf
from pathlib import Path
from random import Random
from statistics import median

import pytest
import typer
from typer.testing import CliRunner

from experiments.hardware.recorded_log import logged_steps
from experiments.replay_logs import Corrected, main, page_of, read_log, replay
from mosaic.core.engine_options import EngineOptions, Order
from mosaic.core.workload import Prefix
from mosaic.workloads.request_log import measured_records
from sim.engine.engine import Engine
from sim.hardware.iteration_time import IterationTime
from tests.workloads.test_request_log import make_line, write_log

META = {"engine_kwargs": {"max_num_seqs": 40, "max_num_batched_tokens": 2048, "tensor_parallel_size": 1}}


def make_folder(folder: Path) -> Path:
    folder.mkdir()
    write_log(folder, make_line()).rename(folder / "requests.jsonl")
    (folder / "meta.json").write_text(json.dumps(META))
    return folder


def record(folder: Path, time: IterationTime) -> None:
    """Write the log of an engine whose iterations take this time; every third prompt begins alike."""
    draw, ready_ts, requests = Random(5), 0.0, []
    engine = Engine(
        iteration_time=time,
        settings=EngineOptions(order=Order.MIXED, max_num_seqs=40, max_num_batched_tokens=2048),
        kv_tokens=200_000,
        context_tokens=4096,
    )
    for number in range(60):
        ready_ts += draw.expovariate(8.0)
        ids = [1000 + i if number % 3 == 0 else 100 * number + 10_000 + i for i in range(6)]
        sizes = draw.randint(100, 1500), draw.randint(20, 300)
        request = engine.submit(number, *sizes, ready_ts, prefix=Prefix(tuple(ids), 16))
        requests.append((request, ids))
    engine.advance_to(inf)
    lines = [
        make_line(
            f"r{request.id}", input_toks=request.prompt_tokens, output_toks=request.output_tokens, hash_ids=ids,
            arrival_time=request.queued_ts, queued_ts=request.queued_ts, scheduled_ts=request.admitted_ts,
            first_token_ts=request.first_token_ts, last_token_ts=request.finished_ts,
        )
        for request, ids in requests
    ]  # fmt: skip
    write_log(folder, *lines).rename(folder / "requests.jsonl")


def test_a_log_of_the_simulators_own_engine_is_replayed_without_errors(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "rtx4090_llama3_8b")
    log = read_log(folder)
    record(folder, log.time)
    own = replay(log, log.time)
    assert own.errors == pytest.approx((0.0,) * 4, abs=1e-9)
    assert own.cached_frac == pytest.approx(19 * 96 / sum(one.prompt_tokens for one in own.records))
    assert min(replay(log, log.time, with_prefixes=False).errors) > 0.001


def test_the_steps_of_a_log_show_what_a_model_leaves_out(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "rtx4090_llama3_8b")
    log = read_log(folder)
    record(folder, Corrected(log.time, 1e-3, 3e-3))
    records = measured_records(log.path, expert="model")
    cached = {one.key: one.cached_tokens for one in replay(log, log.time).records}
    steps = logged_steps(records, cached, log.time, 2048)
    alone = [step for step in steps if not step.prompt_tokens]
    beside = [step for step in steps if step.prompt_tokens]
    assert min(len(alone), len(beside)) > 10
    # Lengths between first and last token are interpolated, which makes the largest part of the distance.
    for steps_of_a_kind, left_out_ms in ((alone, 1.0), (beside, 3.0)):
        found_ms = [1e3 * (step.measured_s - step.predicted_s) for step in steps_of_a_kind]
        assert median(found_ms) == pytest.approx(left_out_ms, rel=0.1)
    page = page_of([log])
    (corrected,) = [line for line in page.splitlines() if "| steps as recorded |" in line]
    errors = [abs(float(cell.strip(" %"))) for cell in corrected.split("|")[3:7]]
    assert max(errors) < 1.0, "4 to 11% without"


def test_the_command_writes_a_page(tmp_path: Path) -> None:
    folder, app = make_folder(tmp_path / "rtx4090_llama3_8b"), typer.Typer()
    record(folder, read_log(folder).time)
    app.command()(main)
    ended = CliRunner().invoke(app, [str(tmp_path), "--out", str(tmp_path / "page")])
    assert ended.exit_code == 0
    text = (tmp_path / "page" / "replay.md").read_text()
    assert "| rtx4090_llama3_8b | as simulated | +0.0% | +0.0% | +0.0% | +0.0% |" in text.replace("-0.0%", "+0.0%")


def test_the_name_of_a_kind_of_hardware_may_have_parts(tmp_path: Path) -> None:
    log = read_log(make_folder(tmp_path / "h100_80gb_qwen3_32b"))
    assert (log.hardware.gpu.name, log.shape.num_layers) == ("h100_80gb", 64)


@pytest.mark.parametrize(
    ("name", "meta", "message"),
    [
        ("none_llama3_8b", META, "hardware in its name must be one of"),
        ("rtx4090_none", META, "shape must be one of"),
        ("rtx4090_llama3_8b", {}, "engine_kwargs must be with max_num_seqs, max_num_batched_tokens"),
    ],
)
def test_folders_that_say_too_little_are_named(tmp_path: Path, name: str, meta: object, message: str) -> None:
    folder = make_folder(tmp_path / name)
    (folder / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match=message):
        read_log(folder)
