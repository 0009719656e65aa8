"""The real backends' part of the configuration."""

from pathlib import Path

import pytest
from experiments.config.executor_wiring import EngineSetup, Mode, ServerSetup, find_device
from experiments.config.wiring import compose_config, setup_from

from mosaic.engines.engine import Device
from tests.experiments.command_line import run_here
from tests.experiments.test_wiring import TINY_EXPERTS, write_lines

QUESTIONS = [{"id": f"q{i}", "question": f"What is {i} plus 1?", "experts": ["QwenHalf"] * 3} for i in range(3)]


@pytest.fixture
def questions(tmp_path: Path) -> list[str]:
    return ["workload=file", f"workload.path={write_lines(tmp_path / 'q.jsonl', *QUESTIONS)}", "pool=demo"]


def executor_of(*overrides: str) -> EngineSetup | ServerSetup | None:
    return setup_from(compose_config(list(overrides))).executor


def test_engines_are_live_on_the_devices_that_are_there(questions):
    made = executor_of(*questions, "cluster=local", "backend=vllm", "backend.device=cpu")
    assert isinstance(made, EngineSetup)
    assert (made.mode, made.checkpoints) == (Mode.LIVE, Path("checkpoints"))
    assert (made.settings.device, made.settings.dtype, made.settings.kv_cache_bytes) == (Device.CPU, "float32", 2**26)
    on_gpu = executor_of(*questions, "cluster=local", "backend=vllm", "backend.device=gpu")
    assert (on_gpu.settings.device, on_gpu.settings.dtype, on_gpu.settings.kv_cache_bytes) == (Device.GPU, "auto", None)
    patient = executor_of(*questions, "cluster=local", "backend=vllm", "backend.patience.max_retries=7")
    assert patient.patience.max_retries == 7


def test_no_device_is_a_gpu_where_all_are_hidden(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert find_device() is Device.CPU


def test_a_simulation_has_no_executor(questions):
    assert executor_of(*questions) is None
    assert executor_of(*questions, "backend=none") is None


def test_a_published_workload_is_replayed_and_not_answered():
    setup = setup_from(compose_config(["backend=vllm", "backend.mode=replay", "backend.engine.dummy_weights=true"]))
    assert setup.executor.mode is Mode.REPLAY


def test_a_live_run_is_profiled_on_the_calibration_part_where_there_is_one(tmp_path, questions):
    skills = {expert: {"addition": 3, "digit_sum": 2, "maximum": 1} for expert in TINY_EXPERTS}
    path = write_lines(tmp_path / "skills.json", skills)
    tiny = ["workload=tiny_mcq", "pool=tiny", "cluster=local", "backend=vllm", f"workload.profiles={path}"]
    setup = setup_from(compose_config(tiny))
    asked = {question.text for question in setup.calibration().questions}
    assert asked.isdisjoint(question.text for question in setup.workload.questions)
    own = setup_from(compose_config([*questions, "cluster=local", "backend=vllm"]))
    assert own.calibration() is own.workload


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
        ("backend.engine.dummy_weights=true", "backend.engine.dummy_weights must be false in live mode"),
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
