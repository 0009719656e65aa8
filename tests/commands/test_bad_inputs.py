"""Bad input ends with a status of failure and a message that names field, rule and value, and leaves no run behind.

Limits of fields and bad lines of files are tested where they are checked (core, workloads, planning, pipelines, sim).
Here is what the configuration and the command check, and one case or two of each group and of each kind of file.
TMP in overrides and messages stands for a folder that holds the files of the case.
"""

import json
from pathlib import Path

import pytest

from mosaic.config.errors import exit_with_message
from mosaic.pipelines.rules.calibration_file import encode_calibration_answers
from mosaic.report.run_folder import is_complete
from tests.calibration_questions import SETTING, make_question
from tests.commands.command_line import DEMO, QUICK, SMALL, Outcome, run_here, run_point, run_process

GROUPS = [
    ("scheduler=foo", "scheduler must be one of ... 'ilp' ... 'round_robin' ... got 'foo'"),
    ("workload=mmlu", "workload must be one of ... 'mmlu_pro' ... got 'mmlu'"),
    ("hardware=h100_94gb", "hardware=h100_94gb is now called hardware=flexicache_h100"),
    ("costs=free", "costs must be one of ['affine', 'paper', 'piecewise'], got 'free'"),
    ("cluster=h100x8", "cluster must be one of ... got 'h100x8'"),
    ("gate=nonsense", "gate must be one of ... 'calibrated' ... 'weighted' ... got 'nonsense'"),
    ("aggregator=nonsense", "aggregator must be one of ... 'auto' ... got 'nonsense'"),
    ("backend.name=tpu", "backend.name must be sim, as mosaic.config.sites.simulated is, got 'tpu'"),
    ("scheduler.foo=1", "scheduler.foo must be a key ... 'max_replicas'"),
    ("workload.path=q.jsonl", "workload.path must be a key ... 'slots'"),
    ("gate.foo=1", "gate.foo must be a key of the configuration, one of ['tau']"),
    ("+scheduler.foo=1", "scheduler got an unexpected keyword argument 'foo'"),
    ("+backend.foo=1", "backend got an unexpected keyword argument 'foo'"),
    ("+pool.experts.GLM.foo=1", "pool.experts.GLM got an unexpected ... 'foo'"),
    ("pool.experts.LlamaR1.kv={budget: 64}", "pool.experts.LlamaR1 ... budget"),
    ("gate=never; +gate.tau=1", "gate got an unexpected keyword argument 'tau'"),
    ("+aggregator.foo=1", "aggregator.foo must be a key of the configuration, one of ["),
    ("+world.answers.foo=1", "world.answers.foo must be a key of the configuration, one of ["),
    ("seed=[", "override must be KEY=VALUE ... got 'seed=['"),
    ("~scheduler", "scheduler must be given, got None"),
    ("~gate", "gate must be given, got None"),
    ("~aggregator", "aggregator must be given, got None"),
    ("plan=mine.json", "plan must be a group of the configuration ... got 'mine.json'"),
    ("pool.experts.GLM=null", "pool.experts.GLM must be a group ... got None"),
    ("world.answers=5", "world.answers must be a group ... got 5"),
    (
        "world.answers.ability_by_expert=3",
        "world.answers.ability_by_expert must be a group of the configuration ... got 3",
    ),
    ("scheduler._target_=mine.Best", "scheduler._target_ must be importable ... 'mine.Best'"),
    ("gate._target_=mine.Gate", "gate._target_ must be importable, got 'mine.Gate'"),
    ("seed=${nope}", "seed: Interpolation key 'nope' not found"),
]
"""What Hydra's configuration lacks, or has too much."""
VALUES = [
    ("profile.max_batch_frac=0", "profile.max_batch_frac must be above 0, got 0"),
    ("seed=abc", "seed must be a whole number, got 'abc'"),
    ("seed=-1", "seed must be at least 0, got -1"),
    ("profile.seed=x", "profile.seed must be a whole number, got 'x'"),
    ("profile.path=5", "profile.path must be a string or null, got 5"),
    ("plan.path=7", "plan.path must be a string or null, got 7"),
    ("profile.sweep.shard_sizes=[128]", "must be at least two sizes, got (128,)"),
    ("workload.slots.Gemma=-1", "workload.slots.Gemma must be at least 0, got -1"),
    ("workload.slots=null", "workload.slots must be a mapping ... got None"),
    ("scheduler.time_limit_s=inf", "scheduler.time_limit_s must be finite, got inf"),
    ("cluster.num_workers=0", "num_workers must be at least 1, got 0"),
    ("backend.order=foo", "order must be one of ['prefill_first', 'chunked', 'mixed'], got 'foo'"),
    ("gate.tau=nan", "gate.tau must be finite, got nan"),
    ("gate=calibrated; gate.calibration=5", "gate.calibration must be a string, got 5"),
    ("gate=calibrated", "gate.calibration must be given"),
    ("gate=weighted", "gate.calibration must be given"),
    ("pool.experts.GLM.shape=null", "expert GLM: shape must be a ModelShape, got None"),
    ("aggregator.tp_degrees=[]", "aggregator.tp_degrees must be at least one value, got []"),
    ("aggregator.tp_degrees=[0]", "aggregator.tp_degrees[0] must be at least 1, got 0"),
    ("aggregator.tp_degrees=4", "tp_degrees must be a list, got 4"),
    ("aggregator.tp_degrees=abc", "tp_degrees must be a list, got 'abc'"),
    ("aggregator.tp_degrees=[1.5]", "aggregator.tp_degrees[0] must be a whole number, got 1.5"),
    ("aggregator.expert=[GLM]", "aggregator.expert must be a string or null, got ['GLM']"),
    ("aggregator.min_output_tokens=0", "aggregator.min_output_tokens must be at least 1, got 0"),
    ("aggregator.name=null", "aggregator.name must be a string, got None"),
    ("aggregator.comparison=5", "aggregator.comparison must be a string or null, got 5"),
    ("aggregator.comparison=no.such.function", "comparison must be importable, got 'no.such.function' ... No module"),
    ("aggregator.comparison=math.pi", "comparison must be something that can be called, got 'math.pi'"),
    ("aggregator.comparison=json.dumps", "aggregator.comparison must take two answers, got 'json.dumps' ... too many"),
    ("world.output_tokens.GLM.mean=300", "GLM.mean must be {value ... got 300"),
    ("~world.output_tokens.GLM.sigma", "output_tokens.GLM: keys must be ... 'mean'"),
    ("world.length_scale={value: -1, source: assumed}", "length_scale.value ... above 0"),
    ("world.merged_tokens.LlamaR1=null", "world.merged_tokens.LlamaR1 must be a mapping, got None"),
    ("world.merged_tokens.LlamaR1.mean.value=0", "world.merged_tokens.LlamaR1: mean must be at least 1, got 0"),
    ("world.answers.discrimination.value=-1", "world.answers.discrimination must be at least 0, got -1"),
    ("world.answers.mean_ability.value=nan", "mean_ability.value must be finite, got nan"),
    ("~world.answers.deference", "world.answers.deference must be given ... got None"),
    ("world.answers.deference=0.5", "world.answers.deference must be {value: NUMBER, source: one of ... got 0.5"),
    ("world.answers.deference.source=guess", "world.answers.deference.source must be one of ... got 'guess'"),
    ("world.answers.ability_by_expert.GLM=3", "world.answers.ability_by_expert.GLM must be {value: NUMBER ... got 3"),
    ("world.answers.visible_tokens.value=0", "world.answers.visible_tokens.value must be at least 1, got 0"),
]
"""One or two of each field that the configuration reads; types' other limits are tested with the types."""
TOGETHER = [
    (
        "; ".join(["scheduler.max_experts_per_worker=1", *QUICK]),
        "max_experts_per_worker K=1 is too small: 6 experts need 6 places and 4 workers offer 4",
    ),
    (
        "; ".join(["scheduler.max_replicas={Nobody: 1}", *SMALL, *QUICK]),
        "scheduler.max_replicas: expert must be one of ... 'GLM' ... got 'Nobody'",
    ),
    ("pool.experts.GLM.tp_degree=8", "expert GLM: tp_degree must be at most num_workers=4, got 8"),
    ("pool.experts.GLM.name=Qwen", "pool.experts: name must be unique, got 'Qwen' twice"),
    ("hardware.memory_gib=10", "expert Gemma must fit ... hardware.memory_gib=10 ... 17.2 GiB of weights ... 8192"),
    (
        "backend.order=mixed; pool.experts.LlamaR1.kv={policy: flexicache}",
        "engine.enable_prefix_caching must be false with expert LlamaR1's kv=flexicache",
    ),
    (
        "pool.experts.LlamaR1.kv={policy: flexicache}; hardware.host_link_bytes_per_s=null",
        "hardware a100_80gb: host_link_bytes_per_s must be given for expert LlamaR1's kv=flexicache, got null",
    ),
    (
        "; ".join(["backend.max_num_batched_tokens=100", *SMALL, *QUICK]),
        "prompt_tokens + output_tokens - 1 must be at most 100 ... got ",
    ),
    ("~world.output_tokens.GLM", "must have a length distribution for expert 'GLM' ... add world.output_tokens.GLM"),
    ("aggregator.tp_degrees=[8]", "must be at most cluster.num_workers=4, got [8] ... aggregator=dp"),
    ("cluster.num_workers=2", "at most cluster.num_workers=2, got [4] ... or none for the"),
    (
        "aggregator=none; +aggregator.tp_degrees=[4]",
        "aggregator.tp_degrees must be a key ... one of ['name'] there ... got [4]",
    ),
    (
        "workload.aggregator=null; ~pool.aggregator",
        "aggregator.expert must be given, or workload.aggregator or pool.agg",
    ),
    ("workload.aggregator=5", "workload.aggregator must be one of the pool ... got 5"),
    ("+workload.aggregator.foo=1", "workload.aggregator must be one of the pool ['LlamaR1', ... got {'foo': 1}"),
]
"""What does not go together."""
LINE = '{"id": "a", "question": "Is 7 prime?", "experts": ["SmolLM2", "QwenHalf"]}\n'
DEMO_FILE = "; ".join([*DEMO, "workload.path=TMP/file.jsonl"])
SAVED = "; ".join(["plan.path=TMP/file.jsonl", *SMALL, *QUICK])
GOOD = encode_calibration_answers([make_question(f"c{i}", "AAA" if i % 2 else "AAB") for i in range(40)], SETTING)
FILES = [
    ("; ".join(DEMO), None, "workload.path must be given"),
    (DEMO_FILE, None, "workload.path ... file.jsonl ... No such"),
    ("; ".join([*DEMO, "workload.path=TMP"]), None, "workload.path must be a file ... got 'TMP'"),
    (DEMO_FILE, "", "TMP/file.jsonl must be a file with at least one question"),
    (DEMO_FILE, LINE + "hello\n", "TMP/file.jsonl, line 2: must be JSON, got 'hello'"),
    (DEMO_FILE, LINE.replace("QwenHalf", "Nobody"), "call a/propose/1: expert ... got 'Nobody'"),
    (
        DEMO_FILE,
        '{"id": "a", "prompt_tokens": 5000, "experts": ["SmolLM2"]}',
        "call a/propose/0: prompt_tokens must be below context_tokens=2048 of SmolLM2, got 5150",
    ),
    (f"{DEMO_FILE}; ~pool.aggregator", LINE, "aggregator.expert must be given ... aggregator=none"),
    (f"{DEMO_FILE}; pool.aggregator=Nobody", LINE, "pool.aggregator must be one of the pool ['SmolLM2', 'QwenHalf']"),
    (
        f"{DEMO_FILE}; workload.profiles=TMP/file.jsonl",
        '{"id": "a", "question": "Is 7 prime?", "skills": ["math"]}\n',
        "skill profiles TMP/file.jsonl",
    ),
    ("+experiment=replay; workload.path=TMP/file.jsonl", "{}", "TMP/file.jsonl, line 1: "),
    ("profile.path=TMP/file.jsonl", "[1]", "profile TMP/file.jsonl: the file: Expected `object`, got `array`"),
    (
        "profile.path=TMP/file.jsonl",
        '{"source": "mine", "entries": []}',
        "profile 'mine' has no lengths for expert 'Gemma' ... it covers []",
    ),
    (
        "profile.aggregator_path=TMP/file.jsonl",
        '{"source": "mine", "entries": []}',
        "profile 'mine' has no entry for expert 'LlamaR1' on 4 x a100_80gb",
    ),
    ("world.output_tokens=TMP/calls.parquet", None, "output_tokens: TMP/calls.parquet must be a readable parquet file"),
    (SAVED, None, "plan TMP/file.jsonl: cannot be read (No such file"),
    (SAVED, "hello", "TMP/file.jsonl: not JSON (JSON is malformed"),
    (
        "gate=calibrated; gate.calibration=TMP/file.jsonl",
        "hello",
        "TMP/file.jsonl: must be a parquet table of calibration",
    ),
    (
        "gate=calibrated; gate.calibration=TMP/file.jsonl",
        GOOD,
        "must hold answers of what runs here, got TMP/file.jsonl ... workload is 'letters' there and 'mmlu_pro' here",
    ),
]
"""Each kind of file: with the overrides, its content, None where it is not there."""
IN_A_PROCESS = (GROUPS[0], TOGETHER[0])
"""Run once more as a user runs them: the rest goes through the same function in this process."""


