"""Bad input ends with a status of failure and a message that names field, rule and value, and leaves no run behind.

TMP in overrides and messages stands for a folder that holds the files of the case.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mosaic.config.errors import exit_with_message
from mosaic.report.run_folder import is_complete
from tests.commands.command_line import DEMO, QUICK, SMALL, Outcome, run_here, run_point, run_process


@dataclass(frozen=True)
class Case:
    """Overrides that are bad, and what the message must say."""

    name: str
    overrides: str
    """One a line: their values may hold spaces."""
    says: Sequence[str]
    files: Mapping[str, str | bytes] = field(default_factory=dict)


LINE = '{"id": "a", "question": "Is 7 prime?", "experts": ["SmolLM2", "QwenHalf"]}\n'
ROUTED = '{"id": "a", "question": "Is 7 prime?", "skills": ["math"]}\n'
LOGGED = {
    "request_id": "r0", "input_toks": 10, "output_toks": 5,
    "queued_ts": 0.0, "scheduled_ts": 0.1, "first_token_ts": 0.2, "last_token_ts": 0.5,
}  # fmt: skip


def jsonl(name: str, text: str | bytes, says: Sequence[str], overrides: str = "") -> Case:
    """A case of workload=file with this file."""
    return Case(name, "\n".join([*DEMO, "workload.path=TMP/q.jsonl", overrides]), says, {"q.jsonl": text})


def table(name: str, text: str, says: Sequence[str]) -> Case:
    return Case(name, "\n".join([*DEMO, "workload.path=TMP/q.csv"]), says, {"q.csv": text})


def routed(name: str, skills: str, says: Sequence[str], overrides: str = "") -> Case:
    return Case(
        name,
        "\n".join([*DEMO, "workload.path=TMP/q.jsonl", "workload.profiles=TMP/skills.json", overrides]),
        says,
        {"q.jsonl": ROUTED, "skills.json": skills},
    )


def log(name: str, changes: Mapping[str, Any], says: Sequence[str]) -> Case:
    """A case of a request log whose second line is changed; a value of None takes the field away."""
    second = {key: value for key, value in {**LOGGED, "request_id": "r1", **changes}.items() if value is not None}
    text = "\n".join(map(json.dumps, (LOGGED, second)))
    return Case(name, "+experiment=replay\nworkload.path=TMP/log.jsonl", says, {"log.jsonl": text})


GROUPS = [
    Case("unknown_scheduler", "scheduler=foo", ["scheduler must be one of", "'ilp'", "'round_robin'", "got 'foo'"]),
    Case("unknown_workload", "workload=mmlu", ["workload must be one of", "'mmlu_pro'", "got 'mmlu'"]),
    Case("renamed_hardware", "hardware=h100_94gb", ["hardware=h100_94gb is now called hardware=flexicache_h100"]),
    Case("unknown_costs", "costs=free", ["costs must be one of ['affine', 'paper', 'piecewise'], got 'free'"]),
    Case("unknown_cluster", "cluster=h100x8", ["cluster must be one of", "got 'h100x8'"]),
    Case("unknown_key", "scheduler.foo=1", ["scheduler.foo must be a key", "'max_replicas'"]),
    Case("unknown_key_of_another_workload", "workload.path=q.jsonl", ["workload.path must be a key", "'slots'"]),
    Case("added_key", "+scheduler.foo=1", ["scheduler got an unexpected keyword argument 'foo'"]),
    Case("added_key_of_the_engine", "+backend.foo=1", ["backend got an unexpected keyword argument 'foo'"]),
    Case("added_key_of_an_expert", "+pool.experts.GLM.foo=1", ["pool.experts.GLM got an unexpected", "'foo'"]),
    Case("broken_override", "seed=[", ["override must be KEY=VALUE", "got 'seed=['"]),
    Case("group_taken_away", "~scheduler", ["scheduler must be given, got None"]),
    Case("group_without_keys", "plan=mine.json", ["plan must be a group of the configuration", "got 'mine.json'"]),
    Case("expert_taken_away", "pool.experts.GLM=null", ["pool.experts.GLM must be a group", "got None"]),
    Case("target_not_there", "scheduler._target_=mine.Best", ["scheduler._target_ must be importable", "'mine.Best'"]),
    Case("interpolation_of_nothing", "seed=${nope}", ["seed: Interpolation key 'nope' not found"]),
]
SEEDS = [
    Case("no_share", "profile.max_batch_frac=0", ["profile.max_batch_frac must be above 0, got 0"]),
    Case("seed_of_letters", "seed=abc", ["seed must be a whole number, got 'abc'"]),
    Case("seed_below_zero", "seed=-1", ["seed must be at least 0, got -1"]),
    Case("seed_between_numbers", "seed=1.5", ["seed must be a whole number, got 1.5"]),
    Case("seed_of_the_profile", "profile.seed=x", ["profile.seed must be a whole number, got 'x'"]),
]
SLOTS_TABLES = [
    Case(
        "unknown_expert_in_slots",
        "+workload.slots.Foo=3\nworkload.slots.Gemma=1629",
        ["workload mmlu_pro, call mmlu_pro-", "expert must be one of the pool", "'GLM'", "got 'Foo'"],
    ),
    Case("negative_slots", "workload.slots.Gemma=-1", ["workload.slots.Gemma must be at least 0, got -1"]),
    Case("slots_of_letters", "workload.slots.Gemma=many", ["workload.slots.Gemma must be a whole number, got 'many'"]),
    Case("wrong_sum_of_slots", "workload.slots.Gemma=1", ["workload.slots: sum must be", "6300", "got 4669"]),
    Case("no_questions", "workload.num_questions=0", ["workload.num_questions must be at least 1, got 0"]),
    Case("no_slot_table", "workload.slots=null", ["workload.slots must be a mapping", "got None"]),
]
LIMITS = [
    Case(
        "k_too_small",
        "\n".join(["scheduler.max_experts_per_worker=1", *QUICK]),
        ["max_experts_per_worker K=1 is too small: 6 experts need 6 places and 4 workers offer 4"],
    ),
    Case("k_of_zero", "scheduler.max_experts_per_worker=0", ["max_experts_per_worker must be at least 1, got 0"]),
    Case("replicas_of_zero", "scheduler.max_replicas=0", ["scheduler.max_replicas must be at least 1, got 0"]),
    Case("cap_of_zero", "pool.experts.GLM.max_replicas=0", ["expert GLM: max_replicas must be at least 1, got 0"]),
    Case(
        "cap_of_unknown_expert",
        "\n".join(["scheduler.max_replicas={Nobody: 1}", *SMALL, *QUICK]),
        ["scheduler.max_replicas: expert must be one of", "'GLM'", "got 'Nobody'"],
    ),
    Case("no_time", "scheduler.time_limit_s=0", ["scheduler.time_limit_s must be above 0, got 0"]),
    Case("negative_time", "scheduler.time_limit_s=-1", ["scheduler.time_limit_s must be above 0, got -1"]),
    Case("endless_time", "scheduler.time_limit_s=inf", ["scheduler.time_limit_s must be finite, got inf"]),
    Case(
        "no_window",
        "scheduler=fifo\nscheduler.window_questions=0",
        ["scheduler.window_questions must be at least 1, got 0"],
    ),
    Case(
        "option_of_letters",
        "scheduler=least_loaded\nscheduler.longest_first=maybe",
        ["scheduler.longest_first must be true or false, got 'maybe'"],
    ),
]
MACHINES = [
    Case(
        "sparse_kv_with_prefix_caching",
        "backend.order=mixed\npool.experts.LlamaR1.kv={policy: flexicache}",
        ["engine.enable_prefix_caching must be false with expert LlamaR1's kv=flexicache"],
    ),
    Case(
        "sparse_kv_by_another_name",
        "pool.experts.LlamaR1.kv={policy: magic}",
        ["expert.kv: policy must be one of ['flexicache'], got 'magic'"],
    ),
    Case(
        "sparse_kv_with_an_unknown_key",
        "pool.experts.LlamaR1.kv={budget: 64}",
        ["pool.experts.LlamaR1", "budget"],
    ),
    Case(
        "sparse_kv_without_a_link",
        "pool.experts.LlamaR1.kv={policy: flexicache}\nhardware.host_link_bytes_per_s=null",
        ["hardware a100_80gb: host_link_bytes_per_s must be given for expert LlamaR1's kv=flexicache, got null"],
    ),
    Case(
        "model_larger_than_the_gpu",
        "hardware.memory_gib=10",
        ["expert Gemma must fit", "hardware.memory_gib=10", "17.2 GiB of weights", "context_tokens=8192"],
    ),
    Case("no_memory", "hardware.memory_gib=0", ["memory_gib must be above 0, got 0"]),
    Case("no_workers", "cluster.num_workers=0", ["num_workers must be at least 1, got 0"]),
    Case("negative_workers", "cluster.num_workers=-2", ["num_workers must be at least 1, got -2"]),
    Case("half_a_worker", "cluster.num_workers=1.5", ["num_workers must be a whole number, got 1.5"]),
    Case("wide_expert", "pool.experts.GLM.tp_degree=8", ["expert GLM: tp_degree must be at most num_workers=4, got 8"]),
    Case("unknown_family", "pool.experts.GLM.family=chatty", ["family must be one of", "'reasoning'", "got 'chatty'"]),
    Case("experts_of_one_name", "pool.experts.GLM.name=Qwen", ["pool.experts: name must be unique, got 'Qwen' twice"]),
    Case("expert_without_shape", "pool.experts.GLM.shape=null", ["expert GLM: shape must be a ModelShape, got None"]),
]
FILES = [
    jsonl("empty_workload", "", ["TMP/q.jsonl must be a file with at least one question"]),
    Case(
        "file_not_there", "\n".join([*DEMO, "workload.path=TMP/none.jsonl"]), ["workload.path", "none.jsonl", "No such"]
    ),
    Case("no_file_named", "\n".join(DEMO), ["workload.path must be given"]),
    Case("folder_for_a_file", "\n".join([*DEMO, "workload.path=TMP"]), ["workload.path must be a file", "got 'TMP'"]),
    Case("other_suffix", "\n".join([*DEMO, "workload.path=q.txt"]), ["workload.path", "'.jsonl'", "got 'q.txt'"]),
    jsonl("binary_file", b"\xff\xfe\x00\x01", ["workload.path must be UTF-8 text", "q.jsonl"]),
    jsonl("line_not_json", LINE + "hello\n", ["TMP/q.jsonl, line 2: must be JSON, got 'hello'"]),
    jsonl("list_for_a_line", "[1]\n", ["TMP/q.jsonl: must have an object a line, got an array", ".json files"]),
    jsonl("nan_length", '{"id": "a", "prompt_tokens": NaN}', ["line 1: prompt_tokens must be a whole number, got nan"]),
    jsonl("negative_length", '{"id": "a", "prompt_tokens": -4}', ["line 1: prompt_tokens must be at least 1, got -4"]),
    jsonl("length_of_text", '{"id": "a", "prompt_tokens": "9"}', ["prompt_tokens must be a whole number, got '9'"]),
    jsonl("nan_output", LINE[:-2] + ', "output_tokens": NaN}', ["output_tokens must be a whole number, got nan"]),
    jsonl(
        "lengths_on_some_lines",
        LINE[:-2] + ', "output_tokens": 5}\n' + LINE.replace('"a"', '"b"'),
        ["TMP/q.jsonl, line 2: output_tokens must be on every line or on none"],
    ),
    jsonl("lengths_for_other_slots", LINE[:-2] + ', "output_tokens": [5]}', ["must be a list of 2", "[5]"]),
    jsonl("duplicate_id", LINE + LINE, ["TMP/q.jsonl, line 2: id must be unique, got 'a'"]),
    jsonl("empty_id", LINE.replace('"a"', '""', 1), ["line 1: id must be a non-empty string"]),
    jsonl("unknown_key_in_a_line", LINE[:-2] + ', "expert": 1}', ["line 1: key must be one of", "got 'expert'"]),
    jsonl("unknown_expert_in_a_line", LINE.replace("QwenHalf", "Nobody"), ["call a/propose/1: expert", "got 'Nobody'"]),
    jsonl("no_experts_in_a_list", LINE.replace('"SmolLM2", "QwenHalf"', ""), ["experts must be a list with at least"]),
    jsonl("empty_question", LINE.replace("Is 7 prime?", " "), ["line 1: question must be a non-empty string, got ' '"]),
    jsonl(
        "prompt_beyond_the_context",
        '{"id": "a", "prompt_tokens": 5000, "experts": ["SmolLM2"]}',
        ["call a/propose/0: prompt_tokens must be below context_tokens=2048 of SmolLM2, got 5150"],
    ),
    jsonl("negative_template", LINE, ["template_tokens must be at least 0, got -1"], "workload.template_tokens=-1"),
    table("missing_column", "id,answer\n1,2\n", ["TMP/q.csv: columns", "['question']", "got ['id', 'answer']"]),
    table("solvers_not_a_list", "question,solvers\nx,SmolLM2\n", ["row 1: solvers must be a Python list", "'SmolLM2'"]),
    table("ragged_row", "question,solvers\nx\n", ["TMP/q.csv, row 1: must have 2 columns"]),
]  # fmt: skip
ROUTING = [
    jsonl("unrouted_without_profiles", ROUTED, ["TMP/q.jsonl, line 1: experts", "workload.profiles"]),
    routed("profiles_not_json", "{", ["TMP/skills.json: not JSON"]),
    routed("profiles_without_scores", '{"SmolLM2": 3}', ["skills.json: [...]: Expected `object`, got `int`"]),
    routed("profiles_of_an_unknown_expert", '{"Nobody": {"math": 3}}', ["expert must be one of the pool", "'Nobody'"]),
    routed(
        "no_slots_to_recruit",
        '{"SmolLM2": {"math": 2}}',
        ["num_slots must be at least 1, got 0"],
        "workload.num_slots_per_question=0",
    ),
]
COSTS = [
    Case("profile_not_there", "profile.path=TMP/none.json", ["profile TMP/none.json: cannot be read (No such file"]),
    Case(
        "profile_of_another_kind",
        "profile.path=TMP/p.json",
        ["profile TMP/p.json: the file: Expected `object`, got `array`"],
        {"p.json": "[1]"},
    ),
    Case(
        "profile_without_a_key",
        "profile.path=TMP/p.json",
        ["profile TMP/p.json: entries[0]: Object missing required field `gpu`"],
        {"p.json": '{"source": "x", "entries": [{"expert": "GLM"}]}'},
    ),
    Case(
        "profile_lacks_an_expert",
        "profile.path=TMP/p.json",
        ["profile 'mine' has no lengths for expert 'Gemma'", "it covers []"],
        {"p.json": '{"source": "mine", "entries": []}'},
    ),
    Case("profile_of_a_number", "profile.path=5", ["profile.path must be a string or null, got 5"]),
    Case("sweep_of_one_size", "profile.sweep.shard_sizes=[128]", ["must be at least two sizes, got (128,)"]),
    Case("sweep_of_no_calls", "profile.sweep.shard_sizes=[0, 128]", ["shard_sizes must be at least 1, got 0"]),
    Case("sweep_of_text", "profile.sweep.shard_sizes=big", ["shard_sizes must be a list of whole numbers, got 'big'"]),
    Case("sweep_of_no_repeats", "profile.sweep.num_repeats=0", ["num_repeats must be at least 1, got 0"]),
]  # fmt: skip
ENGINES = [
    Case(
        "unknown_order", "backend.order=foo", ["order must be one of ['prefill_first', 'chunked', 'mixed'], got 'foo'"]
    ),
    Case("no_sequences", "backend.max_num_seqs=0", ["max_num_seqs must be at least 1, got 0"]),
    Case(
        "few_batched_tokens",
        "backend.order=mixed\nbackend.max_num_batched_tokens=10",
        ["max_num_batched_tokens must be at least max_num_seqs=256", "got 10"],
    ),
    Case(
        "prompt_beyond_the_batched_tokens",
        "\n".join(["backend.max_num_batched_tokens=100", *SMALL, *QUICK]),
        ["prompt_tokens + output_tokens - 1 must be at most 100", "got "],
    ),
    Case(
        "prompt_beyond_the_kv_cache",
        "\n".join(["backend.kv_cache_tokens=100", *SMALL, *QUICK]),
        ["prompt_tokens + output_tokens - 1 must be at most 96", "KV blocks", "got "],
    ),
    Case(
        "less_than_a_block",
        "\n".join(["backend.kv_cache_tokens=8", *SMALL, *QUICK]),
        ["kv_cache_tokens must be", "got 8"],
    ),
    Case(
        "unknown_backend",
        "backend.name=tpu",
        ["backend.name must be sim, as mosaic.config.sites.simulated is, got 'tpu'"],
    ),
]
LENGTHS = [
    Case("no_spread", "world.output_tokens.GLM.sigma.value=0", ["output_tokens.GLM: sigma must be above 0, got 0"]),
    Case(
        "mean_above_the_clip",
        "world.output_tokens.GLM.mean.value=9999",
        ["output_tokens.GLM: mean must be below clip_tokens=4096, got 9999"],
    ),
    Case("number_without_source", "world.output_tokens.GLM.mean=300", ["GLM.mean must be {value", "got 300"]),
    Case(
        "unknown_source",
        "world.output_tokens.GLM.mean.source=guess",
        ["output_tokens.GLM.mean.source must be one of", "'assumed'", "got 'guess'"],
    ),
    Case("parameter_taken_away", "~world.output_tokens.GLM.sigma", ["output_tokens.GLM: keys must be", "'mean'"]),
    Case(
        "lengths_taken_away",
        "~world.output_tokens.GLM",
        ["output_tokens must have a length distribution for expert 'GLM'", "add world.output_tokens.GLM"],
    ),
    Case(
        "lengths_not_a_table",
        "world.output_tokens=TMP/calls.parquet",
        ["output_tokens: TMP/calls.parquet must be a readable parquet file"],
        {"calls.parquet": "x"},
    ),
    Case("negative_scale", "world.length_scale={value: -1, source: assumed}", ["length_scale.value", "above 0"]),
]  # fmt: skip
LOGS = [
    log("log_lacks_a_field", {"input_toks": None}, ["TMP/log.jsonl, line 2: input_toks must be given"]),
    log("log_goes_back", {"first_token_ts": 0.05}, ["first_token_ts must be at least scheduled_ts=0.1, got 0.05"]),
    log("log_of_negative_tokens", {"output_toks": -4}, ["line 2: output_toks must be at least 1, got -4"]),
    log("log_of_text", {"queued_ts": "noon"}, ["line 2: queued_ts must be a number, got 'noon'"]),
    log("log_of_one_request_twice", {"request_id": "r0"}, ["line 2: request_id must be unique, got 'r0' twice"]),
    Case("log_not_there", "+experiment=replay\nworkload.path=TMP/none", ["workload.path", "TMP/none", "No such file"]),
]  # fmt: skip
PLANS = [
    Case("plan_not_there", "plan.path=TMP/none.json", ["plan TMP/none.json: cannot be read (No such file"]),
    Case("plan_not_json", "plan.path=TMP/p.json", ["TMP/p.json: not JSON (JSON is malformed"], {"p.json": "hello"}),
    Case(
        "plan_without_keys", "plan.path=TMP/p.json", ["layers must be the plans of one layer or more"], {"p.json": "{}"}
    ),
    Case("plan_of_a_number", "plan.path=7", ["plan.path must be a string or null, got 7"]),
]
SAVED = [Case(case.name, "\n".join([case.overrides, *SMALL, *QUICK]), case.says, case.files) for case in PLANS]
CASES = [
    *GROUPS, *SEEDS, *SLOTS_TABLES, *LIMITS, *MACHINES, *FILES, *ROUTING, *COSTS, *ENGINES, *LENGTHS, *LOGS, *SAVED
]  # fmt: skip

IN_A_PROCESS = (
    "unknown_scheduler", "unknown_key", "k_too_small", "file_not_there",
)  # fmt: skip
"""Run once more as a user runs them: the rest goes through the same function in this process."""


def write_files(case: Case, tmp_path: Path) -> list[str]:
    """Write the files of a case; return its overrides."""
    for name, content in case.files.items():
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return [line.replace("TMP", str(tmp_path)) for line in case.overrides.splitlines() if line]


def assert_refused(outcome: Outcome, says: Sequence[str], tmp_path: Path) -> None:
    """Check status and message, and that nothing below the folder looks like a complete run."""
    assert outcome.status == 2
    assert "Traceback" not in outcome.out + outcome.err
    assert outcome.err.startswith("error: ")
    for fragment in says:
        assert fragment.replace("TMP", str(tmp_path)) in outcome.err
    assert not list(tmp_path.rglob("summary.json"))
    assert not any(is_complete(folder) for folder in (tmp_path, *tmp_path.rglob("*")))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_is_refused_with_a_message(case: Case, tmp_path: Path) -> None:
    outcome = run_point(*write_files(case, tmp_path), f"hydra.run.dir={tmp_path / 'run'}")
    assert_refused(outcome, case.says, tmp_path)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_A_PROCESS)
def test_a_command_with_bad_input_fails(name: str, tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == name)
    outcome = run_process(*write_files(case, tmp_path), cwd=tmp_path)
    assert_refused(outcome, case.says, tmp_path)
    assert outcome.out == ""


def test_every_case_has_a_name_of_its_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 45


@pytest.fixture(scope="module")
def saved_plan(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A plan of the small workload, as JSON."""
    folder = tmp_path_factory.mktemp("plan")
    assert run_point(*SMALL, *QUICK, "backend=none", f"hydra.run.dir={folder}").status == 0
    (plan,) = json.loads((folder / "plan.json").read_text())["layers"]
    assert isinstance(plan, dict)
    return plan


