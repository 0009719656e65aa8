"""experiments/run.py with backend=endpoint: servers that are running already, one an expert."""

import json
import threading
from contextlib import ExitStack, closing
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.engines.fake_run import write_inputs
from tests.engines.fake_server import FakeServer, completion
from tests.experiments.command_line import run_here


@pytest.fixture
def servers():
    with ExitStack() as opened:
        yield [opened.enter_context(closing(FakeServer(name))) for name in ("SmolLM2", "QwenHalf", "SmolLM2")]


def overrides_of(folder: Path, servers: list[FakeServer]) -> list[str]:
    listed = ",".join(
        f"{{base_url:'{server.endpoint.base_url}',expert:{server.endpoint.expert},model:{server.endpoint.model}}}"
        for server in servers
    )
    kept = [value for value in write_inputs(folder) if not value.startswith("backend")]
    return [*kept, "backend=endpoint", f"backend.endpoints=[{listed}]", f"cluster.num_workers={len(servers)}"]


@pytest.mark.parametrize("scheduler", ["ilp", "data_parallel"])
def test_both_stages_run_on_servers(tmp_path, servers, scheduler):
    folder = tmp_path / "run"
    outcome = run_here(*overrides_of(tmp_path, servers), f"scheduler={scheduler}", f"hydra.run.dir={folder}")
    assert outcome.status == 0, outcome.err
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["backend"], summary["num_loads"], summary["num_failed_calls"]) == ("endpoint", 0, 0)
    assert summary["skip_frac_source"] == "measured"
    calls = pq.read_table(folder / "calls.parquet").to_pylist()
    held = {0: "SmolLM2", 1: "QwenHalf", 2: "SmolLM2"}
    assert {(worker, call["expert"]) for call in calls for worker in call["workers"]} <= set(held.items())
    assert {call["role"] for call in calls} == {"propose", "aggregate"}
    asked = servers[1].prompts()
    assert any(prompt.startswith("Several models were asked") for prompt in asked), "the aggregator's server"


def test_a_server_that_goes_away_leaves_its_calls_to_the_other(tmp_path, servers):
    gone = threading.Event()

    def behave(body, number):
        if not gone.is_set() and len(servers[2].posts) > 10:  # past the sweep, which asks the first server of an expert
            gone.set()
            servers[2].close()
        return None if gone.is_set() else completion(body)

    folder = tmp_path / "run"
    overrides = [*overrides_of(tmp_path, servers), "aggregator=none", "scheduler=data_parallel"]
    overrides += ["backend.max_in_flight=2", "backend.patience.max_retries=1", "backend.patience.first_wait_s=0.01"]
    servers[2].behave = behave
    outcome = run_here(*overrides, f"hydra.run.dir={folder}")
    assert outcome.status == 0, outcome.err
    assert gone.is_set()
    assert "lost worker 2 (SmolLM2 at http://127.0.0.1:" in outcome.out
    assert "DISTURBED lost worker 2 at" in outcome.out
    summary = json.loads((folder / "summary.json").read_text())
    assert [loss["worker"] for loss in summary["lost_workers"]] == [2]
    assert summary["resumptions"] == []
    (line,) = [json.loads(line) for line in (folder / "replans.jsonl").read_text().splitlines()]
    assert {tuple(session["workers"]) for session in line["plan"]["sessions"]} == {(0,)}
    calls = pq.read_table(folder / "calls.parquet").to_pylist()
    assert len({(call["question"], call["slot"]) for call in calls}) == len(calls) == 36
    assert {call["status"] for call in calls} == {"finished"}
