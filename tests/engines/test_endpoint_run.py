"""experiments/run.py with backend=endpoint: servers that are running already, one an expert."""

import time
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

import mosaic
from mosaic.commands.quote import quote_batch
from mosaic.config.compose import compose_config
from mosaic.config.job import build_job
from mosaic.runtime.run import measure
from tests.commands.command_line import run_here
from tests.engines.fake_batch import batch_line, run_mosaic, write_batch
from tests.engines.fake_run import run_in, write_inputs
from tests.engines.fake_server import FakeServer, completion
from tests.run_tables import rows, summary_of


@pytest.fixture
def servers():
    with ExitStack() as opened:
        yield [opened.enter_context(closing(FakeServer(name))) for name in ("SmolLM2", "QwenHalf", "SmolLM2")]


def overrides_of(folder: Path, servers: list[FakeServer]) -> list[str]:
    listed = ",".join(
        f"{{base_url:'{server.endpoint.base_url}',expert:{server.endpoint.expert},model:{server.endpoint.model}}}"
        for server in servers
    )
    kept = [value for value in write_inputs(folder) if not value.startswith(("backend", "profile"))]
    return [*kept, "backend=endpoint", f"backend.endpoints=[{listed}]", f"cluster.num_workers={len(servers)}"]


def num_posts(servers: list[FakeServer]) -> int:
    return sum(len(server.posts) for server in servers)


def once_both_serve(server: FakeServer, other: FakeServer) -> None:
    """Let a server answer when the other one has got a call too, and then take as long as that one."""

    def behave(body, number):
        deadline = time.monotonic() + 30
        while not other.posts and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        return completion(body)

    server.behave = behave


@pytest.mark.slow
def test_both_stages_run_on_servers(tmp_path, servers):
    folder = tmp_path / "run"
    once_both_serve(servers[0], servers[2])
    once_both_serve(servers[2], servers[0])
    overrides = [*overrides_of(tmp_path, servers), "backend.max_in_flight=2"]
    outcome = run_in(folder, *overrides, run=run_here)
    summary, calls = summary_of(folder), rows(folder, "calls")
    assert (summary["backend"], summary["num_loads"], summary["num_failed_calls"]) == ("endpoint", 0, 0)
    assert (summary["scheduler"], summary["costs"], summary["skip_frac_source"]) == ("servers", "none", "measured")
    assert summary["predicted_expert_makespan_s"] is None
    held = {0: "SmolLM2", 1: "QwenHalf", 2: "SmolLM2"}
    served = Counter(worker for call in calls if call["role"] == "propose" for worker in call["workers"])
    assert max(served[0], served[2]) <= 15, "24 calls, two servers"
    assert {(worker, call["expert"]) for call in calls for worker in call["workers"]} <= set(held.items())
    assert {call["role"] for call in calls} == {"propose", "aggregate"}
    assert {call["status"] for call in calls} == {"finished"}
    assert sum(call["role"] == "propose" for call in calls) == 3 * 12
    assert num_posts(servers) == len(calls) <= 4 * 12, "what a paid server bills: the batch's calls and no other"
    assert "not the batch" not in outcome.err
    assert "pilot" not in outcome.err
    asked = servers[1].prompts()
    assert any(prompt.startswith("Several models were asked") for prompt in asked), "the aggregator's server"


@pytest.mark.slow
def test_an_expert_whose_server_refuses_ends_alone_and_is_tried_again_later(tmp_path, servers):
    refusal = [(401, {"error": {"message": "Incorrect API key"}})]
    servers[1].behave = lambda body, number: refusal[0] if refusal else completion(body)
    folder = tmp_path / "run"
    overrides = [*overrides_of(tmp_path, servers), "aggregator=none", "backend.patience.max_retries=1"]
    outcome = run_in(folder, *overrides, run=run_here, status=3)
    assert "12 calls have no result" in outcome.out
    assert "401 Unauthorized: Incorrect API key; check" in " ".join(outcome.out.split())
    statuses = {(call["expert"], call["status"]) for call in rows(folder, "calls")}
    assert statuses == {("SmolLM2", "finished"), ("QwenHalf", "failed")}
    refusal.clear()
    run_in(folder, *overrides, run=run_here)
    assert sum(map(len, (servers[0].posts, servers[2].posts))) == 24, "nothing that was served is asked again"


def test_a_run_that_no_server_serves_ends_with_their_words(tmp_path, servers):
    for server in servers:
        server.behave = lambda body, number: (401, {"error": {"message": "Incorrect API key"}})
    outcome = run_in(tmp_path / "run", *overrides_of(tmp_path, servers), "aggregator=none", run=run_here, status=2)
    last = outcome.err.splitlines()[-1]
    assert last.startswith("error: no server serves any call: ")
    assert last.count("/v1: 401 Unauthorized: Incorrect API key; check the key (none is sent: api_key_env names") == 3


@pytest.mark.parametrize(
    "override", ["scheduler=fifo", "costs=affine", "profile.source=batch", "pipeline.moves=true", "plan.path=x.json"]
)
def test_what_servers_have_no_use_for_is_refused(override, tmp_path, servers):
    if override.startswith("plan"):
        (tmp_path / "x.json").write_text("{}")
    outcome = run_in(tmp_path / "run", *overrides_of(tmp_path, servers), override, run=run_here, status=2)
    if not override.startswith("plan"):
        assert "must be left out, it has no effect here (backend=endpoint sends each call" in outcome.err


def test_a_calibrated_gate_takes_a_saved_file_and_asks_nothing(tmp_path, servers):
    outcome = run_in(tmp_path / "run", *overrides_of(tmp_path, servers), "gate=calibrated", run=run_here, status=2)
    assert "gate.calibration must be given" in outcome.err
    assert num_posts(servers) == 0


def test_nothing_is_quoted_or_planned_on_servers(tmp_path, servers):
    overrides = [*overrides_of(tmp_path, servers), "aggregator=none"]
    with pytest.raises(ValueError, match="backend.name must be sim or vllm in a quote of GPUs.*got 'endpoint'"):
        quote_batch(overrides, folder=tmp_path / "quote")
    job = build_job(compose_config(overrides), tmp_path / "journal").job
    for use in (mosaic.plan, measure):
        with pytest.raises(ValueError, match="job.site must be one that places experts.*got 'endpoint'"):
            use(job)
    assert num_posts(servers) == 0


@pytest.mark.slow
def test_a_batch_on_servers_sends_its_own_calls_and_goes_on_where_one_failed(tmp_path, servers):
    refusal = [(401, {"error": {"message": "Incorrect API key"}})]
    servers[1].behave = lambda body, number: refusal[0] if refusal else completion(body)
    kept = [value for value in overrides_of(tmp_path, servers) if not value.startswith("workload")]
    path = write_batch(tmp_path, [batch_line(number) for number in range(10)])
    experts = "workload.experts=[SmolLM2,QwenHalf]"
    command = ["batch", path, "--aggregator", "none", "--per-question", "1", *kept, experts]
    outcome = run_mosaic(*command)
    assert outcome.status == 4, outcome.err
    num_served = sum(len(server.posts) for server in (servers[0], servers[2]))
    assert num_served > 0
    refusal.clear()
    servers[1].posts.clear()
    outcome = run_mosaic(*command)
    assert outcome.status == 0, outcome.err
    assert num_posts(servers) == 10
