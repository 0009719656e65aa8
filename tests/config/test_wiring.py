"""From the configuration to a run's values: every choice of every group composes and instantiates."""

import json
from collections.abc import Mapping
from itertools import combinations, product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
import pytest

import mosaic
from mosaic.config.compose import CONF, compose_config
from mosaic.config.engines import find_device
from mosaic.config.job import RunSpec, backend_from, build_job
from mosaic.core.engine_options import Device, EngineOptions, Order
from mosaic.core.errors import InUseError
from mosaic.core.results import CallStatus
from mosaic.core.workload import AGGREGATE, PROPOSE, AnswerKind, CallKey, Expert
from mosaic.engines.local_launcher import LocalLauncher
from mosaic.engines.site import EngineSite
from mosaic.pipelines.rules.calibration_file import CalibrationContext
from mosaic.pipelines.rules.rule import Majority
from mosaic.planning.costs import AffineCosts, PaperCosts
from mosaic.planning.profiles import Profile
from mosaic.runtime.job import Reaction
from mosaic.runtime.planner import NodePlacements
from mosaic.runtime.run_lock import hold
from mosaic.runtime.sweep import sweep_calls
from sim.site import SimSite
from sim.world.lengths import ClippedLognormal
from sim.world.world import World
from tests.calibration_questions import make_question, save_answers
from tests.commands.command_line import prepare
from tests.engines.executor_runs import FAKE_ENGINE
from tests.workloads.test_request_log import make_line

PUBLISHED = ("mmlu_pro", "medmcqa", "gpqa")
FILE_EXPERT_BY_POOL = {"hybrid": "Qwen", "demo": "SmolLM2", "llama3_8b": "llama3_8b"}
"""An expert of each pool for a question file; small where the pool has a small one."""
FITTING = [
    *product(PUBLISHED, ["hybrid"], ["a100_80gb", "rtxpro6000"]),
    *product(["file"], ["hybrid", "demo"], ["a100_80gb", "rtxpro6000", "rtx4090"]),
    *product(["file", "request_log"], ["llama3_8b"], ["a100_80gb", "rtxpro6000"]),
    *product(["mmlu_pro_reasoning"], ["reasoning"], ["a100_80gb", "rtxpro6000"]),
    *product(["mmlu_pro_instruct"], ["instruct"], ["a100_80gb", "rtxpro6000"]),
    ("request_log", "llama3_8b", "flexicache_h100"),
    ("request_log", "qwen3_30b_a3b", "rtxpro6000"),
    ("mmlu_pro", "hybrid", "h100_80gb"),
    ("request_log", "llama3_8b", "h100_80gb"),
]
"""Workload, pool and hardware that go together."""
SCHEDULERS = ["ilp", "round_robin", "fifo", "least_loaded", "data_parallel", "flexible", "robust"]
COSTS = ["paper", "affine", "piecewise"]
TINY_EXPERTS = ["TinySage", "TinyOwl", "TinyDart", "TinyFinch", "TinySwift"]
GATES = ["never", "unanimous", "majority", "weighted", "calibrated"]
REAL = ("vllm", "endpoint")
UNLIKE = {"a100x2_rtx4090x4", "ray"}
"""Clusters with hardware or hosts of their own: tests of machines and of Ray."""
PARTS = {"expert", "questions", "lengths", "answers", "experiment", "policy"}
"""Groups that other groups are made of, and the presets."""
DEGREES = {"tp4": (4,), "dp": (1,), "auto": (4, 1)}
"""Tensor-parallel degrees of each choice of the aggregator."""
MEASURED_DEGREES = {
    "a100_80gb": (1, 4),
    "rtxpro6000": (1, 2),
    "rtx4090": (1,),
    "flexicache_h100": (1,),
    "h100_80gb": (1, 4),
    "cpu_core": (1,),
}
"""At which the hardware's operators were measured, or are computed."""
SMALL_AGGREGATOR = {("hybrid", "rtx4090"): "Qwen"}
"""Where the pool's own aggregator has no room on the GPU."""


def choose_aggregator(i: int, pool: str, hardware: str) -> str:
    if pool in ("llama3_8b", "qwen3_30b_a3b"):
        return "none"
    return list(DEGREES)[i % 3] if hardware == "a100_80gb" else ["dp", "auto"][i % 2]


