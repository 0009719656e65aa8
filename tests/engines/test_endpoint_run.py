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

CALIBRATION = "profile.source=calibration"


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
    overrides = [*overrides_of(tmp_path, servers), CALIBRATION, "aggregator=none", "scheduler=data_parallel"]
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


def test_a_wrong_key_ends_the_run_at_once_with_the_words_of_the_server(tmp_path, servers):
    for server in servers:
        server.behave = lambda body, number: (401, {"error": {"message": "Incorrect API key"}})
    outcome = run_here(*overrides_of(tmp_path, servers), "aggregator=none", f"hydra.run.dir={tmp_path / 'run'}")
    assert outcome.status == 2
    last = outcome.err.splitlines()[-1]
    assert "/v1: 401 Unauthorized: Incorrect API key; check the key (none is sent: api_key_env names" in last
    assert sum(len(server.posts) for server in servers) <= 2 + 2 + 6, "a session of each server, at most"


def questions_for(expert: str, num_questions: int, folder: Path) -> str:
    """Write questions for one expert; gives the override that reads them."""
    lines = [
        {"id": f"q{i}", "question": f"Question {i}? (A) 1 (B) 2", "experts": [expert]} for i in range(num_questions)
    ]
    path = folder / "own.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return f"workload.path={path}"


def of_one_server(folder: Path, server: FakeServer, num_questions: int = 20) -> list[str]:
    """The overrides of a run on one server, measured as it is by default."""
    kept = [value for value in overrides_of(folder, [server]) if not value.startswith("profile.sweep")]
    name = server.endpoint.expert
    return [*kept, "aggregator=none", questions_for(name, num_questions, folder), f"hydra.run.dir={folder / 'run'}"]


def test_a_sweep_that_cannot_finish_names_the_cause_and_keeps_what_has_finished(tmp_path, servers):
    num_served, is_ill = 0, True

    def behave(body, number):
        nonlocal num_served
        if is_ill and num_served == 4:
            return (500, {"error": {"message": "CUDA error"}})
        num_served += 1
        return completion(body)

    servers[1].behave = behave
    overrides = [*of_one_server(tmp_path, servers[1]), CALIBRATION, "backend.max_in_flight=1"]
    overrides += ["backend.patience.max_retries=1", "backend.patience.first_wait_s=0.01"]
    outcome = run_here(*overrides)
    assert outcome.status == 2
    assert (
        "error: profile sweep: every call must finish, 4 of 8 did before it stopped: call calibration-QwenHalf-4 "
        "failed: QwenHalf at http://127.0.0.1:"
    ) in outcome.err
    assert "/v1: 500 Internal Server Error: CUDA error (tried 2 times). Correct this" in outcome.err.splitlines()[-1]
    is_ill = False
    assert run_here(*overrides).status == 0
    assert num_served == 8 + 20, "calls of the sweep and of the batch, each once"


def test_a_run_says_what_it_measures_before_and_measures_no_more_than_the_batch_pays_back(tmp_path, servers):
    outcome = run_here(*of_one_server(tmp_path, servers[1]))
    assert outcome.status == 0, outcome.err
    assert outcome.err.splitlines()[:2] == [
        f"run folder: {tmp_path / 'run'}",
        "pilot: 8 of the batch's own 20 calls (QwenHalf 8), to price the others; their answers are kept",
    ]
    assert len(servers[1].posts) == 20


def test_calibration_says_what_it_asks_beside_the_batch(tmp_path, servers):
    outcome = run_here(*of_one_server(tmp_path, servers[1]), CALIBRATION)
    assert outcome.status == 0, outcome.err
    assert outcome.err.splitlines()[:2] == [
        f"run folder: {tmp_path / 'run'}",
        "profiling: 8 calls that are not the batch (QwenHalf 8), to price sessions; profile.path=FILE spares them",
    ]
    assert len(servers[1].posts) == 8 + 20


def test_a_pilot_whose_calls_only_fail_stops_with_the_words_of_the_server_and_goes_on_later(tmp_path, servers):
    num_served, is_ill = 0, True

    def behave(body, number):
        nonlocal num_served
        if is_ill and num_served == 3:
            return (500, {"error": {"message": "CUDA error"}})
        num_served += 1
        return completion(body)

    servers[1].behave = behave
    overrides = [*of_one_server(tmp_path, servers[1]), "backend.max_in_flight=1"]
    overrides += ["backend.patience.max_retries=1", "backend.patience.first_wait_s=0.01"]
    outcome = run_here(*overrides)
    assert outcome.status == 2
    assert "error: pilot: 3 calls finished, and then 4 failed in a row, the first was q" in outcome.err
    assert "500 Internal Server Error: CUDA error" in outcome.err.splitlines()[-1]
    assert len(servers[1].posts) <= 3 + 2 * 5, "and no more of the batch"
    is_ill = False
    assert run_here(*overrides).status == 0
    assert num_served == 20, "each call of the batch once"


def test_a_bound_that_is_lifted_measures_the_whole_sweep(tmp_path, servers):
    asked = [*of_one_server(tmp_path, servers[1]), "profile.max_batch_frac=null", "profile.sweep.shard_sizes=[4,30]"]
    outcome = run_here(*asked)
    assert outcome.status == 0, outcome.err
    assert len(servers[1].posts) == 2 * 34 + 20


def test_requests_that_a_server_wants_twice_are_no_reason_to_measure_again(tmp_path, servers):
    late: set[int] = set()

    def behave(body, number):
        if body["seed"] in late:
            return completion(body)
        late.add(body["seed"])
        return (429, {"error": "slow down"}, {"Retry-After": "0"})

    servers[1].behave = behave
    outcome = run_here(*of_one_server(tmp_path, servers[1]))
    assert outcome.status == 0, outcome.err
    assert len(servers[1].posts) == 2 * 20


def test_upper_nodes_are_measured_within_the_same_bound(tmp_path, servers):
    outcome = run_here(*overrides_of(tmp_path, servers), CALIBRATION, f"hydra.run.dir={tmp_path / 'run'}")
    assert outcome.status == 0, outcome.err
    told = [line.partition(";")[0] for line in outcome.err.splitlines() if "not the batch" in line]
    assert told == [
        "profiling: 16 calls that are not the batch (SmolLM2 8, QwenHalf 8), to price sessions",
        "calibrating: 24 calls that are not the batch (SmolLM2 16, QwenHalf 8), to see what the gate leaves",
        "profiling aggregate: 12 calls that are not the batch (QwenHalf 12), to price it",
    ]