def drop_a_call(plan: dict[str, Any]) -> None:
    plan["sessions"][-1]["shard"].pop()


def double_a_call(plan: dict[str, Any]) -> None:
    plan["sessions"][-1]["shard"].append(plan["sessions"][-1]["shard"][0])


def name_an_unknown_call(plan: dict[str, Any]) -> None:
    plan["sessions"][0]["shard"][0] = ["another-question", "propose", 0]


def name_another_expert(plan: dict[str, Any]) -> None:
    other = next(
        session["expert"] for session in plan["sessions"] if session["expert"] != plan["sessions"][0]["expert"]
    )
    plan["sessions"][0]["expert"] = other


def name_an_unknown_expert(plan: dict[str, Any]) -> None:
    plan["sessions"][0]["expert"] = "Nobody"


def name_an_unknown_worker(plan: dict[str, Any]) -> None:
    plan["sessions"][0]["workers"] = [9]


def wait_for_a_later_session(plan: dict[str, Any]) -> None:
    plan["sessions"][0]["after"] = [plan["sessions"][-1]["id"]]


def give_no_workers(plan: dict[str, Any]) -> None:
    plan["sessions"][0]["workers"] = []


def forge_the_fingerprint(plan: dict[str, Any]) -> None:
    plan["problem_fingerprint"] = "0123456789abcdef"


