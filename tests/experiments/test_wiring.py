"""From the configuration to a run's values: every choice of every group composes and instantiates."""

import json
from collections.abc import Mapping
from itertools import combinations, product
from pathlib import Path

import pytest
from experiments.config.wiring import CONF, Setup, compose_config, setup_from

from mosaic.core.engine_options import EngineOptions, Order
from mosaic.core.lengths import ClippedLognormal
from mosaic.core.results import CallStatus
from mosaic.core.workload import PROPOSE, AnswerKind, CallKey
from mosaic.pipelines.gates.calibration_answers import encode_calibration_answers
from mosaic.pipelines.gates.gate import Majority
from mosaic.planning.costs import AffineCosts, PaperCosts
from mosaic.planning.profiles import write_profile
from mosaic.runtime.run import run
from mosaic.runtime.sweep import sweep_calls
from sim.world.world import World
from tests.calibration_questions import make_question

PUBLISHED = ("mmlu_pro", "medmcqa", "gpqa")
FILE_EXPERT_BY_POOL = {"hybrid": "Qwen", "demo": "SmolLM2", "llama3_8b": "llama3_8b"}
"""An expert of each pool for a question file; small where the pool has a small one."""
FITTING = [
    *product(PUBLISHED, ["hybrid"], ["a100_80gb", "rtxpro6000"]),
    *product(["file"], ["hybrid", "demo"], ["a100_80gb", "rtxpro6000", "rtx4090"]),
    *product(["file", "request_log"], ["llama3_8b"], ["a100_80gb", "rtxpro6000"]),
    *product(["mmlu_pro_reasoning"], ["reasoning"], ["a100_80gb", "rtxpro6000"]),
    *product(["mmlu_pro_instruct"], ["instruct"], ["a100_80gb", "rtxpro6000"]),
]
"""Workload, pool and hardware that go together."""
SCHEDULERS, COSTS = ["ilp", "round_robin", "fifo", "least_loaded", "data_parallel"], ["paper", "affine"]
TINY_EXPERTS = ["TinySage", "TinyOwl", "TinyDart", "TinyFinch", "TinySwift"]
GATES = ["never", "unanimous", "majority", "weighted", "calibrated"]
PARTS = {"expert", "questions", "lengths", "answers", "experiment", "policy"}
"""Groups that other groups are made of, and the presets."""
DEGREES = {"tp4": (4,), "dp4": (1,), "auto": (4, 1)}
"""Tensor-parallel degrees of each choice of the aggregator."""
MEASURED_DEGREES = {"a100_80gb": (1, 4), "rtxpro6000": (1, 2), "rtx4090": (1,), "cpu_core": (1,)}
"""At which the hardware's operators were measured, or are computed."""
SMALL_AGGREGATOR = {("hybrid", "rtx4090"): "Qwen"}
"""Where the pool's own aggregator has no room on the GPU."""


def choose_aggregator(i: int, pool: str, hardware: str) -> str:
    if pool == "llama3_8b":
        return "none"
    return list(DEGREES)[i % 3] if hardware == "a100_80gb" else ["dp4", "auto"][i % 2]


def make_real_points() -> list[dict[str, str]]:
    return [
        {
            "workload": "tiny_mcq",
            "pool": "tiny",
            "hardware": "cpu_core",
            "scheduler": scheduler,
            "costs": COSTS[i % 2],
            "backend": backend,
            "cluster": "local",
            "gate": GATES[i],
            "aggregator": ["dp4", "auto"][i % 2],
        }
        for backend in ("vllm", "endpoint")
        for i, scheduler in enumerate(SCHEDULERS)
    ]


