"""experiments/measure_gpu.py from steps to report, on a machine whose coefficients are known; no engine is needed."""

import json
import re
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import typer
import yaml
from typer.testing import CliRunner

from experiments.hardware.dummy_checkpoint import read_shape, write_dummy_checkpoint
from experiments.hardware.engine_fit import SkewShown
from experiments.hardware.engine_probe import DeviceFacts, EngineFacts
from experiments.hardware.engine_work import Processor
from experiments.hardware.machine_config import hardware_config
from experiments.hardware.machine_recipe import recipe_for
from experiments.hardware.machine_steps import settings_of
from experiments.measure_gpu import main, measure
from mosaic.core.engine_options import Device
from mosaic.core.errors import BackendError
from sim.cluster.backend import SimBackend
from sim.hardware.curves import Curve
from tests.experiments.known_machine import TRUE, built

pytest.importorskip("transformers", reason="checkpoints are written with transformers, which the extras of vLLM bring")

RECIPE = recipe_for(
    Device.GPU, shapes=["small"], num_rounds=1, num_requests=60, max_num_seqs=32, context_tokens=4096
)  # fmt: skip
NUM_SMS, STREAMS, KV_TOKENS, LOAD_S = 24, 12.0, 150_000, (3.0, 2e6)


def scaled(fit, factor, **changes):
    dense = Curve(fit.dense.knots, tuple(factor * value for value in fit.dense.values_s))
    return replace(fit, dense=dense, context_tokens=4096, **changes)


def truth():
    """A GPU with captured graphs that waits for long sequences; a step of the tiny model is the host's time."""
    tiny, small = (replace(read_shape(name), bytes_per_value=2) for name in ("tiny", "small"))
    fits = [
        scaled(TRUE, 0.3, shape=tiny, per_kv_token_s=2e-8, per_kv_token_beside_s=4e-8, per_token_pair_s=4e-9),
        scaled(TRUE, 3.0, shape=small, base_s=6e-3, per_seq_s=8e-5, per_kv_token_s=6e-7),
    ]
    config = hardware_config(
        fits, LOAD_S, name="truth", memory_gib=16.0, source="a test",
        processor=Processor(num_sms=NUM_SMS, graph_max_seqs=512),
        skew=SkewShown(streams=STREAMS, error_before=0.0, error_after=0.0),
    )  # fmt: skip
    return built(config)


class KnownMachine:
    """The simulator in the place of vLLM; remembers what it was asked, and is interrupted after so many runs."""

    num_workers = 1

    def __init__(self, interrupt_after=None):
        self.asked, self._left = [], interrupt_after

    def device(self):
        self.asked.append("device")
        return DeviceFacts(name="Known GPU 16", memory_bytes=16 * 2**30, num_sms=NUM_SMS)

    def engine(self, expert, cluster):
        self.asked.append(f"engine-{expert.name}")
        return EngineFacts(kv_cache_tokens=KV_TOKENS)

    def backend(self, experts, cluster, outcomes, run):
        if self._left == 0:
            raise KeyboardInterrupt
        self._left = None if self._left is None else self._left - 1
        self.asked.append(run)
        (expert,) = experts
        return SimBackend(
            experts=experts,
            cluster=cluster,
            hardware={cluster.workers[0].gpu.name: truth()},
            settings=settings_of(RECIPE, expert, EngineFacts(kv_cache_tokens=KV_TOKENS)),
            outcomes=outcomes,
        )


def call(*arguments: str):
    app = typer.Typer()
    app.command()(main)
    return CliRunner().invoke(app, arguments)


def run(folder: Path, machine, *, minutes=10.0, recipe=RECIPE, name=None):
    measure(folder, recipe, machine, minutes=minutes, name=name, arguments=["--minutes", "10", "--out", str(folder)])


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("measured")
    run(folder, KnownMachine())
    return folder


def hardware_of(folder: Path):
    return built(yaml.safe_load((folder / "known_gpu_16.yaml").read_text()))


def test_the_file_predicts_the_batch_that_it_was_not_fitted_to(done):
    metrics = {row["metric"]: row for row in pl.read_csv(done / "report.csv").filter(shape="small").to_dicts()}
    assert set(metrics) >= {
        "makespan_s", "mean_latency_s", "p50_latency_s", "p99_latency_s", "mean_tpot_s", "mean_ttft_s", "ready_s",
    }  # fmt: skip
    assert {name: metric["error_frac"] for name, metric in metrics.items() if abs(metric["error_frac"]) > 0.02} == {}
    assert metrics["makespan_s"]["measured_s"] > 1, "a batch worth predicting"
    assert "There was no time" not in (done / "report.md").read_text()