def given(overrides: str, tmp_path: Path) -> list[str]:
    return overrides.replace("TMP", str(tmp_path)).split("; ")


def assert_refused(outcome: Outcome, says: str, tmp_path: Path) -> None:
    """Check status and message, and that nothing below the folder looks like a complete run."""
    assert outcome.status == 2
    assert "Traceback" not in outcome.out + outcome.err
    assert outcome.err.startswith("error: ")
    for fragment in says.split(" ... "):
        assert fragment.replace("TMP", str(tmp_path)) in outcome.err
    assert not list(tmp_path.rglob("summary.json"))
    assert not any(is_complete(folder) for folder in (tmp_path, *tmp_path.rglob("*")))


@pytest.mark.parametrize(("overrides", "says"), [*GROUPS, *VALUES, *TOGETHER])
def test_bad_input_is_refused_with_a_message(overrides: str, says: str, tmp_path: Path) -> None:
    outcome = run_point(*given(overrides, tmp_path), f"hydra.run.dir={tmp_path / 'run'}")
    assert_refused(outcome, says, tmp_path)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("overrides", "content", "says"), FILES)
def test_a_bad_file_is_refused_with_a_message(
    overrides: str, content: str | bytes | None, says: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "file.jsonl").write_bytes(content.encode() if isinstance(content, str) else content)
    outcome = run_point(*given(overrides, tmp_path), f"hydra.run.dir={tmp_path / 'run'}")
    assert_refused(outcome, says, tmp_path)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("overrides", "says"), IN_A_PROCESS)
