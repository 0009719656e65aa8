"""Where a command writes, what it ends with, and what it says was chosen for the user."""

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from msgspec import structs

import mosaic
from mosaic.core.results import CallStatus
from mosaic.core.safe_text import file_name, from_file_name
from mosaic.runtime.garbage import FULL_EVERY, spare_garbage_collector
from mosaic.runtime.job import Outcome as RunOutcome
from tests.commands.command_line import QUICK, SMALL, run_here, run_point, run_process
from tests.commands.test_command_line import sweep
from tests.config.test_wiring import write_lines
from tests.run_tables import summary_of

NAMED = {"prompt_tokens": 90, "experts": ["SmolLM2", "QwenHalf"], "output_tokens": 20}


def lose_a_call(outcome: RunOutcome) -> RunOutcome:
    first, *others = outcome.result.calls
    return replace(
        outcome, result=replace(outcome.result, calls=(structs.replace(first, status=CallStatus.FAILED), *others))
    )


@pytest.mark.slow
def test_calls_without_a_result_have_a_status_of_their_own(tmp_path: Path) -> None:
    run = mosaic.run

    def run_badly(*given: Any, **options: Any) -> RunOutcome:
        return lose_a_call(run(*given, **options))

    where = f"hydra.run.dir={tmp_path / 'run'}"
    with patch("mosaic.run", run_badly):
        outcome = run_here(*SMALL, *QUICK, where)
        assert outcome.status == 3
        assert "FAILED    1 calls have no result" in outcome.out
        assert summary_of(tmp_path / "run")["num_failed_calls"] == 1
        swept = sweep(tmp_path / "sweep", "seed=0,1", "scheduler=round_robin")
    assert swept.status == 3
    assert swept.out.count("FAILED: 1 calls have no result") == 2, "the sweep goes on"
    again = run_point(*SMALL, *QUICK, where)
    assert (again.status, again.out[:16]) == (3, "already complete"), "as it was the first time"


@pytest.mark.slow
def test_points_that_name_files_elsewhere_stay_in_the_sweeps_folder_and_apart(tmp_path: Path) -> None:
    here = tmp_path / "a" / "b"
    here.mkdir(parents=True)
    for number, folder in enumerate((tmp_path, tmp_path / "a", here)):
        write_lines(folder / "q.jsonl", *({"id": f"q{i}", **NAMED} for i in range(number + 1)))
    before = {path for path in tmp_path.rglob("*") if here not in path.parents}
    outcome = run_process(
        "-m", "workload=file", "pool=demo", *QUICK, "aggregator=none", "scheduler=round_robin",
        "workload.path=../../q.jsonl,../q.jsonl,q.jsonl", "hydra.sweep.dir=sweep", cwd=here,
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    assert {path for path in tmp_path.rglob("*") if here not in path.parents} == before
    found = {path.parent.name: summary_of(path.parent) for path in (here / "sweep").glob("*/summary.json")}
    assert sorted(summary["num_questions"] for summary in found.values()) == [1, 2, 3]
    assert all(".." not in Path(name).parts for name in found)
    assert "workload.path=../../q.jsonl" in outcome.out, "the screen names the point as it was given"


@pytest.mark.parametrize("point", ["workload.path=../a%2F/b", "a/b%2Fc", "%", "x=%252F", "plain,seed=0", "..", "a\nb"])
def test_a_points_folder_is_one_folder_and_tells_the_point(point: str) -> None:
    assert "/" not in file_name(point)
    assert file_name(point) not in (".", "..")
    assert from_file_name(file_name(point)) == point


@pytest.mark.slow
def test_groups_that_another_groups_file_has_chosen_are_named(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "q.jsonl", {"id": "a", **NAMED})
    local = ("cluster=local", "workload=file", "pool=demo", f"workload.path={path}", *QUICK)
    outcome = run_here(*local, f"hydra.run.dir={tmp_path / 'run'}")
    assert outcome.out.startswith(
        "also chosen by the files of these groups: costs=affine, hardware=cpu_core, aggregator=dp\n"
    )
    chosen = run_here(
        *local, "aggregator=none", "hardware=cpu_core", "costs=affine", f"hydra.run.dir={tmp_path / 'chosen'}"
    )
    assert "also chosen" not in chosen.out
    assert chosen.out.startswith("ilp on file")


class Knot:
    """Refers to itself."""

    num_left = 0

    def __init__(self) -> None:
        self.itself = self
        Knot.num_left += 1

    def __del__(self) -> None:
        Knot.num_left -= 1


def test_a_runs_cycles_are_gone_when_the_next_begins_and_what_outlived_it_some_runs_later() -> None:
    before = gc.get_threshold()
    try:
        spare_garbage_collector()
        config = Knot()
        spare_garbage_collector()
        kept = [Knot() for _ in range(1000)]
        del kept, config
        assert Knot.num_left == 1001, "no collection in a run so short"
        for _ in range(FULL_EVERY):
            spare_garbage_collector()
            assert Knot.num_left <= 1
        assert Knot.num_left == 0
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
