"""The real backends' part of the configuration."""

from pathlib import Path
from unittest.mock import patch

import pytest

from mosaic.config.compose import compose_config
from mosaic.config.engines import find_device
from mosaic.config.job import RunSpec, backend_from, build_job
from mosaic.core.engine_options import Device, EngineOptions
from tests.commands.command_line import run_point
from tests.config.test_wiring import TINY_EXPERTS, write_lines

QUESTIONS = [{"id": f"q{i}", "question": f"What is {i} plus 1?", "experts": ["QwenHalf"] * 3} for i in range(3)]


@pytest.fixture
def questions(tmp_path: Path) -> list[str]:
    return ["workload=file", f"workload.path={write_lines(tmp_path / 'q.jsonl', *QUESTIONS)}", "pool=demo"]


def prepare(folder: Path, *overrides: str) -> RunSpec:
    return build_job(compose_config(list(overrides)), folder / "journal", overrides=overrides)


def options_of(*overrides: str) -> EngineOptions:
    backend = compose_config(["backend=vllm", *overrides])["backend"]
    return backend_from(backend).options


def test_engines_run_on_the_devices_that_are_there() -> None:
    on_cpu, on_gpu = options_of("backend.device=cpu"), options_of("backend.device=gpu")
    assert (on_cpu.loading.device, on_cpu.loading.dtype, on_cpu.kv_cache_memory_bytes) == (Device.CPU, "float32", 2**26)
    assert (on_gpu.loading.device, on_gpu.loading.dtype, on_gpu.kv_cache_memory_bytes) == (Device.GPU, "auto", None)


def test_settings_reach_the_engines(tmp_path: Path, questions: list[str]) -> None:
    spec = prepare(
        tmp_path, *questions, "cluster=local", "backend=vllm", "backend.device=cpu", "backend.patience.max_retries=7"
    )
    assert (spec.job.site.name, spec.job.site.way, spec.runs) == ("vllm", "measured", True)
    with patch("mosaic.config.engines.EngineBackend") as made:
        spec.job.site.backend({}, lambda call, inputs: "")
    given = made.call_args.kwargs
    assert (given["engines"].checkpoints, given["patience"].max_retries) == (Path("checkpoints"), 7)
    assert given["engines"].options == options_of("backend.device=cpu")


def test_no_device_is_a_gpu_where_all_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert find_device() is Device.CPU


def test_a_simulation_starts_no_engine(tmp_path: Path, questions: list[str]) -> None:
    assert prepare(tmp_path, *questions).job.site.way == "simulated"
    explained = prepare(tmp_path, *questions, "backend=none")
    assert (explained.job.site.way, explained.runs) == ("simulated", False)


def test_a_published_workload_is_replayed_and_not_answered(tmp_path: Path) -> None:
    site = prepare(tmp_path, "backend=vllm", "backend.mode=replay", "backend.engine.load_format=dummy").job.site
    assert (site.way, site.answers_source) == ("replayed", "fitted")


def test_a_live_run_is_profiled_on_the_calibration_part_where_there_is_one(
    tmp_path: Path, questions: list[str]
) -> None:
    skills = {expert: {"addition": 3, "digit_sum": 2, "maximum": 1} for expert in TINY_EXPERTS}
    path = write_lines(tmp_path / "skills.json", skills)
    tiny = ["workload=tiny_mcq", "pool=tiny", "cluster=local", "backend=vllm", f"workload.profiles={path}"]
    job = prepare(tmp_path, *tiny).job
    asked = {question.text for question in job.site.calibration(TINY_EXPERTS).questions}
    assert asked.isdisjoint(question.text for question in job.workload.questions)
    own = prepare(tmp_path, *questions, "cluster=local", "backend=vllm").job
    assert {question.id for question in own.site.calibration(["QwenHalf"]).questions} <= {"q0", "q1", "q2"}


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("world.length_scale.value=2", "models really answer"),
        ("world=gpqa", "models really answer"),
        ("aggregator=none backend.num_calibration_questions=5", "nothing is aggregated"),
    ],
)
def test_what_a_live_run_does_not_use_is_refused(
    override: str, reason: str, tmp_path: Path, questions: list[str]
) -> None:
    with pytest.raises(ValueError, match=f"must be left out, it has no effect here .{reason}"):
        prepare(tmp_path, *questions, "cluster=local", "backend=vllm", *override.split())


def test_a_folder_of_checkpoints_that_no_expert_needs_is_refused(
    tmp_path: Path, questions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    live = [*questions, "cluster=local", "backend=vllm", "pool.experts.QwenHalf.checkpoint=mine/half"]
    monkeypatch.chdir(tmp_path)
    assert prepare(tmp_path, *live, "backend.checkpoints=nope").runs
    (tmp_path / "mine" / "half").mkdir(parents=True)
    with pytest.raises(ValueError, match="backend.checkpoints must be left out.*path of its own.*=nope"):
        prepare(tmp_path, *live, "backend.checkpoints=nope")


SERVER = "{base_url: http://localhost:8000/v1, expert: QwenHalf, model: m}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("backend.mode=dream", "backend.mode must be one of ['live', 'replay'], got 'dream'"),
        ("backend.device=tpu", "backend.device must be one of ['auto', 'gpu', 'cpu'], got 'tpu'"),
        ("+backend.tempo=2", "backend.tempo must be a key of the configuration, one of ["),
        ("~backend.mode", "backend.mode must be given, got None"),
        ("backend.engine=fast", "backend.engine must be a group of the configuration"),
        ("backend.engine.max_num_seqs=0", "max_num_seqs must be"),
        ("backend.device=cpu backend.engine.block_size=16", "engine.block_size must be a multiple of 32 on CPU"),
        ("backend.engine.load_format=dummy", "backend.engine.load_format must be auto in live mode"),
        ("backend.patience.max_retries=-1", "patience.max_retries must be"),
        ("+backend.patience.mood=good", "backend.patience got an unexpected keyword argument 'mood'"),
        ("backend.num_calibration_questions=0", "backend.num_calibration_questions must be"),
        ("backend=endpoint", "backend.endpoints must be given"),
        ("backend=endpoint backend.endpoints={a:b}", "backend.endpoints must be a list, got"),
        (
            "backend=endpoint backend.endpoints=[5]",
            "endpoints[0] must be a group of the configuration, with keys, got 5",
        ),
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
def test_bad_input_names_the_field_the_rule_and_the_value(
    questions: list[str], overrides: str, message: str, tmp_path: Path
) -> None:
    where = f"hydra.run.dir={tmp_path / 'run'}"
    outcome = run_point(*questions, "cluster=local", "backend=vllm", *overrides.split(" "), where)
    assert outcome.status == 2
    assert message in outcome.err
    assert "Traceback" not in outcome.err


def test_questions_without_a_text_cannot_be_answered(tmp_path: Path) -> None:
    outcome = run_point("backend=vllm", f"hydra.run.dir={tmp_path / 'run'}")
    assert outcome.status == 2
    assert "workload mmlu_pro: question" in outcome.err
    assert "must have a text where models really answer, got None: backend.mode=replay" in outcome.err
