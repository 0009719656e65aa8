"""The real backends' part of the configuration."""

import json
from pathlib import Path

import pytest

from experiments.config.compose import compose_config
from experiments.config.engines import find_device
from experiments.config.job import job_from
from mosaic.core.engine_options import Device
from mosaic.engines.site import EngineSite
from mosaic.runtime.run import Job
from tests.experiments.command_line import run_here
from tests.experiments.tiny_pool.small import write_scores

QUESTIONS = [{"id": f"q{i}", "question": f"What is {i} plus 1?", "experts": ["QwenHalf"] * 3} for i in range(3)]


@pytest.fixture
def questions(tmp_path: Path) -> list[str]:
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in QUESTIONS))
    return ["workload=file", f"workload.path={path}", "pool=demo"]


@pytest.fixture
def job_of(tmp_path: Path):
    return lambda *overrides: job_from(compose_config(list(overrides)), tmp_path / "journal").job


def engines_of(job: Job) -> EngineSite:
    assert isinstance(job.site, EngineSite)
    return job.site


def test_engines_are_live_on_the_devices_that_are_there(questions, job_of):
    site = engines_of(job_of(*questions, "cluster=local", "backend=vllm", "backend.device=cpu"))
    loading = site.options.loading
    assert (site.way, loading.device, loading.dtype) == ("measured", Device.CPU, "float32")
    assert site.options.kv_cache_memory_bytes == 2**26
    on_gpu = engines_of(job_of(*questions, "cluster=local", "backend=vllm", "backend.device=gpu")).options
    assert (on_gpu.loading.device, on_gpu.loading.dtype, on_gpu.kv_cache_memory_bytes) == (Device.GPU, "auto", None)


def test_no_device_is_a_gpu_where_all_are_hidden(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert find_device() is Device.CPU


def test_a_simulation_has_no_engines(questions, job_of):
    assert not isinstance(job_of(*questions).site, EngineSite)
    assert not isinstance(job_of(*questions, "backend=none").site, EngineSite)


def test_a_published_workload_is_replayed_and_not_answered(job_of):
    site = engines_of(job_of("backend=vllm", "backend.mode=replay", "backend.engine.load_format=dummy"))
    assert (site.way, site.options.loading.dummy_weights) == ("replayed", True)


def test_a_live_run_is_profiled_on_the_calibration_part_where_there_is_one(tmp_path, questions, job_of):
    tiny = ["workload=tiny_mcq", "pool=tiny", "cluster=local", "backend=vllm"]
    job = job_of(*tiny, f"workload.profiles={write_scores(tmp_path)}")
    asked = {question.text for question in job.site.calibration([expert.name for expert in job.experts]).questions}
    assert len(asked) > 100
    assert asked.isdisjoint(question.text for question in job.workload.questions)
    own = job_of(*questions, "cluster=local", "backend=vllm")
    assert own.site.calibration(["QwenHalf"]) == own.workload


SERVER = "{base_url: http://localhost:8000/v1, expert: QwenHalf, model: m}"


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        ("backend.mode=dream", "backend.mode must be one of ['live', 'replay'], got 'dream'"),
        ("backend.device=tpu", "backend.device must be one of ['auto', 'cpu', 'gpu'], got 'tpu'"),
        ("+backend.tempo=2", "backend: key must be one of ["),
        ("~backend.mode", "backend.mode must be given, got None"),
        ("backend.engine=fast", "backend.engine must be a group of the configuration"),
        ("backend.engine.max_num_seqs=0", "engine.max_num_seqs must be"),
        ("backend.device=cpu backend.engine.block_size=16", "engine.block_size must be a multiple of 32 on CPU"),
        ("backend.engine.load_format=dummy", "backend.engine.load_format must be auto in live mode"),
        ("backend.patience.max_retries=-1", "patience.max_retries must be"),
        ("+backend.patience.mood=good", "backend.patience got an unexpected keyword argument 'mood'"),
        ("backend.num_calibration_questions=0", "backend.num_calibration_questions must be"),
        ("backend=endpoint", "backend.endpoints must be given"),
        ("backend=endpoint backend.endpoints={a:b}", "backend.endpoints must be a list of servers"),
        ("backend=endpoint backend.endpoints=[5]", "backend.endpoints[0] must have keys, got 5"),
        (
            f"backend=endpoint backend.endpoints=[{SERVER.replace(' ', '')}]",
            "backend.endpoints must be one for each worker, cluster.num_workers=2, got 1",
        ),
        (
            f"backend=endpoint cluster.num_workers=1 backend.endpoints=[{SERVER.replace(' ', '')}]"
            " aggregator.expert=SmolLM2",
            "backend.endpoints must be servers of every expert that is called; they serve ['QwenHalf'], got 'SmolLM2'",
        ),
        (
            "backend=endpoint cluster.num_workers=1 backend.endpoints=[{base_url:here,expert:QwenHalf,model:m}]",
            "base_url must be a URL",
        ),
        (
            "backend=endpoint cluster.num_workers=1 "
            f"backend.endpoints=[{SERVER.replace(' ', '').replace('QwenHalf', 'Nobody')}]",
            "backend.endpoints: expert must be one of the pool",
        ),
    ],
)
def test_bad_input_names_the_field_the_rule_and_the_value(questions, overrides, complaint):
    outcome = run_here(*questions, "cluster=local", "backend=vllm", *overrides.split(" "))
    assert outcome.status == 2
    assert complaint in outcome.err
    assert "Traceback" not in outcome.err


def test_questions_without_a_text_cannot_be_answered():
    outcome = run_here("backend=vllm")
    assert outcome.status == 2
    assert "workload mmlu_pro: question" in outcome.err
    assert "must have a text where models really answer, got None: backend.mode=replay" in outcome.err
