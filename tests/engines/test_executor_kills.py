"""Random kills of everything: the run itself, its host, its workers, at any moment."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from mosaic.core.commands import Cancel, Cut, Move, Open, Submit
from mosaic.core.results import CallStatus
from mosaic.runtime.journal import Journal
from tests.engines.executor_runs import (
    FAKE_ENGINE,
    ended_once,
    hear_ctrl_c,
    make_checkpoint,
    processes_of,
)
from tests.engines.killed_run import Reacting, all_calls, run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
NUM_CALLS = 80


def start(folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.engines.killed_run", str(folder), FAKE_ENGINE, str(NUM_CALLS), "reacting"]
    with (folder / "errors.txt").open("ab") as errors:
        return subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True, preexec_fn=hear_ctrl_c
        )


def family(folder: Path, parent: int) -> tuple[list[int], list[int]]:
    """The host of a run, and its workers."""
    others = [pid for pid in processes_of(folder / "journal") if pid != parent]
    by_parent: dict[int, list[int]] = {}
    for pid in others:
        with suppress(OSError):
            by_parent.setdefault(int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]), []).append(
                pid
            )
    hosts = by_parent.get(parent, [])
    return hosts, [pid for pid in others if pid not in hosts]


def wait_until_all_are_gone(folder: Path) -> None:
    """Wait until two looks in a row find nothing: one look may miss a process that has just been started."""
    deadline = time.monotonic() + 30  # on a machine that is busy with others
    looks: list[list[int]] = [[-1]]
    while any(looks[-2:]) and time.monotonic() < deadline:
        time.sleep(0.02)
        looks.append(processes_of(folder))
    assert looks[-2:] == [[], []]


def kill_at_random(folder: Path, seed: int, num_kills: int = 14) -> dict[str, int]:
    """Start a run again and again, and kill what belongs to it at random moments; gives how often."""
    rng, killed = random.Random(seed), {"parent": 0, "host": 0, "worker": 0}
    for name in "AB":
        make_checkpoint(folder, name)  # else a kill may leave half of one
    while sum(killed.values()) < num_kills:
        runner = start(folder)
        while runner.poll() is None and sum(killed.values()) < num_kills:
            time.sleep(rng.uniform(0.0, 0.3))
            hosts, workers = family(folder, runner.pid)
            if not workers and rng.random() < 0.7:
                continue  # else most kills hit what has only begun
            target = rng.choice(["parent", "host", "host", "worker", "worker", "worker"])
            pids = {"parent": [runner.pid], "host": hosts, "worker": workers}[target]
            if pids:
                with suppress(ProcessLookupError):
                    os.kill(rng.choice(pids), signal.SIGKILL)
                    killed[target] += 1
        runner.kill()
        runner.communicate()
        wait_until_all_are_gone(folder)
        if runner.returncode == 0:
            break  # it ended between two kills
    print(killed)
    return killed


@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_that_reacts_ends_every_call_once_and_says_the_same_whoever_is_killed(tmp_path, seed):
    killed = kill_at_random(tmp_path, seed)
    last = start(tmp_path)
    said, _ = last.communicate(timeout=60)
    assert last.returncode == 0, (tmp_path / "errors.txt").read_text()
    calls = all_calls(NUM_CALLS)
    assert sorted(said.split()) == sorted(str(call.key) for call in calls)
    ended = ended_once(tmp_path, calls)
    statuses = {record.status for record in ended.values()}
    assert statuses - {CallStatus.CUT} == {CallStatus.FINISHED, CallStatus.CANCELLED}
    assert any(record.response.finish_reason == "cut" for record in ended.values())
    commands = [action.command for action in Journal(tmp_path / "journal").state.actions]
    assert {Open, Submit, Cancel, Cut, Move} <= {type(command) for command in commands}
    submitted = [command.call.key for command in commands if isinstance(command, Submit)]
    assert sorted(submitted) == sorted(call.key for call in calls), "each is written down once"
    undisturbed = run(tmp_path, FAKE_ENGINE, NUM_CALLS, [Reacting(NUM_CALLS)], journal="undisturbed").records
    whole = [key for key in ended if {ended[key].status, undisturbed[key].status} == {CallStatus.FINISHED}]
    assert len(whole) > NUM_CALLS
    assert all(ended[key].response.token_ids == undisturbed[key].response.token_ids for key in whole)
    assert sum(killed.values()) >= 8, killed
