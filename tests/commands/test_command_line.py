"""The command line as a user meets it: what a run prints and leaves, what repeats, what configuration can do."""

import json
import os
import re
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from mosaic.report.run_folder import is_complete, read_config
from tests.commands.command_line import (
    DEMO,
    QUICK,
    SMALL,
    Outcome,
    finish_process,
    run_here,
    run_into,
    run_point,
    run_process,
    start_process,
)
from tests.config.test_wiring import SCHEDULERS
from tests.report.test_metrics import KEYS as SUMMARY_KEYS
from tests.report.test_run_folder import EXPECTED
from tests.report.test_tables import ANSWER_COLUMNS, CALL_COLUMNS, SESSION_COLUMNS
from tests.run_tables import rows, summary_of

FILES = EXPECTED | {"answers.parquet"}
SUBDIR = "hydra.sweep.subdir=${hydra:runtime.choices.scheduler}-${seed}"
"""Short names for the points of a sweep, in place of all that they override."""


def read_calls(folder: Path, role: str = "propose") -> list[dict[str, Any]]:
    """Read the records of a stage's calls: those of the experts, or the aggregator's."""
    return [row for row in rows(folder, "calls") if row["role"] == role]


def contents(folder: Path, *, but: Sequence[str] = ("meta.json",)) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in but}


def run_small(folder: Path, *overrides: str) -> Path:
    """Run 30 calls of a published workload in this process."""
    return run_into(folder, *SMALL, *QUICK, *overrides)


@pytest.fixture(scope="module")
def default_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """What the command without any argument leaves in the current folder, and what it prints."""
    cwd = tmp_path_factory.mktemp("default")
    outcome = run_process(cwd=cwd, hash_seed=1)
    (folder,) = (cwd / "results" / "runs").iterdir()
    return folder, outcome


def test_the_default_run_prints_one_screen_and_nothing_else(default_run: tuple[Path, Outcome]) -> None:
    folder, outcome = default_run
    assert outcome.status == 0
    assert outcome.err == ""
    lines = outcome.out.splitlines()
    assert len(lines) <= 24
    summary = summary_of(folder)
    counts = f"2,100 questions, 6,300 + {summary['num_aggregator_calls']} calls, 4 workers"
    assert lines[0].startswith(f"ilp on mmlu_pro: {counts}")
    assert max(map(len, (line for line in lines if str(folder.parent) not in line))) <= 100
    for word in (
        "makespan",
        "experts",
        "gate      majority",
        "(fitted) skipped",
        "saved",
        "accuracy",
        "LlamaR1 (tp 4)",
    ):
        assert word in outcome.out
    assert str(folder) in outcome.out


def test_the_default_folder_is_named_by_time_workload_and_scheduler(default_run: tuple[Path, Outcome]) -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-\d{6}_mmlu_pro_ilp", default_run[0].name)


def test_the_default_run_leaves_the_files_of_the_contract(default_run: tuple[Path, Outcome]) -> None:
    folder, _ = default_run
    assert {path.name for path in folder.iterdir()} == FILES
    assert is_complete(folder)
    for name, columns in (("calls", CALL_COLUMNS), ("sessions", SESSION_COLUMNS), ("answers", ANSWER_COLUMNS)):
        assert pq.read_schema(folder / f"{name}.parquet").names == columns
    summary = summary_of(folder)
    assert list(summary) == SUMMARY_KEYS
    assert {key for key in summary if summary[key] is None} == {"gate_report"}
    assert set(summary["solve"]) == {"status", "gap_frac", "bound_s", "num_vars", "num_constraints"}
    assert summary["solve"]["status"] == "optimal"
    assert len(read_calls(folder)) == 6300
    assert len(read_calls(folder, "aggregate")) == summary["num_aggregator_calls"] == summary["num_calls"] - 6300
    assert pq.read_metadata(folder / "answers.parquet").num_rows == 2100
    assert (folder / "timeline.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_same_command_in_another_process_leaves_the_same_bytes(
    default_run: tuple[Path, Outcome], tmp_path: Path
) -> None:
    again = run_process(f"hydra.run.dir={tmp_path / 'again'}", cwd=tmp_path, hash_seed=2)
    assert again.status == 0
    assert contents(tmp_path / "again") == contents(default_run[0])


