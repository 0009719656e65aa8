"""Runs on a Ray cluster whose nodes are emulated on this machine: nodes are killed, come and join.

All tests that start Ray are here, so that ``--dist loadfile`` starts one cluster at a time; the first two have their
own. ``pytest -m slow -s --benchmark-enable tests/engines/test_ray.py -k beside`` prints what a call costs the driver.
"""

import os
import random
import signal
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest

from mosaic.core.engine_options import Device
from mosaic.core.errors import BackendError
from mosaic.core.events import Joined, Lost
from mosaic.core.results import CallStatus
from mosaic.engines.checkpoints import check_checkpoint
from mosaic.engines.local_launcher import VLLM_ENGINE
from mosaic.engines.machine_agent import installed_versions, make_setup
from mosaic.engines.ray_cluster import RayCluster, Room, hosts_of
from mosaic.engines.remote_launcher import RemoteLauncher
from mosaic.engines.vllm_engines import VllmEngines
from mosaic.runtime.replanning import Replanning
from tests.commands.test_batch_kills import PATIENT, ended_calls, finish, num_ended, start
from tests.engines.contract_backends import launcher_of
from tests.engines.executor_runs import (
    FAKE_ENGINE,
    OPTIONS,
    Runs,
    finished_once,
    has_vllm,
    make_checkpoint,
    running_host,
)
from tests.engines.fake_batch import batch_line, question, write_batch, write_models
from tests.engines.ray_nodes import emulated_nodes, has_ray
from tests.engines.test_remote_launcher import UseJoined, at, on_first, responses
from tests.engines.tiny_checkpoint import tiny_expert
from tests.factories import make_plan, make_session, some_calls

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not has_ray(), reason="Ray is not installed"),
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]
ROOT = Path(__file__).resolve().parents[2]
ENGINES = VllmEngines(options=OPTIONS)
ROOM = Room(device=Device.CPU, cpus_per_worker=1)
NUM_QUESTIONS = 200
KILLS = {"driver": 6, "worker": 7, "node": 7}


@pytest.fixture(scope="module", autouse=True)
def tests_are_found():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        yield


@pytest.fixture(scope="module")
def nodes():
    with emulated_nodes("a", "b", "c") as running:
        yield running


@pytest.fixture(autouse=True)
def leaves_the_cluster():
    """Who asks what hosts there are stays connected."""
    yield
    import ray

    ray.shutdown()


@contextmanager
def on_ray(nodes, sizes, *, engine_module=FAKE_ENGINE, engines=ENGINES, experts=()):
    cluster = RayCluster(nodes.address, ROOM, lambda: make_setup(engines, engine_module, experts))
    launcher = RemoteLauncher(cluster, sizes)
    with launcher.kept():
        yield launcher


def workers_of(folder: Path) -> list[int]:
    """List the processes on the nodes that serve models and are alive."""
    pids = sorted(int(path.name.removeprefix("pid-")) for path in folder.glob("checkpoints/*/pid-*"))
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_a_batch_on_ray_that_is_killed_twenty_times_ends_as_if_it_never_was(tmp_path) -> None:
    models = write_models(tmp_path)
    for checkpoint in (tmp_path / "checkpoints").iterdir():
        (checkpoint / "behave").write_text("note")
    folders = tmp_path / "undisturbed", tmp_path / "killed"
    for folder in folders:
        folder.mkdir()
        write_batch(folder, [batch_line(number, question(number, "slow")) for number in range(NUM_QUESTIONS)])
    finish(start(folders[0] / "questions.jsonl", *models))  # here, and no call waits for others
    draw, killed, folder = random.Random(0), Counter[str](), folders[1]
    with emulated_nodes("a", "b") as nodes:
        there = ["cluster=ray", f"cluster.address={nodes.address}", "cluster.num_workers=2", "hardware=cpu_core"]
        words = [folder / "questions.jsonl", *models, *PATIENT, *there]
        process = start(*words)
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
                    process = start(*words)
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


def test_a_call_on_ray_beside_a_local_one(tmp_path, benchmark) -> None:
    num_calls = 6000 if benchmark.enabled else 300
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


