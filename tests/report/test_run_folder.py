import errno
import os
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from mosaic.core.errors import RunFolderError
from mosaic.core.results import RunResult
from mosaic.planning.plan_file import load_plans
from mosaic.report.run_folder import (
    RUN_FILES,
    begin_run,
    commit,
    completed_with,
    describe_run_conditions,
    differing_keys,
    flatten,
    is_complete,
    read_config,
    read_summary,
    write_run,
)
from tests.run_records import (
    SMALL_ANSWERS,
    make_small_aggregator_plan,
    make_small_plan,
    make_small_run,
    make_two_stage_run,
    summarise_small,
    summarise_two_stages,
)

CONFIG = {"seed": 0, "scheduler": {"name": "ilp", "caps": (1, 2)}, "rate": 1e-05, "empty": {}}


def write(folder: Path, config=CONFIG, result: RunResult | None = None, **changes: object) -> None:
    result = make_small_run() if result is None else result
    arguments = {
        "config": config, "plans": [make_small_plan()], "result": result, "summary": summarise_small(result),
        "meta": {"schema_version": 1}, "files": {"timeline.png": b"png"},
    }  # fmt: skip
    write_run(folder, **(arguments | changes))


def write_two_stages(folder: Path) -> None:
    """Write a run with all that a second stage leaves, the answers of a calibration run among it."""
    result = make_two_stage_run()
    write(
        folder, result=result, plans=[make_small_plan(), make_small_aggregator_plan()], answers=SMALL_ANSWERS,
        summary=summarise_two_stages(result), files={"timeline.png": b"png", "calibration_answers.parquet": b"graded"},
    )  # fmt: skip


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


EXPECTED = {
    "config.yaml", "plan.json", "calls.parquet", "sessions.parquet", "summary.json", "timeline.png", "trace.json",
    "meta.json",
}  # fmt: skip
EXPECTED_OF_TWO_STAGES = EXPECTED | {"answers.parquet", "calibration_answers.parquet"}


def test_complete_run_leaves_exactly_the_contract_files(tmp_path):
    write(tmp_path / "new" / "run")
    assert names(tmp_path / "new" / "run") == EXPECTED
    assert is_complete(tmp_path / "new" / "run")
    assert read_summary(tmp_path / "new" / "run")["expert_makespan_s"] == 80.0


def test_run_of_two_stages_leaves_exactly_the_contract_files(tmp_path):
    write_two_stages(tmp_path)
    assert names(tmp_path) == EXPECTED_OF_TWO_STAGES
    plans = [make_small_plan(), make_small_aggregator_plan()]
    assert [plan.sessions for plan in load_plans(tmp_path / "plan.json")] == [plan.sessions for plan in plans]
    assert (tmp_path / "calibration_answers.parquet").read_bytes() == b"graded"
    assert [row["question"] for row in pq.read_table(tmp_path / "answers.parquet").to_pylist()] == ["q0", "q1", "q2"]
    rows = pq.read_table(tmp_path / "calls.parquet").to_pylist()
    assert [(row["role"], row["expert"], row["predicted_output_tokens"]) for row in rows] == [
        ("propose", "A", 12.5), ("propose", "B", 12.5), ("propose", "C", 12.5), ("aggregate", "Z", 300.0),
    ]  # fmt: skip
    assert read_summary(tmp_path)["num_calls"] == 4


@pytest.mark.parametrize("write_files", [write, write_two_stages])
def test_config_is_first_and_summary_last(tmp_path, monkeypatch, write_files):
    order = []
    rename = os.replace
    monkeypatch.setattr(os, "replace", lambda source, target: (order.append(target.name), rename(source, target)))
    write_files(tmp_path)
    assert order[0] == "config.yaml"
    assert order[-1] == "summary.json"
    assert order == [name for name in RUN_FILES if name in order]


def test_equal_runs_are_equal_bytes(tmp_path):
    write_two_stages(tmp_path / "a")
    write_two_stages(tmp_path / "b")
    for name in EXPECTED_OF_TWO_STAGES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_plan_without_a_run_leaves_no_records(tmp_path):
    plan = make_small_plan()
    write_run(tmp_path, config=CONFIG, plans=[plan], result=None, summary={"seed": 0}, meta={}, files={})
    assert names(tmp_path) == {"config.yaml", "plan.json", "meta.json", "summary.json"}


class Killed(BaseException):
    """Stands for a signal: nothing in the code may catch it."""


@pytest.mark.parametrize("operation", ["fsync", "replace"])
@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), Killed()])
@pytest.mark.parametrize("after", range(len(EXPECTED_OF_TWO_STAGES)))
def test_failure_at_any_file_never_leaves_a_folder_that_looks_complete(
    tmp_path, monkeypatch, operation, failure, after
):
    done = []
    real = getattr(os, operation)

    def break_down(*arguments):
        if len(done) == after:
            raise failure
        done.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(os, operation, break_down)
    with pytest.raises((RunFolderError, Killed)) as caught:
        write_two_stages(tmp_path)
    assert not is_complete(tmp_path)
    if isinstance(failure, OSError):
        assert "cannot be written (No space left on device)" in str(caught.value)
        assert any(name in str(caught.value) for name in RUN_FILES)
    monkeypatch.undo()
    write(tmp_path)
    assert names(tmp_path) == EXPECTED  # what the failure left is gone, also what a run of one stage lacks


def test_nan_in_a_summary_is_our_bug_and_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write(tmp_path / "run", summary={"expert_makespan_s": float("nan")})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe"])
def test_unreadable_summary_is_incomplete(tmp_path, content):
    write(tmp_path)
    (tmp_path / "summary.json").write_bytes(content)
    assert not is_complete(tmp_path)
    assert not completed_with(tmp_path, CONFIG)


