"""The real backends' part of the configuration."""

from pathlib import Path
from unittest.mock import patch

import pytest

from mosaic.config.compose import compose_config
from mosaic.config.engines import find_device
from mosaic.config.job import backend_from
from mosaic.core.engine_options import Device, EngineOptions
from tests.commands.command_line import prepare
from tests.config.test_wiring import TINY_EXPERTS, write_lines

QUESTIONS = [{"id": f"q{i}", "question": f"What is {i} plus 1?", "experts": ["QwenHalf"] * 3} for i in range(3)]


@pytest.fixture
def questions(tmp_path: Path) -> list[str]:
    return ["workload=file", f"workload.path={write_lines(tmp_path / 'q.jsonl', *QUESTIONS)}", "pool=demo"]


def options_of(*overrides: str) -> EngineOptions:
    backend = compose_config(["backend=vllm", *overrides])["backend"]
    return backend_from(backend).options


def test_engines_run_on_the_devices_that_are_there() -> None:
    on_cpu, on_gpu = options_of("backend.device=cpu"), options_of("backend.device=gpu")
    assert (on_cpu.loading.device, on_cpu.loading.dtype, on_cpu.kv_cache_memory_bytes) == (Device.CPU, "float32", 2**26)
    assert (on_gpu.loading.device, on_gpu.loading.dtype, on_gpu.kv_cache_memory_bytes) == (Device.GPU, "auto", None)


def test_settings_reach_the_engines(questions: list[str]) -> None:
    spec = prepare(*questions, "cluster=local", "backend=vllm", "backend.device=cpu", "backend.patience.max_retries=7")
    assert (spec.job.site.name, spec.job.site.way, spec.runs) == ("vllm", "measured", True)
    with patch("mosaic.config.engines.EngineBackend") as made:
        spec.job.site.backend({}, lambda call, inputs: "")
    given = made.call_args.kwargs
    assert (given["engines"].checkpoints, given["patience"].max_retries) == (Path("checkpoints"), 7)
    assert given["engines"].options == options_of("backend.device=cpu")


def test_no_device_is_a_gpu_where_all_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert find_device() is Device.CPU


def test_a_simulation_starts_no_engine(questions: list[str]) -> None:
    assert prepare(*questions).job.site.way == "simulated"
    explained = prepare(*questions, "backend=none")
    assert (explained.job.site.way, explained.runs) == ("simulated", False)


def test_a_published_workload_is_replayed_and_not_answered() -> None:
    site = prepare("backend=vllm", "backend.mode=replay", "backend.engine.load_format=dummy").job.site
    assert (site.way, site.answers_source) == ("replayed", "fitted")


def test_a_live_run_is_profiled_on_the_calibration_part_where_there_is_one(
    tmp_path: Path, questions: list[str]
) -> None:
    skills = {expert: {"addition": 3, "digit_sum": 2, "maximum": 1} for expert in TINY_EXPERTS}
    path = write_lines(tmp_path / "skills.json", skills)
    tiny = ["workload=tiny_mcq", "pool=tiny", "cluster=local", "backend=vllm", f"workload.profiles={path}"]
    job = prepare(*tiny).job
    asked = {question.text for question in job.site.calibration(TINY_EXPERTS).questions}
    assert asked.isdisjoint(question.text for question in job.workload.questions)
    own = prepare(*questions, "cluster=local", "backend=vllm").job
    assert {question.id for question in own.site.calibration(["QwenHalf"]).questions} <= {"q0", "q1", "q2"}


def test_a_folder_of_checkpoints_that_no_expert_needs_is_refused(
    tmp_path: Path, questions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    live = [*questions, "cluster=local", "backend=vllm", "pool.experts.QwenHalf.checkpoint=mine/half"]
    monkeypatch.chdir(tmp_path)
    assert prepare(*live, "backend.checkpoints=nope").runs
    (tmp_path / "mine" / "half").mkdir(parents=True)
    with pytest.raises(ValueError, match="backend.checkpoints must be left out.*path of its own.*=nope"):
        prepare(*live, "backend.checkpoints=nope")