@pytest.mark.parametrize(
    "spoil,says",
    [
        (drop_a_call, ["plan drops call mmlu_pro-"]),
        (double_a_call, ["call mmlu_pro-", "must be served once, it is served twice"]),
        (name_an_unknown_call, ["plan session", "call another-question/propose/0 is not a call of this problem"]),
        (name_another_expert, ["plan session", "is for expert", "got "]),
        (name_an_unknown_expert, ["plan session", "expert must be one of", "'Gemma'", "got 'Nobody'"]),
        (name_an_unknown_worker, ["plan session", "workers must be in 0 .. 3, got 9"]),
        (wait_for_a_later_session, ["plan session", "after must name earlier sessions, got"]),
        (give_no_workers, ["workers must be at least one worker, got ()"]),
        (forge_the_fingerprint, ["plan was made for another problem", "got 0123456789abcdef"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_plan_that_breaks_its_problem_is_refused(
    saved_plan: dict[str, Any], spoil: Callable[[dict[str, Any]], None], says: list[str], tmp_path: Path
) -> None:
    plan = json.loads(json.dumps(saved_plan))
    spoil(plan)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"layers": [plan]}))
    outcome = run_point(*SMALL, *QUICK, f"plan.path={path}", f"hydra.run.dir={tmp_path / 'run'}")
    assert_refused(outcome, says, tmp_path)


@pytest.mark.parametrize(
    "override,says",
    [
        ("cluster.num_workers=3 aggregator=dp", ["plan is for 4 workers, the cluster has 3"]),
        ("workload=medmcqa", ["is not a call of this problem; was the plan made for another?"]),
        ("workload.template_tokens=7", ["plan was made for another problem: fingerprint must be"]),
    ],
)
def test_a_plan_for_another_problem_is_refused(
    saved_plan: dict[str, Any], override: str, says: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"layers": [saved_plan]}))
    outcome = run_point(*override.split(), *SMALL, *QUICK, f"plan.path={path}", f"hydra.run.dir={tmp_path / 'run'}")
    assert_refused(outcome, says, tmp_path)