@pytest.mark.slow
def test_a_saved_plan_runs_with_identical_results(default_run: tuple[Path, Outcome], tmp_path: Path) -> None:
    where = f"hydra.run.dir={tmp_path / 'planned'}"
    explained = run_point("backend=none", where)
    assert explained.status == 0
    assert {path.name for path in (tmp_path / "planned").iterdir()} == {
        "config.yaml", "plan.json", "summary.json", "meta.json",
    }  # fmt: skip
    assert "Plan of ilp: 6300 calls" in explained.out
    for word in ("replicas", "cap", "worker", "Predicted makespan", "bound", "LlamaR1"):
        assert word in explained.out
    assert summary_of(tmp_path / "planned")["expert_makespan_s"] is None

    path = tmp_path / "planned" / "plan.json"
    assert f"plan.path={path}" in explained.out
    run_point(f"plan.path={path}", f"hydra.run.dir={tmp_path / 'run'}")
    solver_s = [json.loads((tmp_path / name / "meta.json").read_text())["solver_s"] for name in ("planned", "run")]
    assert solver_s[0] > 0
    assert solver_s[1] is None
    but = ("meta.json", "config.yaml")
    assert contents(tmp_path / "run", but=but) == contents(default_run[0], but=but)


def test_a_saved_plan_of_one_policy_needs_no_scheduler_of_that_name(tmp_path: Path) -> None:
    plan = run_small(tmp_path / "a", "scheduler=data_parallel", "costs=affine") / "plan.json"
    again = run_small(tmp_path / "b", f"plan.path={plan}")
    assert read_config(again)["scheduler"]["_target_"] == "mosaic.planning.Ilp", "which plans nothing here"
    assert (summary_of(again)["scheduler"], summary_of(again)["costs"]) == ("data_parallel", "affine")
    assert (again / "calls.parquet").read_bytes() == (tmp_path / "a" / "calls.parquet").read_bytes()


def test_output_lengths_come_from_an_earlier_run(default_run: tuple[Path, Outcome], tmp_path: Path) -> None:
    source = default_run[0] / "calls.parquet"
    seen: dict[str, set[int]] = {}
    for row in read_calls(default_run[0]):
        seen.setdefault(row["expert"], set()).add(row["output_tokens"])
    rows = read_calls(run_small(tmp_path / "run", f"world.output_tokens={source}", "seed=5"))
    assert len(rows) == 30
    assert all(row["output_tokens"] in seen[row["expert"]] for row in rows)


@pytest.mark.parametrize(
    ("scheduler", "workload"), [*zip(SCHEDULERS, cycle(["mmlu_pro", "medmcqa", "gpqa"]), strict=False)]
)
def test_every_scheduler_and_every_published_workload_run(scheduler: str, workload: str, tmp_path: Path) -> None:
    folder = run_small(tmp_path / "run", f"workload={workload}", f"scheduler={scheduler}")
    summary = summary_of(folder)
    assert (summary["workload"], summary["scheduler"]) == (workload, scheduler)
    assert summary["num_calls"] == 30 + summary["num_aggregator_calls"]
    assert summary["num_failed_calls"] == 0
    assert summary["expert_makespan_s"] >= summary["expert_lower_bound_s"] > 0


def sweep(folder: Path, *overrides: str) -> Outcome:
    return run_here("-m", *SMALL, *QUICK, *overrides, f"hydra.sweep.dir={folder}", SUBDIR)