def test_three_nodes_one_killed_and_one_joining(tmp_path, nodes) -> None:
    calls = [*some_calls("A", 4000), *some_calls("B", 1000), *some_calls("C", 1000)]
    plan = make_plan(
        make_session(0, calls[:4000]),
        make_session(1, calls[4000:5000], workers=(1,)),
        make_session(2, calls[5000:], workers=(2,)),
        num_workers=3,
    )
    killed = []

    def kill() -> None:
        nodes.kill("c")
        nodes.add("d", wait=False)
        killed.append(time.monotonic())

    class Watch:
        reacts = False
        lost_s = None

        def on(self, event, view):
            if isinstance(event, Lost):
                self.lost_s = time.monotonic() - killed[0]
            return ()

    watch = Watch()
    with on_ray(nodes, (1, 1, 1)) as launcher:
        there = Runs(tmp_path / "there", launcher, names="ABC", num_workers=3)
        there.execute(plan, calls, UseJoined(tmp_path / "there"), Replanning(on_first(3)[0]), at(900, kill), watch)
    ended = finished_once(tmp_path / "there", calls)
    (lost,) = there.watcher.all(Lost)
    assert "is gone" in lost.cause
    assert lost.cause.startswith("machine ")
    assert watch.lost_s < 20
    (joined,) = there.watcher.all(Joined)
    assert joined.worker == lost.worker
    late = [record for record in ended.values() if record.finished_ts > joined.ts]
    assert any(record.workers == (joined.worker,) for record in late), "who joins gets calls"
    with running_host(FAKE_ENGINE) as host:
        here = Runs(tmp_path / "here", host, names="ABC", num_workers=3)
        here.execute(plan, calls)
    assert responses(there) == responses(here)


@pytest.mark.skipif(not has_vllm(), reason="vLLM is not installed")
def test_real_vllm_on_two_nodes_of_which_one_is_killed(tmp_path, nodes) -> None:
    calls = [*some_calls("A", 60), *some_calls("B", 300)]
    plan = make_plan(make_session(0, calls[:60]), make_session(1, calls[60:], workers=(1,)))
    with on_ray(nodes, (1, 1), engine_module=VLLM_ENGINE) as launcher:
        there = Runs(tmp_path / "there", launcher)
        by_node = {node.id: worker for worker, node in launcher.nodes.items()}
        victim = next(one for one, node in nodes.nodes.items() if by_node.get(node.node_id) == 1)
        there.execute(plan, calls, Replanning(on_first(2)[0]), at(90, lambda: nodes.kill(victim)))
    finished_once(tmp_path / "there", calls)
    assert list(there.lost) == [1]
    here = Runs(tmp_path / "here", launcher_of(VLLM_ENGINE))
    here.execute(plan, calls)
    assert there.tokens == here.tokens
    texts = {key: record.response.text for key, record in here.records.items()}
    assert {key: record.response.text for key, record in there.records.items()} == texts
    nodes.add(victim)


def test_a_machine_that_is_gone_is_not_counted(nodes) -> None:
    before = len(hosts_of(nodes.address, ROOM, None))
    nodes.add("e")
    assert len(hosts_of(nodes.address, ROOM, None)) == before + 1
    nodes.kill("e")
    assert len(hosts_of(nodes.address, ROOM, None)) == before, "Ray itself notices after many seconds"


def test_what_is_missing_is_said_within_seconds(tmp_path, nodes) -> None:
    start = time.monotonic()
    with pytest.raises(BackendError, match=r"no Ray cluster at ray://localhost:1: .*refused.*ray start --head"):
        hosts_of("ray://localhost:1", ROOM, None)
    with pytest.raises(BackendError, match=r"no machine of the Ray cluster has room .* \{'CPU': 1, 'GPU': 1.0\}"):
        hosts_of(nodes.address, Room(device=Device.GPU, cpus_per_worker=1), None)
    path = make_checkpoint(tmp_path, "A")
    engines = VllmEngines(options=OPTIONS, found={"A": check_checkpoint(path)})
    with (
        pytest.raises(BackendError, match="cannot load A: checkpoint .*-gone: no such folder"),
        on_ray(nodes, (1,), engines=engines, experts=(tiny_expert("A", Path(f"{path}-gone")),)),
    ):
        pass
    assert "ray" in installed_versions()
    assert time.monotonic() - start < 30