def test_same_configuration_is_recognised_and_never_run_over(tmp_path):
    assert not completed_with(tmp_path / "absent", CONFIG)
    write(tmp_path)
    before = (tmp_path / "summary.json").stat().st_mtime_ns
    assert completed_with(tmp_path, CONFIG)
    with pytest.raises(RunFolderError, match="already holds the complete run of this configuration"):
        write(tmp_path)
    assert (tmp_path / "summary.json").stat().st_mtime_ns == before


def test_other_configuration_is_refused_by_the_keys_that_differ(tmp_path):
    write(tmp_path)
    other = {"seed": 1, "scheduler": {"name": "fifo", "caps": (1, 2), "window": 8}, "rate": 2.0, "empty": {}}
    with pytest.raises(RunFolderError) as caught:
        completed_with(tmp_path, other)
    assert "rate is 1e-05 there and 2.0 here; scheduler.name is 'ilp' there and 'fifo' here" in str(caught.value)
    assert "scheduler.window is 'absent' there and 8 here (and 1 more keys)" in str(caught.value)
    with pytest.raises(RunFolderError, match="another configuration"):
        write(tmp_path, config=other)
    assert read_config(tmp_path)["seed"] == 0


def test_run_clears_what_an_unfinished_one_left_and_nothing_else(tmp_path):
    (tmp_path / "actions.jsonl").write_text("old")
    (tmp_path / ".plan.json.part").write_text("half")
    (tmp_path / "notes.txt").write_text("mine")
    write(tmp_path)
    assert names(tmp_path) == EXPECTED | {"notes.txt"}
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["scheduler"] == {"name": "ilp", "caps": [1, 2]}


def test_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="file/run: cannot be created as a run folder"):
        write(tmp_path / "file" / "run")


def test_file_that_cannot_be_replaced_is_named(tmp_path):
    (tmp_path / "summary.json").mkdir()
    with pytest.raises(RunFolderError, match=r"summary\.json: cannot be replaced"):
        write(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "not YAML"),
        (b"- 1", "must be a mapping, got list"),
        (b"\xff\xfe\xff", "not YAML"),
        (None, r"cannot be read \(No such file"),
    ],
)
def test_broken_or_missing_config_names_the_file(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(RunFolderError, match=rf"config\.yaml: {message}"):
        read_config(tmp_path)


def test_differences_see_types_missing_keys_and_nested_values():
    assert differing_keys({"a": 1, "b": {"c": None}}, {"a": 1.0, "b": {}}) == ("a", "b", "b.c")
    assert differing_keys({"a": float("nan")}, {"a": float("nan")}) == ()
    assert flatten({"a": {"b": {"c": 1}}, "d": []}) == {"a.b.c": 1, "d": []}


SERVERS = {
    "backend": {
        "max_in_flight": 4,
        "patience": {"max_retries": 4},
        "endpoints": [{"base_url": "http://a:1/v1", "api_key_env": None, "model": "m", "expert": "E"}],
    }
}


def moved(**changes: object) -> dict:
    backend = SERVERS["backend"]
    return {"backend": {**backend, "max_in_flight": 9, "endpoints": [{**backend["endpoints"][0], **changes}]}}


def test_where_a_server_is_and_how_it_is_used_is_no_other_configuration(tmp_path):
    begin_run(tmp_path, SERVERS)
    there = moved(base_url="https://b:2/v1", api_key_env="KEY")
    begin_run(tmp_path, there)
    assert read_config(tmp_path) == there, "an audit finds the server where it is now"
    with pytest.raises(RunFolderError, match="unfinished run of another configuration"):
        begin_run(tmp_path, moved(model="other"))


def test_a_key_that_may_differ_makes_a_complete_run_incomplete(tmp_path):
    write(tmp_path, config={"workload": {"path_sha256": "a"}})
    begin_run(tmp_path, {"workload": {"path_sha256": "b"}}, may_differ=("workload.path_sha256",))
    assert read_config(tmp_path) == {"workload": {"path_sha256": "b"}}
    assert not is_complete(tmp_path)


# meta.json.


def git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True)


def test_conditions_name_versions_machine_and_seconds():
    conditions = describe_run_conditions(wall_s_by_step={"plan": 0.1}, solver_s=0.05, reacting_s=0.5)
    assert list(conditions) == ["schema_version", "versions", "commit", "machine", "wall_s", "solver_s", "reacting_s"]
    assert conditions["versions"]["numpy"].count(".") >= 1
    assert conditions["machine"]["num_cpus"] >= 1
    assert (conditions["wall_s"], conditions["solver_s"], conditions["reacting_s"]) == ({"plan": 0.1}, 0.05, 0.5)


def test_package_that_is_not_installed_has_no_version(monkeypatch):
    monkeypatch.setattr("mosaic.report.run_folder.PACKAGES", ("no-such-distribution",))
    assert describe_run_conditions(wall_s_by_step={}, solver_s=None)["versions"]["no-such-distribution"] is None


def test_commit_is_the_checkout_and_says_when_files_differ(tmp_path):
    git(tmp_path, "init")
    assert commit(tmp_path) is None  # no commit yet
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-m", "a")
    clean = commit(tmp_path)
    assert clean is not None
    assert len(clean) == 40
    (tmp_path / "a").write_text("2")
    assert commit(tmp_path) == f"{clean}-dirty"


def test_folder_inside_somebody_elses_checkout_has_no_commit(tmp_path):
    git(tmp_path, "init")
    inner = tmp_path / "site-packages"
    inner.mkdir()
    assert commit(inner) is None


def test_machine_without_git_has_no_commit(tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", "")
    assert commit(tmp_path) is None