def stamps(folder: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/summary.json")}


@pytest.mark.slow
def test_a_sweep_repeats_only_the_points_that_are_not_complete(tmp_path: Path) -> None:
    points = ("scheduler=round_robin,least_loaded",)
    first = sweep(tmp_path, *points)
    assert first.status == 0
    before = stamps(tmp_path)
    assert set(before) == {"round_robin-0", "least_loaded-0"}

    (tmp_path / "least_loaded-0" / "summary.json").unlink()
    again = sweep(tmp_path, *points)
    assert again.status == 0
    assert again.out.count("already complete with this configuration") == 1
    after = stamps(tmp_path)
    assert set(after) == set(before)
    assert {name for name in after if after[name] != before[name]} == {"least_loaded-0"}


@pytest.mark.slow
def test_a_sweep_prints_a_line_a_point_and_how_to_compare_them(tmp_path: Path) -> None:
    outcome = run_here("-m", *SMALL, *QUICK, "seed=0,1", "cluster.name=my/pair", f"hydra.sweep.dir={tmp_path}")
    assert outcome.err == ""
    lines = outcome.out.splitlines()
    assert len(lines) == 3
    for seed, line in enumerate(lines[:2]):
        assert line.startswith("cluster.name=my/pair,profile.sweep=")
        stages = r"experts [\d.,]+ s, predicted [\d.,]+ s, idle [\d.]+%, end to end [\d.,]+ s"
        gate = r"skipped [\d.]+% \(fitted\), accuracy [\d.]+%"
        assert re.search(rf"seed={seed}.*: {stages}, {gate}$", line)
    assert lines[2] == f"compare: mosaic compare {tmp_path}"


@pytest.mark.slow
def test_a_sweep_of_plans_prints_that_nothing_ran(tmp_path: Path) -> None:
    outcome = sweep(tmp_path, "seed=3", "scheduler=round_robin", "backend=none")
    assert "round_robin-3: not run, predicted" in outcome.out


@pytest.mark.slow
def test_points_of_a_sweep_run_in_parallel(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    outcome = run_process(
        "-m", *SMALL, *QUICK, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=0,1", "scheduler=round_robin",
        f"hydra.sweep.dir={folder}", SUBDIR, cwd=tmp_path,
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    assert set(stamps(folder)) == {"round_robin-0", "round_robin-1"}
    alone = run_small(tmp_path / "alone", "scheduler=round_robin", "seed=1")
    assert contents(alone) == contents(folder / "round_robin-1")


@pytest.mark.slow
def test_runs_started_together_do_not_collide(tmp_path: Path) -> None:
    arguments = (*SMALL, *QUICK, "scheduler=round_robin")
    started = [start_process(*arguments, cwd=tmp_path) for _ in range(2)]
    outcomes = [finish_process(process) for process in started]
    assert [outcome.status for outcome in outcomes] == [0, 0]
    first, second = (tmp_path / "results" / "runs").iterdir()
    assert contents(first) == contents(second)
    assert contents(first).keys() == FILES - {"meta.json"}


QUESTIONS = [
    {"id": "a", "question": "Is 7 prime?", "experts": ["SmolLM2", "QwenHalf", "SmolLM2"], "output_tokens": [5, 6, 7]},
    {"id": "b", "prompt_tokens": 40, "experts": ["QwenHalf"], "output_tokens": 9},
]


def test_questions_and_recorded_lengths_come_from_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in QUESTIONS))
    rows = read_calls(run_into(tmp_path / "run", *DEMO, f"workload.path={path}", "workload.template_tokens=10"))
    keys = ("question", "slot", "expert", "prompt_tokens", "output_tokens")
    assert sorted(tuple(row[key] for key in keys) for row in rows) == [
        ("a", 0, "SmolLM2", 13, 5), ("a", 1, "QwenHalf", 13, 6), ("a", 2, "SmolLM2", 13, 7),
        ("b", 0, "QwenHalf", 50, 9),
    ]  # fmt: skip
    merged = {row["question"]: row["expert"] for row in read_calls(tmp_path / "run", "aggregate")}
    assert merged == {"a": "QwenHalf", "b": "QwenHalf"}, "free text cannot be compared"


@pytest.mark.slow
def test_questions_without_experts_are_routed_alike_in_every_process(tmp_path: Path) -> None:
    skills = ("math", "law", "logic")
    lines = [{"id": f"q{i}", "question": f"Question {i}?", "skills": [skills[i % 3], skills[i % 2]]} for i in range(12)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    profiles = {"SmolLM2": {"math": 3, "law": 1}, "QwenHalf": {"law": 2, "logic": 4}}
    (tmp_path / "skills.json").write_text(json.dumps(profiles))
    arguments = (*DEMO, "workload.path=q.jsonl", "workload.profiles=skills.json", "scheduler=data_parallel")
    for seed in (3, 4):
        outcome = run_process(*arguments, f"hydra.run.dir=run{seed}", cwd=tmp_path, hash_seed=seed)
        assert outcome.status == 0, outcome.err
    assert contents(tmp_path / "run3") == contents(tmp_path / "run4")
    rows = read_calls(tmp_path / "run3")
    assert len(rows) == 36
    assert {row["expert"] for row in rows} == set(profiles)


def test_a_recorded_log_is_replayed_with_its_arrivals_and_lengths(tmp_path: Path) -> None:
    lines = [
        {
            "request_id": f"r{i}", "input_toks": 20 + i, "output_toks": 30 - i, "queued_ts": 100 + 0.5 * i,
            "scheduled_ts": 100.01 + 0.5 * i, "first_token_ts": 100.05 + 0.5 * i, "last_token_ts": 101 + 0.5 * i,
        }
        for i in range(6)
    ]  # fmt: skip
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder = tmp_path / "run"
    outcome = run_point(
        "+experiment=replay", "hardware=rtxpro6000", f"workload.path={path}", "backend.max_num_seqs=4", *QUICK,
        f"hydra.run.dir={folder}",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    rows = {row["question"]: row for row in read_calls(folder)}
    assert {name: (row["prompt_tokens"], row["output_tokens"]) for name, row in rows.items()} == {
        f"r{i}": (20 + i, 30 - i) for i in range(6)
    }
    assert [rows[f"r{i}"]["queued_ts"] for i in range(6)] == pytest.approx([0.5 * i for i in range(6)])
    assert (folder / "replay.png").read_bytes().startswith(b"\x89PNG")
    for word in ("TTFT", "TPOT", "latency", "makespan"):
        assert word.lower() in outcome.out.lower()


MINE = {
    "expert/tiny.yaml": """
defaults: [qwen_0_5b, _self_]
name: Tiny
checkpoint: mine/tiny
max_output_tokens: 64
""",
    "pool/mine.yaml": """
defaults:
  - /expert@experts.Tiny: tiny
  - /expert@experts.SmolLM2: smollm2_135m
  - _self_
name: mine
aggregator: Tiny
""",
    "cluster/pair.yaml": "name: pair\nnum_workers: 2\n",
    "world/mine.yaml": """
defaults:
  - /answers@answers: assumed
  - _self_
output_tokens:
  Tiny: {sample: [10, 20, 60], source: measured}
  SmolLM2: {sample: [30], source: measured}
merged_tokens:
  Tiny: {sample: [7], source: measured}
length_scale: null
""",
    "workload/mine.yaml": """
_target_: mosaic.workloads.slot_table_workload
name: mine
num_questions: 8
num_slots_per_question: 2
slots: {Tiny: 11, SmolLM2: 5}
prompt_token_quantiles: [10, 50, 200]
seed: ${seed}
""",
    "scheduler/longest.yaml": "_target_: mosaic.planning.LeastLoaded\nlongest_first: true\n",
}


@pytest.mark.parametrize("way", ["--config-dir", "hydra.searchpath"])
def test_a_pool_a_cluster_and_a_slot_table_of_ones_own_take_yaml_and_no_code(way: str, tmp_path: Path) -> None:
    for name, text in MINE.items():
        path = tmp_path / "conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    where = ["--config-dir", str(tmp_path / "conf")]
    if way == "hydra.searchpath":
        where = [f"hydra.searchpath=[file://{tmp_path / 'conf'}]"]
    folder = tmp_path / "run"
    outcome = run_here(
        *where, "pool=mine", "cluster=pair", "workload=mine", "scheduler=longest", "aggregator=dp", *QUICK,
        f"hydra.run.dir={folder}",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    rows = read_calls(folder)
    assert [sum(row["expert"] == name for row in rows) for name in ("Tiny", "SmolLM2")] == [11, 5]
    assert {row["output_tokens"] for row in rows if row["expert"] == "Tiny"} <= {10, 20, 60}
    summary = summary_of(folder)
    assert summary["num_workers"] == 2
    found = [summary[key] for key in ("aggregator_expert", "num_aggregator_calls", "accuracy_frac")]
    assert found == ["Tiny", 8, None]
    lengths = [row["output_tokens"] for row in read_calls(folder, "aggregate")]
    assert min(lengths) >= 7, "seven tokens where it is certain, and more where it is not"
    assert max(lengths) <= 64, "what the model may write"


def test_help_fits_a_screen_and_lists_the_choices() -> None:
    outcome = run_here("--help")
    assert outcome.status == 0
    assert len(outcome.out.splitlines()) <= 30
    for line in (
        "gate: calibrated, majority",
        "aggregator: auto, dp",
        "scheduler: data_parallel, fifo, flexible, ilp",
        "workload: file, gpqa",
        "pool: demo, hybrid",
        "plan.path",
    ):
        assert line in outcome.out


def test_a_run_is_not_repeated_into_its_own_folder(tmp_path: Path) -> None:
    folder = run_small(tmp_path / "run", "scheduler=round_robin")
    before = os.stat(folder / "summary.json").st_mtime_ns
    again = run_point(*SMALL, *QUICK, "scheduler=round_robin", f"hydra.run.dir={folder}")
    assert again == Outcome(0, f"already complete with this configuration: {folder}\n", "")
    assert os.stat(folder / "summary.json").st_mtime_ns == before


def test_a_changed_input_file_is_another_configuration(tmp_path: Path) -> None:
    file, folder = tmp_path / "mine.jsonl", tmp_path / "run"
    line = '{"id": "q1", "prompt_tokens": 90, "experts": ["Qwen", "Gemma"], "output_tokens": %d}\n'
    overrides = ("workload=file", f"workload.path={file}", f"hydra.run.dir={folder}")
    file.write_text(line % 100)
    assert run_point(*overrides).status == 0
    assert "already complete" in run_point(*overrides).out
    file.write_text(line % 200)
    again = run_point(*overrides)
    assert again.status == 2
    assert "workload.path_sha256" in again.err
