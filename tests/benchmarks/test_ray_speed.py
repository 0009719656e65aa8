"""What a call costs the driver on a Ray cluster, beside the local launcher; ``--benchmark-enable -s`` prints it."""

import os
import time
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from tests.commands.command_line import ROOT
from tests.engines.executor_runs import FAKE_ENGINE, Runs, running_host
from tests.engines.ray_nodes import emulated_nodes, has_ray
from tests.engines.test_ray import on_ray
from tests.factories import make_plan, make_session, some_calls

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not has_ray(), reason="Ray is not installed"),
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]


def test_a_call_on_ray_beside_a_local_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, benchmark: BenchmarkFixture
) -> None:
    num_calls = 6000 if benchmark.enabled else 300
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    calls = [*some_calls("A", num_calls // 2), *some_calls("B", num_calls // 2)]
    halves = calls[: num_calls // 2], calls[num_calls // 2 :]
    plan = make_plan(make_session(0, halves[0]), make_session(1, halves[1], workers=(1,)), num_workers=2)
    spent_ms = {}

    def timed(name: str, runs: Runs) -> None:
        start_s = time.process_time()
        runs.execute(plan, calls)
        spent_ms[name] = 1000 * (time.process_time() - start_s) / num_calls

    with emulated_nodes("a", "b") as nodes, on_ray(nodes, (1, 1)) as cluster:
        there = Runs(tmp_path / "there", cluster, names="AB", num_workers=2)
        benchmark.pedantic(timed, args=("ray", there), rounds=1)
    with running_host(FAKE_ENGINE) as host:
        here = Runs(tmp_path / "here", host, names="AB", num_workers=2)
        timed("local", here)
    assert {key: record.response for key, record in there.records.items()} == {
        key: record.response for key, record in here.records.items()
    }
    ray_ms, here_ms = spent_ms["ray"], spent_ms["local"]
    print(f"\n{num_calls} calls, each of the driver's time: {ray_ms:.2f} ms on Ray, {here_ms:.2f} ms here")