def make_real_points() -> list[dict[str, str]]:
    return [
        {
            "workload": "tiny_mcq",
            "pool": "tiny",
            "hardware": "cpu_core",
            "scheduler": scheduler,
            "costs": COSTS[(i + 2) % 3],
            "backend": backend,
            "cluster": "local",
            "gate": GATES[i % 5],
            "aggregator": ["dp", "auto"][i % 2],
        }
        for backend in ("vllm", "endpoint")
        for i, scheduler in enumerate(SCHEDULERS)
    ]


POINTS = [
    {
        "workload": workload,
        "pool": pool,
        "hardware": hardware,
        "scheduler": SCHEDULERS[i % 7],
        "costs": COSTS[(i + i // 7) % 3],
        "backend": ["sim", "none"][i // 7 % 2],
        "cluster": "a100x4",
        "gate": GATES[i % 5],
        "aggregator": choose_aggregator(i, pool, hardware),
    }
    for i, (workload, pool, hardware) in enumerate(FITTING)
] + make_real_points()
"""All pairs of scheduler, costs and backend meet, and all gates of a second stage, spread over the points."""


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
        log = write_lines(folder / "log.jsonl", make_line())
        overrides += [f"workload.path={log}", f"workload.expert={point['pool']}"]
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
        setting = make(*overrides, "gate=never", journal=folder / "journal").setting
        overrides.append(f"gate.calibration={write_calibration(folder, setting)}")
    return overrides


def write_calibration(folder: Path, setting: CalibrationContext) -> Path:
    """Write answers to 40 questions, on half of which all experts agree."""
    return save_answers(folder, [make_question(f"c{i}", "AAA" if i % 2 else "AAB") for i in range(40)], setting)


def make(*overrides: str, store: Path | None = None, journal: Path | None = None) -> RunSpec:
    config = compose_config(list(overrides))
    config["profile"]["store"] = None if store is None else str(store)
    return build_job(config, journal)


def site_of(spec: RunSpec) -> SimSite:
    assert isinstance(spec.job.site, SimSite)
    return spec.job.site


def aggregator_of(spec: RunSpec) -> tuple[Expert, tuple[int, ...]]:
    """Find who merges answers, and at which degrees it may be placed."""
    (node,) = spec.job.graph.upper_nodes
    (expert,) = node.experts
    options: NodePlacements = spec.job.placements[AGGREGATE]
    return expert, tuple(option.tp_degree for option in options.placements)


def test_the_points_take_every_choice_of_every_group() -> None:
    groups = {path.name for path in CONF.iterdir() if path.is_dir()} - PARTS
    assert groups == {*POINTS[0], "world", "pipeline", "topology", "exit"}
    assert choices("world") == choices("workload"), "each workload has a world, which follows it"
    assert choices("pipeline") == {"mixture"}
    for group in POINTS[0]:
        elsewhere = UNLIKE if group == "cluster" else set()
        assert {point[group] for point in POINTS} == choices(group) - elsewhere, group


def test_every_gate_meets_an_aggregator() -> None:
    assert {point["gate"] for point in POINTS if point["aggregator"] != "none"} == choices("gate")


def choices(group: str) -> set[str]:
    return {path.stem for path in (CONF / group).glob("*.yaml")}


@pytest.mark.parametrize(("one", "other"), list(combinations(["scheduler", "costs", "backend"], 2)))
def test_every_pair_of_policies_and_backends_meets(one: str, other: str) -> None:
    assert {(point[one], point[other]) for point in POINTS} == set(product(choices(one), choices(other)))


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS, ids=lambda point: "-".join(list(point.values())[:6]))
def test_every_point_composes_and_instantiates(point: dict[str, str], tmp_path: Path) -> None:
    spec = make(*overrides_of(point, tmp_path), journal=tmp_path / "journal")
    job = spec.job
    assert job.workload.name == point["workload"]
    assert {worker.gpu.name for worker in job.cluster.workers} == {point["hardware"]}
    assert job.scheduler.name == point["scheduler"]
    assert spec.runs == (point["backend"] != "none")
    assert job.site.kind == ("measured" if point["backend"] in REAL else "simulated")
    profile = {"profile": None, "num_calls_by_expert": job.workload.num_calls_by_expert}
    assert job.costs(**profile).name == point["costs"]
    if point["aggregator"] == "none":
        assert not job.graph.upper_nodes
        assert spec.aggregator is None
    else:
        assert (job.graph.rule.name, spec.aggregator) == (point["gate"], point["aggregator"])
        expert, degrees = aggregator_of(spec)
        assert expert in job.experts
        measured = MEASURED_DEGREES[point["hardware"]] if point["backend"] != "endpoint" else ()
        assert degrees == tuple(degree for degree in DEGREES[point["aggregator"]] if degree in measured), (
            "on servers none"
        )
        if point["backend"] not in REAL:
            world = site_of(spec).world
            assert expert.name in world.aggregator_lengths


def test_the_replay_composes(tmp_path: Path) -> None:
    log = write_lines(tmp_path / "log.jsonl", make_line())
    spec = make("+experiment=replay", f"workload.path={log}", "hardware=rtxpro6000")
    assert spec.job.cluster.num_workers >= 1
    assert not spec.job.graph.upper_nodes, "a log holds no questions to aggregate"
    assert spec.report == "replay"


def test_the_defaults_are_the_papers_main_run() -> None:
    spec = make()
    job, site = spec.job, site_of(spec)
    assert (job.workload.name, job.scheduler.name, spec.seed) == ("mmlu_pro", "ilp", 0)
    assert job.costs.func is PaperCosts  # type: ignore[attr-defined]
    assert site.hardware.gpu.name == "a100_80gb"
    assert job.cluster.num_workers == 4
    assert site.settings == EngineOptions(order=Order.PREFILL_FIRST, max_num_seqs=256)
    assert (job.profile, job.upper_profile, job.plans, job.reactions) == (None, None, (), frozenset())
    assert job.graph.rule == Majority(tau=0.6667)
    expert, degrees = aggregator_of(spec)
    assert (expert.name, degrees) == ("LlamaR1", (4,))
    assert make("costs=affine").job.costs.func is AffineCosts  # type: ignore[attr-defined]


def test_overrides_reach_the_values() -> None:
    spec = make(
        "workload=gpqa", "cluster.num_workers=2", "seed=3", "profile.seed=9", "profile.sweep.shard_sizes=[4,8]",
        "backend.max_num_seqs=64", "pool.experts.Gemma.max_replicas=4", "scheduler.max_experts_per_worker=3",
        "gate.tau=0.9", "aggregator=dp", "aggregator.expert=LlamaR1", "aggregator.min_output_tokens=99",
        "+world.merged_tokens.LlamaR1={sample: [321], source: assumed}", "world.answers.discrimination.value=1.25",
        "world.answers.ability_by_expert.Gemma.value=-0.7", "world.answers.visible_tokens.value=77",
    )  # fmt: skip
    job, site = spec.job, site_of(spec)
    assert job.cluster.num_workers == 2
    assert (spec.seed, site.world.root_seed, site.calibration_world.root_seed) == (3, 3, 9)
    assert site.settings.max_num_seqs == 64
    assert {expert.name: expert.max_replicas for expert in job.experts}["Gemma"] == 4
    assert job.scheduler.max_experts_per_worker == 3  # type: ignore[attr-defined]
    assert job.sweep.shard_sizes == (4, 8)
    assert job.graph.rule == Majority(tau=0.9)
    expert, _ = aggregator_of(spec)
    assert (expert.name, job.graph.upper_nodes[0].min_output_tokens) == ("LlamaR1", 99)
    assert site.world.aggregator_lengths["LlamaR1"].mean == 321
    assert site.world.answers is not None
    assert site.world.answers.discrimination == 1.25
    assert site.world.answers.ability_by_expert["Gemma"] == -0.7
    assert site.world.answers.source == "fitted"
    assert site.world.thinking == {"LlamaR1": 77, "QwenR1": 77}, "who thinks shows the end of the text only"


def test_a_workload_without_an_aggregator_takes_the_pools(tmp_path: Path) -> None:
    assert aggregator_of(make("workload=medmcqa", "workload.aggregator=null"))[0].name == "LlamaR1"
    own = small(tmp_path, "workload.aggregator=SmolLM2", "+world.merged_tokens.SmolLM2={sample: [9], source: measured}")
    assert aggregator_of(own)[0].name == "SmolLM2"
    assert site_of(own).world.aggregator_lengths["SmolLM2"].mean == 9


def test_an_aggregator_keeps_the_degrees_that_fit_the_cluster() -> None:
    assert aggregator_of(make("workload=gpqa", "aggregator=auto", "cluster.num_workers=3"))[1] == (1,)


def test_a_degree_that_the_hardware_was_not_measured_at_is_left_out_beside_another() -> None:
    assert aggregator_of(make("workload=gpqa", "hardware=rtxpro6000", "aggregator.tp_degrees=[4,2]"))[1] == (2,)


def test_a_gate_is_not_calibrated_on_the_batch_itself(tmp_path: Path) -> None:
    file = save_answers(tmp_path, [make_question("q3"), make_question("other")], small(tmp_path).setting)
    with pytest.raises(ValueError, match="gate.calibration must hold other questions than the batch, got 1 of .*'q3'"):
        small(tmp_path, "gate=calibrated", f"gate.calibration={file}")
    assert small(tmp_path, "gate=weighted", f"gate.calibration={file}").job.graph.upper_nodes, "it promises nothing"


def test_weighted_votes_are_of_the_same_experts_only(tmp_path: Path) -> None:
    file = write_calibration(tmp_path, make("workload=gpqa", "gate=never").setting)
    weighted = ("gate=weighted", f"gate.calibration={file}")
    assert make("workload=medmcqa", *weighted).job.graph.rule.name == "weighted"
    with pytest.raises(ValueError, match="what runs here, got .*: expert Gemma is .*What was learned there"):
        make("workload=medmcqa", *weighted, "pool.experts.Gemma.checkpoint=other")


def test_a_workload_without_an_answer_model_has_lengths_and_no_second_stage(tmp_path: Path) -> None:
    spec = small(tmp_path, "world.answers=null", "aggregator=none")
    world = site_of(spec).world
    assert world.answers is None
    assert {world.outcome(call, {}).answer for call in spec.job.workload.calls} == {None}


def test_free_text_is_compared_by_a_function_of_ones_own(tmp_path: Path) -> None:
    same = small(tmp_path, "aggregator.comparison=operator.eq").job.graph.compare[AnswerKind.TEXT]
    assert same is not None
    assert same("a", "a")
    assert not same("a", "b")
    c_function = small(tmp_path, "aggregator.comparison=builtins.max").job.graph.compare[AnswerKind.TEXT]
    assert c_function is max, "C says not what it takes"
    assert small(tmp_path).job.graph.compare[AnswerKind.TEXT] is None


def test_the_length_scale_is_applied_to_the_workloads_lengths() -> None:
    means = {
        scale: site_of(make("workload=gpqa", f"world.length_scale.value={scale}")).world.lengths["LlamaR1"].mean
        for scale in (0.5, 1.0)
    }
    assert means[0.5] == pytest.approx(means[1.0] / 2)


NODES = (
    "pipeline.nodes={propose: null, merge: {experts: [SmolLM2, QwenHalf], after: [propose]}, "
    "final: {experts: [QwenHalf], after: [merge], when: unsettled, min_output_tokens: 40}}"
)


def test_a_pipeline_of_ones_own_names_its_nodes(tmp_path: Path) -> None:
    graph = small(tmp_path, NODES, "pipeline.barrier=false", "aggregator=none").job.graph
    assert [[node.name for node in layer] for layer in graph.layers] == [["propose"], ["merge"], ["final"]]
    assert [expert.name for expert in graph.nodes[1].experts] == ["SmolLM2", "QwenHalf"]
    assert graph.nodes[2].min_output_tokens == 40


def test_an_early_quorum_is_one_key(tmp_path: Path) -> None:
    for override in ("pipeline.quorum=true", "pipeline.reactions=[quorum]"):
        assert small(tmp_path, override).job.reactions == {Reaction.QUORUM}


def small(folder: Path, *overrides: str, store: Path | None = None) -> RunSpec:
    point = {"workload": "file", "pool": "demo", "scheduler": "round_robin"}
    chosen = [*overrides_of(point, folder), "profile.sweep.shard_sizes=[2,6]", *overrides]
    return make("aggregator=dp", *chosen, store=store)


def measured(folder: Path, *overrides: str) -> Profile:
    """Plan, and read the profile that is kept."""
    store = folder / "-".join(("kept", *(override.replace("/", "_") for override in overrides)))
    mosaic.plan(small(folder, *overrides, store=store).job)
    (path,) = store.glob("Profile-*.json")
    profile: Profile = msgspec.json.decode(path.read_bytes(), type=Profile)
    return profile


def test_a_job_is_measured_planned_and_run(tmp_path: Path) -> None:
    profile = measured(tmp_path)
    assert [entry.expert for entry in profile.entries] == ["SmolLM2"], "experts without calls need no profile"
    assert profile.source == "simulated sweep of file on a100_80gb, seed 0"
    spec = small(tmp_path, "aggregator=none")
    result = mosaic.run(spec.job).result
    assert len(result.calls) == 12
    assert all(record.status is CallStatus.FINISHED for record in result.calls)
    lengths = site_of(spec).world.lengths["SmolLM2"]
    assert isinstance(lengths, ClippedLognormal)
    assert all(record.output_tokens <= lengths.clip_tokens for record in result.calls)


def test_calibration_never_sees_the_test_worlds_luck(tmp_path: Path) -> None:
    assert measured(tmp_path, "profile.seed=0", "seed=0") == measured(tmp_path, "profile.seed=0", "seed=1")
    (entry,) = measured(tmp_path, "profile.seed=7", "seed=0").entries
    spec = small(tmp_path, "profile.seed=7", "seed=0")
    site = site_of(spec)
    world = World(lengths=site.world.lengths, root_seed=7, stream="calibration", answers=site.world.answers)
    calls = [call for shard in sweep_calls(spec.job.sweep, "SmolLM2", [100]) for call in shard]
    assert entry.output_tokens == tuple(sorted(world.outcome(call, {}).output_tokens for call in calls))
    assert (site.world.stream, site.calibration_world.stream) == ("test", "calibration")


def test_recorded_lengths_reach_the_world(tmp_path: Path) -> None:
    log = write_lines(tmp_path / "log.jsonl", make_line())
    spec = make("workload=request_log", "pool=llama3_8b", "aggregator=none", f"workload.path={log}")
    (call,) = spec.job.workload.calls
    assert call.key == CallKey(call.key.question, PROPOSE, 0)
    assert site_of(spec).world.outcome(call, {}).output_tokens == 11


def test_the_load_scale_is_a_key_of_every_hardware() -> None:
    plain, slow = make("hardware=a100_80gb"), make("hardware.load_scale=2")
    shape = plain.job.experts[0].shape
    assert site_of(slow).hardware.load_s(shape, 1) == 2 * site_of(plain).hardware.load_s(shape, 1)
    for hardware in choices("hardware"):
        assert compose_config([f"hardware={hardware}"])["hardware"]["load_scale"] == 1.0


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
    assert (spec.job.site.name, spec.job.site.kind, spec.runs) == ("vllm", "measured", True)
    with patch("mosaic.config.engines.EngineBackend") as made:
        spec.job.site.backend({}, lambda call, inputs: "")
    given = made.call_args.kwargs
    assert (given["engines"].checkpoints, given["patience"].max_retries) == (Path("checkpoints"), 7)
    assert given["engines"].options == options_of("backend.device=cpu")


def test_a_second_driver_that_is_refused_ends_the_fork_server_of_its_check(questions: list[str]) -> None:
    made: list[LocalLauncher] = []

    def launcher(*given: Any) -> LocalLauncher:
        made.append(LocalLauncher(*given))
        return made[-1]

    fakes = {"LocalLauncher": launcher, "VLLM_ENGINE": FAKE_ENGINE, "loading_problems": lambda *given: []}
    with patch.multiple("mosaic.config.engines", **fakes):
        site = prepare(*questions, "cluster=local", "backend=vllm", "backend.device=cpu").job.site
        assert isinstance(site, EngineSite)
        assert not site.problems(False)
    assert made[0].fork_server_pid is not None
    with hold(site.journal), pytest.raises(InUseError), site.open():
        pass
    assert made[0].fork_server_pid is None


def test_no_device_is_a_gpu_where_all_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert find_device() is Device.CPU


def test_a_simulation_starts_no_engine(questions: list[str]) -> None:
    assert prepare(*questions).job.site.kind == "simulated"
    explained = prepare(*questions, "backend=none")
    assert (explained.job.site.kind, explained.runs) == ("simulated", False)


def test_a_published_workload_is_replayed_and_not_answered() -> None:
    site = prepare("backend=vllm", "backend.mode=replay", "backend.engine.load_format=dummy").job.site
    assert (site.kind, site.answers_source) == ("replayed", "fitted")


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