def test_the_file_says_what_the_machine_is(done):
    known, hardware = truth(), hardware_of(done)
    assert hardware.attention_streams == pytest.approx(STREAMS, abs=1)
    assert (hardware.num_sms, hardware.graph_max_seqs) == (NUM_SMS, 512)
    assert hardware.gpu.memory_bytes == 16 * 2**30
    assert hardware.cpu_base_s == pytest.approx(known.cpu_base_s, rel=0.05), "the host's time is that of the tiny model"
    for table in known.tables:
        assert hardware.load_s(table.shape, 1) == pytest.approx(known.load_s(table.shape, 1), rel=0.05)
    assert f"small {KV_TOKENS}" in hardware.sources["kv_cache_tokens"]
    head = "# Measured by\n#   python experiments/measure_gpu.py --minutes 10\n"
    assert (done / "known_gpu_16.yaml").read_text().startswith(head), "and no folder of here"


def test_what_was_measured_is_not_measured_again(done):
    before = (done / "known_gpu_16.yaml").read_bytes(), (done / "report.md").read_bytes()
    machine = KnownMachine(interrupt_after=0)
    run(done, machine, minutes=0)
    assert machine.asked == []
    assert ((done / "known_gpu_16.yaml").read_bytes(), (done / "report.md").read_bytes()) == before


def test_an_interrupted_measurement_goes_on_where_it_stopped(done, tmp_path):
    first, second = KnownMachine(interrupt_after=2), KnownMachine()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, first)
    run(tmp_path, second)
    assert first.asked == ["device", "engine-tiny", "engine-small", "round-tiny-0-0", "round-small-0-0"]
    assert second.asked == ["replay-small-0", "replay-small-1"]
    assert (tmp_path / "known_gpu_16.yaml").read_bytes() == (done / "known_gpu_16.yaml").read_bytes()


def test_too_little_time_says_what_is_missing(tmp_path, capsys):
    with pytest.raises(BackendError, match="minutes must leave time for a round of every shape, missing device"):
        run(tmp_path, KnownMachine(), minutes=0)
    assert not list(tmp_path.glob("*.yaml"))


def test_more_rounds_may_be_asked_for_and_nothing_else(done):
    (done / "recipe.json").write_text(json.dumps(RECIPE.identity, indent=1) + "\n")
    arguments = [f"--out={done}", "--device=gpu", "--shape=small", "--context-tokens=4096", "--requests=60"]
    other = call(*arguments, "--max-num-seqs=16")
    assert (other.exit_code, "without measurements of another recipe" in other.stderr) == (2, True)
    assert call(*arguments, "--max-num-seqs=32", "--rounds=5", "--minutes=0").exit_code == 0
    missing = ", ".join(f"round-{name}-{number}" for number in range(1, 5) for name in ("tiny", "small"))
    assert f"There was no time for {missing}: " in (done / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape=none"], "shape must be one of .*'llama3_8b'.* or a YAML file, got 'none'"),
        (["--shape=tiny"], "shape must be another: this one is always swept, got 'tiny'"),
        (["--shape=small", "--shape=small"], "shape must be"),
        (["--minutes=-1"], "minutes must be at least 0, got -1"),
        (["--rounds=0"], "num_rounds must be at least 1, got 0"),
        (["--requests=0"], "batch: num_requests must be at least 1, got 0"),
        (["--context-tokens=8"], "context_tokens must be at least 64, got 8"),
        (["--max-num-seqs=0"], "engine.max_num_seqs must be at least 1, got 0"),
        (["--name=My GPU"], "name must be lower-case words joined by _, got 'My GPU'"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(tmp_path, arguments, message):
    ended = call(f"--out={tmp_path / 'out'}", "--device=cpu", *arguments)
    assert ended.exit_code == 2
    assert re.search(message, ended.stderr)
    assert not (tmp_path / "out" / "steps").exists()


@pytest.mark.parametrize("text", ["num_layers: 2", "- 1", "num_layers: [", "name: x"])
def test_a_shape_is_complete_or_refused(tmp_path, text):
    (tmp_path / "shape.yaml").write_text(text)
    ended = call(f"--out={tmp_path / 'out'}", "--device=cpu", f"--shape={tmp_path / 'shape.yaml'}")
    assert re.search("shape must be a (YAML )?file", ended.stderr)


def test_a_folder_in_which_nothing_was_measured_takes_another_recipe(tmp_path):
    out = f"--out={tmp_path / 'out'}"
    for arguments in ([], ["--max-num-seqs=8"]):
        assert "missing device" in call(out, "--device=cpu", "--minutes=0", *arguments).stderr


def test_a_model_with_experts_is_not_measured_as_a_dense_one(tmp_path):
    with pytest.raises(ValueError, match="shape: num_experts must be 0: only dense models are measured here, got 128"):
        write_dummy_checkpoint(tmp_path, read_shape("qwen3_30b_a3b"), 4096)