@pytest.mark.parametrize("below", [False, True])
def test_a_file_in_the_place_of_the_folder_is_refused(below: bool, tmp_path: Path) -> None:
    path = tmp_path / "in_the_way"
    path.write_text("mine")
    folder = path / "run" if below else path
    outcome = run_here(f"hydra.run.dir={folder}")
    assert_refused(outcome, ["folder must be one that can be made", "in_the_way", "a file is in the way"], tmp_path)
    assert path.read_text() == "mine"


def test_a_folder_of_too_long_a_name_is_refused(tmp_path: Path) -> None:
    outcome = run_point(f"hydra.run.dir={tmp_path / ('x' * 300)}")
    assert_refused(outcome, ["folder must have a shorter name", "xxx", "hydra.sweep.subdir"], tmp_path)


def test_a_complete_run_is_not_overwritten_by_another_configuration(tmp_path: Path) -> None:
    where = f"hydra.run.dir={tmp_path / 'run'}"
    assert run_point(*SMALL, *QUICK, "backend=none", where).status == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    outcome = run_point(*SMALL, *QUICK, "backend=none", "seed=7", where)
    assert outcome.status == 2
    assert "holds the complete run of another configuration" in outcome.err
    assert "seed is 0 there and 7 here" in outcome.err
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


@pytest.mark.slow
def test_a_bad_point_does_not_stop_a_sweep_and_fails_it(tmp_path: Path) -> None:
    outcome = run_here(
        "-m", *SMALL, *QUICK, "backend=none", "aggregator=dp", "cluster.num_workers=0,2",
        f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=${hydra:job.num}",
    )  # fmt: skip
    assert outcome.status == 2
    assert "error: 0: cluster a100x4: num_workers must be at least 1, got 0" in outcome.err
    assert "Traceback" not in outcome.err
    assert [is_complete(tmp_path / number) for number in "01"] == [False, True]


def test_a_traceback_is_shown_to_those_who_ask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOSAIC_TRACEBACK", "1")
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        run_point("seed=-1", f"hydra.run.dir={tmp_path / 'run'}")


def test_our_own_mistakes_too_show_their_traceback_to_those_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOSAIC_TRACEBACK", "1")
    with pytest.raises(KeyError), exit_with_message():
        raise KeyError("ours")


def test_an_interrupt_ends_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop, exit_with_message():
        raise KeyboardInterrupt
    assert stop.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"
