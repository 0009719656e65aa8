"""experiments/measure_gpu.py on real vLLM: what CI has is cores of a CPU, and all else is what a GPU would meet."""

from dataclasses import replace

import polars as pl
import pytest
import yaml

from experiments.hardware.dummy_checkpoint import read_shape, write_dummy_checkpoint
from experiments.tiny_pool.tokenizer import encode
from sim.hardware.iteration_time import iteration_time
from tests.engines.executor_runs import has_vllm
from tests.experiments.known_machine import built
from tests.experiments.test_measure_gpu import call

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not has_vllm(), reason="vLLM is not installed")]

SMALL = ["--device=cpu", "--rounds=1", "--requests=24", "--max-num-seqs=8", "--context-tokens=512", "--name=cores"]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured") / "out"
    call(*SMALL, "--minutes=10", f"--out={folder}")
    return folder


@pytest.mark.alone
def test_the_measured_file_prices_more_work_higher(out):
    hardware = built(yaml.safe_load((out / "cores.yaml").read_text()))
    tiny, small = (iteration_time(hardware, replace(read_shape(name), bytes_per_value=4), 1) for name in
                   ("tiny", "small"))  # fmt: skip
    assert 0 < hardware.cpu_base_s <= tiny.decode_span_s(1, 100, 1) < small.decode_span_s(1, 100, 1) < 1
    assert small.decode_span_s(1, 100, 1) < small.decode_span_s(8, 800, 1)
    assert small.mixed_s([(32, 0)], 0, 0) < small.mixed_s([(256, 0)], 0, 0)
    assert all(hardware.load_s(table.shape, 1) > 0 for table in hardware.tables)
    assert "random weights" in hardware.sources["load"]


@pytest.mark.alone
def test_the_file_predicts_a_batch_on_the_same_cores(out):
    """A fit to nothing would be off by far more; what CI's machine does beside it may cost as much as this allows."""
    page = (out / "report.md").read_text()
    token_bytes = replace(read_shape("small"), bytes_per_value=4).kv_bytes_per_token()
    assert page.count("24 requests at once") == 1
    assert f"KV cache of {256 * 2**20 // token_bytes} tokens, as given" in page
    metrics = {row["metric"]: row for row in pl.read_csv(out / "report.csv").filter(shape="small").to_dicts()}
    for name in ("makespan_s", "mean_latency_s", "mean_tpot_s"):
        metric = metrics[name]
        assert metric["measured_s"] > 0
        assert metric["repeat_frac"] is not None, "two repeats"
        assert abs(metric["error_frac"]) < 0.5, (name, metric)


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [("llama3_8b", 8_030_261_248), ("qwen2_5_7b", 7_615_616_512 - 28 * (28 + 2 * 4) * 128)],
)
def test_a_dummy_checkpoint_is_a_model_of_its_shape(tmp_path, name, num_parameters):
    """By Hugging Face's own count; Qwen's has no bias here."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    write_dummy_checkpoint(tmp_path, read_shape(name), 16384)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    assert sum(values.numel() for values in model.parameters()) == num_parameters
    tokenizer, text = AutoTokenizer.from_pretrained(tmp_path), "What is 7 times 6?"
    assert tokenizer.encode(text) == encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