def test_a_command_with_bad_input_fails(overrides: str, says: str, tmp_path: Path) -> None:
    outcome = run_process(*given(overrides, tmp_path), cwd=tmp_path)
    assert_refused(outcome, says, tmp_path)
    assert outcome.out == ""


def test_a_plan_of_other_calls_is_refused(tmp_path: Path) -> None:
    """What else may be wrong with a plan is tested with plan_check."""
    assert run_point(*SMALL, *QUICK, "backend=none", f"hydra.run.dir={tmp_path / 'plan'}").status == 0
    saved = tmp_path / "plan" / "plan.json"
    (plan,) = json.loads(saved.read_text())["layers"]
    plan["sessions"][-1]["shard"].pop()
    short = tmp_path / "short.json"
    short.write_text(json.dumps({"layers": [plan]}))
    for path, override, says in (
        (short, "seed=0", "plan drops call mmlu_pro-"),
        (saved, "workload.template_tokens=7", "plan was made for another problem: fingerprint must be"),
        (saved, "workload=medmcqa", "is not a call of this problem; was the plan made for another?"),
    ):
        outcome = run_point(*SMALL, *QUICK, override, f"plan.path={path}", f"hydra.run.dir={tmp_path / 'run'}")
        assert outcome.status == 2
        assert says in outcome.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("below", [False, True])
def test_a_file_in_the_place_of_the_folder_is_refused(below: bool, tmp_path: Path) -> None:
    path = tmp_path / "in_the_way"
    path.write_text("mine")
    folder = path / "run" if below else path
    outcome = run_here(f"hydra.run.dir={folder}")
    assert_refused(outcome, "folder must be one that can be made ... in_the_way ... a file is in the way", tmp_path)
    assert path.read_text() == "mine"


def test_a_folder_of_too_long_a_name_is_refused(tmp_path: Path) -> None:
    outcome = run_point(f"hydra.run.dir={tmp_path / ('x' * 300)}")
    assert_refused(outcome, "folder must have a shorter name ... xxx ... hydra.sweep.subdir", tmp_path)


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