POINTS = [
    {
        "workload": workload,
        "pool": pool,
        "hardware": hardware,
        "scheduler": SCHEDULERS[i % 5],
        "costs": COSTS[i % 2],
        "backend": ["sim", "sim", "none"][i % 3],
        "cluster": "a100x4",
        "gate": GATES[i % 5],
        "aggregator": choose_aggregator(i, pool, hardware),
    }
    for i, (workload, pool, hardware) in enumerate(FITTING)
] + make_real_points()
"""All pairs of scheduler, costs and backend meet, and all gates of a second stage, spread over the points."""
LOG_LINE = {
    "request_id": "a", "input_toks": 10, "output_toks": 11, "queued_ts": 50.0, "scheduled_ts": 50.5,
    "first_token_ts": 51.0, "last_token_ts": 53.0,
}  # fmt: skip


def write_lines(path: Path, *lines: Mapping[str, object]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def overrides_of(point: Mapping[str, str], folder: Path) -> list[str]:
    """Choose the groups of a point; workloads that read a file get a small one."""
    overrides = [f"{group}={choice}" for group, choice in point.items()]
    if point.get("workload") == "file":
        expert = FILE_EXPERT_BY_POOL[point["pool"]]
        lines = [{"id": f"q{i}", "prompt_tokens": 100 + i, "experts": [expert] * 3} for i in range(4)]
        overrides.append(f"workload.path={write_lines(folder / 'q.jsonl', *lines)}")
    if point.get("workload") == "request_log":
        overrides.append(f"workload.path={write_lines(folder / 'log.jsonl', LOG_LINE)}")
    if point.get("workload") == "tiny_mcq":
        skills = {expert: {"addition": 3, "digit_sum": 2, "maximum": 1} for expert in TINY_EXPERTS}
        overrides.append(f"workload.profiles={write_lines(folder / 'skills.json', skills)}")
    if point.get("backend") == "endpoint":
        servers = [
            f"{{base_url: http://localhost:{8000 + i}/v1, expert: {expert}, model: m}}"
            for i, expert in enumerate([*TINY_EXPERTS, "TinyJudge"])
        ]
        overrides += [f"backend.endpoints=[{','.join(servers)}]", f"cluster.num_workers={len(servers)}"]
    small = SMALL_AGGREGATOR.get((point.get("pool", ""), point.get("hardware", "")))
    if small is not None:
        overrides.append(f"aggregator.expert={small}")
    if point.get("gate") in ("weighted", "calibrated"):
        overrides.append(f"gate.calibration={write_calibration(folder / 'calibration.parquet')}")
    return overrides


def write_calibration(path: Path) -> Path:
    """Write answers to 40 questions, on half of which all experts agree."""
    graded = [make_question(f"c{i}", "AAA" if i % 2 else "AAB") for i in range(40)]
    path.write_bytes(encode_calibration_answers(graded))
    return path


def make_setup(*overrides: str) -> Setup:
    return setup_from(compose_config(list(overrides)))


def test_the_points_take_every_choice_of_every_group() -> None:
    groups = {path.name for path in CONF.iterdir() if path.is_dir()} - PARTS
    assert groups == set(POINTS[0])
    for group in groups:
        assert {point[group] for point in POINTS} == choices(group), group


def test_every_gate_meets_an_aggregator() -> None:
    assert {point["gate"] for point in POINTS if point["aggregator"] != "none"} == choices("gate")


def choices(group: str) -> set[str]:
    return {path.stem for path in (CONF / group).glob("*.yaml")}


@pytest.mark.parametrize(("one", "other"), list(combinations(["scheduler", "costs", "backend"], 2)))
def test_every_pair_of_policies_and_backends_meets(one: str, other: str) -> None:
    assert {(point[one], point[other]) for point in POINTS} == set(product(choices(one), choices(other)))


@pytest.mark.parametrize("point", POINTS, ids=lambda point: "-".join(list(point.values())[:6]))
def test_every_point_composes_and_instantiates(point: dict[str, str], tmp_path: Path) -> None:
    setup = make_setup(*overrides_of(point, tmp_path))
    assert setup.workload.name == point["workload"]
    assert setup.hardware.gpu.name == point["hardware"]
    assert {worker.gpu for worker in setup.cluster.workers} == {setup.hardware.gpu}
    assert setup.scheduler.name == point["scheduler"]
    assert (setup.settings is not None) == (point["backend"] == "sim")
    assert (setup.executor is not None) == (point["backend"] in ("vllm", "endpoint"))
    profile = {"profile": None, "num_calls_by_expert": setup.workload.num_calls_by_expert}
    assert setup.costs(**profile).name == point["costs"]
    if point["aggregator"] == "none":
        assert setup.stage is None
    else:
        assert setup.stage is not None
        assert (setup.stage.gate.name, setup.stage.aggregator.name) == (point["gate"], point["aggregator"])
        assert setup.stage.aggregator.expert in setup.experts
        assert set(setup.stage.lengths) == {setup.stage.aggregator.expert.name}
        measured = MEASURED_DEGREES[point["hardware"]]
        expected = tuple(degree for degree in DEGREES[point["aggregator"]] if degree in measured)
        assert setup.stage.aggregator.tp_degrees == expected


def test_the_replay_composes(tmp_path: Path) -> None:
    log = write_lines(tmp_path / "log.jsonl", LOG_LINE)
    setup = make_setup("+experiment=replay", f"workload.path={log}", "hardware=rtxpro6000")
    assert setup.cluster.num_workers >= 1
    assert setup.stage is None, "a log holds no questions to aggregate"


@pytest.mark.parametrize("workload", PUBLISHED)
@pytest.mark.parametrize("pool", ["demo", "llama3_8b"])
def test_a_pool_without_the_experts_called_is_refused(workload: str, pool: str) -> None:
    with pytest.raises(ValueError, match=rf"workload {workload}, call .*: expert must be one of the pool "):
        make_setup(f"workload={workload}", f"pool={pool}")


def test_a_pool_too_large_for_the_gpu_is_refused() -> None:
    with pytest.raises(ValueError, match="expert Gemma must fit into tp_degree=1 x rtx4090"):
        make_setup("hardware=rtx4090")


def test_the_defaults_are_the_papers_main_run() -> None:
    setup = make_setup()
    assert (setup.workload.name, setup.scheduler.name, setup.seed) == ("mmlu_pro", "ilp", 0)
    assert setup.costs.func is PaperCosts  # type: ignore[attr-defined]
    assert setup.hardware.gpu.name == "a100_80gb"
    assert setup.cluster.num_workers == 4
    assert setup.settings == EngineOptions(order=Order.PREFILL_FIRST, max_num_seqs=256)
    assert setup.profile_path is None
    assert setup.aggregator_profile_path is None
    assert setup.stage is not None
    assert setup.stage.gate == Majority(tau=0.6667)
    assert (setup.stage.aggregator.expert.name, setup.stage.aggregator.tp_degrees) == ("LlamaR1", (4,))
    assert make_setup("costs=affine").costs.func is AffineCosts  # type: ignore[attr-defined]


def test_overrides_reach_the_values() -> None:
    setup = make_setup(
        "workload=gpqa", "cluster.num_workers=2", "seed=3", "profile.seed=9", "profile.sweep.shard_sizes=[4,8]",
        "backend.max_num_seqs=64", "pool.experts.Gemma.max_replicas=4", "scheduler.max_experts_per_worker=3",
        "gate.tau=0.9", "aggregator=dp4", "aggregator.expert=LlamaR1", "aggregator.min_output_tokens=99",
        "workload.aggregator.output_tokens.mean.value=321", "workload.answers.discrimination.value=1.25",
        "workload.answers.ability_by_expert.Gemma.value=-0.7", "workload.answers.visible_tokens.value=77",
    )  # fmt: skip
    assert setup.cluster.num_workers == 2
    assert (setup.seed, setup.profile_seed) == (3, 9)
    assert setup.settings is not None
    assert setup.settings.max_num_seqs == 64
    assert {expert.name: expert.max_replicas for expert in setup.experts}["Gemma"] == 4
    assert setup.scheduler.max_experts_per_worker == 3  # type: ignore[attr-defined]
    assert setup.sweep.shard_sizes == (4, 8)
    assert setup.stage is not None
    assert setup.stage.gate == Majority(tau=0.9)
    assert (setup.stage.aggregator.expert.name, setup.stage.aggregator.min_output_tokens) == ("LlamaR1", 99)
    assert setup.stage.lengths["LlamaR1"].mean == 321
    assert setup.answers.model is not None
    assert setup.answers.model.discrimination == 1.25
    assert setup.answers.model.ability_by_expert["Gemma"] == -0.7
    assert setup.answers.model.source == "fitted"
    thinking = setup.world().thinking
    assert thinking == {"LlamaR1": 77, "QwenR1": 77}, "who thinks shows the end of the text only"


@pytest.mark.parametrize(("workload", "expert"), [("mmlu_pro", "LlamaR1"), ("medmcqa", "Exaone"), ("gpqa", "QwenR1")])
def test_the_aggregator_is_the_workloads(workload: str, expert: str) -> None:
    config = compose_config([f"workload={workload}"])
    stage = setup_from(config).stage
    assert stage is not None
    assert stage.aggregator.expert.name == expert
    assert stage.lengths[expert].mean == config["workload"]["aggregator"]["output_tokens"]["mean"]["value"]


def test_a_workload_without_an_aggregator_takes_the_pools(tmp_path: Path) -> None:
    stage = make_setup("workload=medmcqa", "workload.aggregator=null").stage
    assert stage is not None
    assert stage.aggregator.expert.name == "LlamaR1"
    own = small_setup(tmp_path, "workload.aggregator={expert: SmolLM2, output_tokens: {sample: [9], source: measured}}")
    assert own.stage is not None
    assert own.stage.aggregator.expert.name == "SmolLM2"
    assert own.stage.lengths["SmolLM2"].mean == 9


def test_an_aggregator_keeps_the_degrees_that_fit_the_cluster() -> None:
    stage = make_setup("workload=gpqa", "aggregator=auto", "cluster.num_workers=3").stage
    assert stage is not None
    assert stage.aggregator.tp_degrees == (1,)


def test_an_aggregator_that_no_gpu_can_hold_is_refused_before_any_work(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "q.jsonl", {"id": "a", "prompt_tokens": 100, "experts": ["Qwen"]})
    overrides = ("workload=file", f"workload.path={path}", "hardware=rtx4090", "aggregator=dp4")
    with pytest.raises(ValueError, match="expert LlamaR1 must fit into tp_degree=1 x rtx4090"):
        make_setup(*overrides)
    assert make_setup(*overrides, "aggregator.expert=Qwen").stage is not None


def test_a_degree_that_the_hardware_was_not_measured_at_is_refused_before_any_work() -> None:
    with pytest.raises(ValueError, match=r"tp_degrees must be degrees that rtxpro6000 was measured at, got \[4\]"):
        make_setup("workload=gpqa", "hardware=rtxpro6000", "aggregator=tp4")
    stage = make_setup("workload=gpqa", "hardware=rtxpro6000", "aggregator.tp_degrees=[4,2]").stage
    assert stage is not None
    assert stage.aggregator.tp_degrees == (2,)


def test_a_gate_is_not_calibrated_on_the_batch_itself(tmp_path: Path) -> None:
    file = tmp_path / "c.parquet"
    file.write_bytes(encode_calibration_answers([make_question("q3"), make_question("other")]))
    with pytest.raises(ValueError, match="gate.calibration must hold other questions than the batch, got 1 of .*'q3'"):
        small_setup(tmp_path, "gate=calibrated", f"gate.calibration={file}")
    assert small_setup(tmp_path, "gate=weighted", f"gate.calibration={file}").stage is not None, "it promises nothing"


def test_a_workload_without_an_answer_model_has_lengths_and_no_second_stage(tmp_path: Path) -> None:
    setup = small_setup(tmp_path, "workload.answers=null", "aggregator=none")
    assert setup.answers.model is None
    assert {setup.world().outcome(call).answer for call in setup.workload.calls} == {None}
    with pytest.raises(
        ValueError, match="workload.answers must be given where a gate reads simulated answers, got null"
    ):
        small_setup(tmp_path, "workload.answers=null")


def test_free_text_is_compared_by_a_function_of_ones_own(tmp_path: Path) -> None:
    stage = small_setup(tmp_path, "aggregator.comparison=operator.eq").stage
    assert stage is not None
    same = stage.compare[AnswerKind.TEXT]
    assert same is not None
    assert same("a", "a")
    assert not same("a", "b")
    assert small_setup(tmp_path, "aggregator.comparison=builtins.max").stage is not None, "C says not what it takes"
    plain = small_setup(tmp_path).stage
    assert plain is not None
    assert plain.compare[AnswerKind.TEXT] is None


def test_the_length_scale_is_applied_to_the_workloads_lengths() -> None:
    means = {
        scale: make_setup("workload=gpqa", f"workload.length_scale.value={scale}").lengths["LlamaR1"].mean
        for scale in (0.5, 1.0)
    }
    assert means[0.5] == pytest.approx(means[1.0] / 2)


def small_setup(folder: Path, *overrides: str) -> Setup:
    point = {"workload": "file", "pool": "demo", "scheduler": "round_robin"}
    return make_setup(*overrides_of(point, folder), "profile.sweep.shard_sizes=[2,6]", *overrides)


def test_a_setup_profiles_plans_and_runs(tmp_path: Path) -> None:
    setup = small_setup(tmp_path)
    profile = setup.profile()
    assert [entry.expert for entry in profile.entries] == ["SmolLM2"], "experts without calls need no profile"
    assert profile.source == "simulated sweep of file on a100_80gb, seed 0"
    _, result = run(
        setup.workload,
        experts=setup.experts,
        cluster=setup.cluster,
        profile=profile,
        costs=setup.costs,
        scheduler=setup.scheduler,
        backend=setup.backend(setup.world()),
    )
    assert len(result.calls) == 12
    assert all(record.status is CallStatus.FINISHED for record in result.calls)
    lengths = setup.lengths["SmolLM2"]
    assert isinstance(lengths, ClippedLognormal)
    assert all(record.output_tokens <= lengths.clip_tokens for record in result.calls)


def test_calibration_never_sees_the_test_worlds_luck(tmp_path: Path) -> None:
    setup = small_setup(tmp_path, "profile.seed=0", "seed=0")
    assert setup.profile() == small_setup(tmp_path, "profile.seed=0", "seed=1").profile()
    (entry,) = small_setup(tmp_path, "profile.seed=7", "seed=0").profile().entries
    world = World(lengths=setup.lengths, root_seed=7, stream="calibration", answers=setup.answers.model)
    calls = [call for shard in sweep_calls(setup.sweep, "SmolLM2", lambda i: 100) for call in shard]
    assert entry.output_tokens == tuple(sorted(world.outcome(call).output_tokens for call in calls))
    assert setup.world().stream == "test"


def test_a_saved_profile_takes_the_place_of_the_sweep(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    profile = small_setup(tmp_path).profile()
    write_profile(profile, path)
    assert small_setup(tmp_path, f"profile.path={path}", "profile.seed=5").profile() == profile


def test_recorded_lengths_reach_the_world(tmp_path: Path) -> None:
    log = write_lines(tmp_path / "log.jsonl", LOG_LINE)
    setup = make_setup("workload=request_log", "pool=llama3_8b", "aggregator=none", f"workload.path={log}")
    (call,) = setup.workload.calls
    assert call.key == CallKey(call.key.question, PROPOSE, 0)
    assert setup.world().outcome(call).output_tokens == 11


def test_the_load_scale_is_a_key_of_every_hardware() -> None:
    plain, slow = make_setup("hardware=a100_80gb"), make_setup("hardware.load_scale=2")
    shape = plain.experts[0].shape
    assert slow.hardware.load_s(shape, 1) == 2 * plain.hardware.load_s(shape, 1)
    for hardware in choices("hardware"):
        assert compose_config([f"hardware={hardware}"])["hardware"]["load_scale"] == 1.0
