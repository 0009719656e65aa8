"""`mosaic batch` on a Ray cluster, killed twenty times: its driver, nodes (which come again) and processes there."""

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from mosaic.core.results import CallStatus
from tests.commands.command_line import ROOT
from tests.commands.test_batch_kills import PATIENT, ended_calls, finish, num_ended, start
from tests.engines.fake_batch import batch_line, question, write_batch, write_models
from tests.engines.ray_nodes import emulated_nodes, has_ray

pytestmark = [
    pytest.mark.slow,
    pytest.mark.alone,
    pytest.mark.skipif(not has_ray(), reason="Ray is not installed"),
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]
NUM_QUESTIONS = 400
KILLS = {"driver": 6, "worker": 7, "node": 7}


def workers_of(folder: Path) -> list[int]:
    """List the processes on the nodes that serve models and are alive."""
    pids = sorted(int(path.name.removeprefix("pid-")) for path in folder.glob("checkpoints/*/pid-*"))
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_a_batch_on_ray_that_is_killed_twenty_times_ends_as_if_it_never_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    models = write_models(tmp_path)
    for checkpoint in (tmp_path / "checkpoints").iterdir():
        (checkpoint / "behave").write_text("note")
    folders = tmp_path / "undisturbed", tmp_path / "killed"
    for folder in folders:
        folder.mkdir()
        write_batch(folder, [batch_line(number, question(number, "slow")) for number in range(NUM_QUESTIONS)])
    draw, killed, folder = random.Random(0), Counter[str](), folders[1]
    with emulated_nodes("a", "b") as nodes:
        there = ["cluster=ray", f"cluster.address={nodes.address}", "cluster.num_workers=2", "hardware=cpu_core"]
        words = [[folder / "questions.jsonl", *models, *PATIENT, *there] for folder in folders]
        finish(start(*words[0]))
        process = start(*words[1])
        try:
            kinds = draw.sample(list(KILLS), k=20, counts=KILLS.values())
            while kinds:
                enough = num_ended(folder) + draw.randint(1, 20)
                while process.poll() is None and num_ended(folder) < enough:
                    time.sleep(0.02)
                assert process.poll() is None, f"it ended after {killed}: {process.communicate()[0]}"
                if (kind := kinds[-1]) == "driver":
                    process.kill()
                    process.communicate()
                    process = start(*words[1])
                elif kind == "worker":
                    try:
                        os.kill(draw.choice(workers_of(tmp_path)), signal.SIGKILL)
                    except (ProcessLookupError, IndexError):  # none serves now
                        continue
                else:
                    victim = draw.choice(sorted(nodes.nodes))
                    nodes.kill(victim)
                    nodes.add(victim)
                killed[kinds.pop()] += 1
            finish(process)
        finally:
            process.kill()
    finished = Counter(record.key for record in ended_calls(folder) if record.status is CallStatus.FINISHED)
    assert set(finished.values()) == {1}
    for name in ("questions.out.jsonl", "questions.errors.jsonl"):
        assert (folders[0] / name).read_bytes() == (folder / name).read_bytes()
