"""Runs over several machines, which are threads here: they come, go, and lack what a run needs."""

import threading
import time
from contextlib import ExitStack
from dataclasses import replace

import pytest

from mosaic.core.commands import Close, Move, Open
from mosaic.core.errors import BackendError
from mosaic.core.events import Closed, Joined, Lost, Ready, Started
from mosaic.engines.checkpoints import check_checkpoint
from mosaic.engines.machine_agent import Forward
from mosaic.engines.messages import Load
from mosaic.engines.remote_launcher import ABSENT
from mosaic.engines.vllm_engines import VllmEngines
from mosaic.runtime.replanning import Replanning
from tests.controllers import Reactor
from tests.engines.executor_runs import IMPATIENT, OPTIONS, Runs, finished_once, make_checkpoint
from tests.engines.here_machines import GONE, HereMachines, launcher_on
from tests.engines.tiny_checkpoint import tiny_expert
from tests.factories import make_plan, make_session, some_calls


def on_first(num_workers: int):
    """Plan what is left, an expert a session, on the first workers that are there."""
    made = []

    def plan(calls, lost):
        there = [worker for worker in range(num_workers) if worker not in lost]
        names = sorted({call.expert for call in calls})
        shards = [[call for call in calls if call.expert == name] for name in names]
        sessions = [make_session(i, shard, workers=(there[i % len(there)],)) for i, shard in enumerate(shards)]
        made.append((len(calls), dict(lost)))
        return make_plan(*sessions, num_workers=num_workers)

    return plan, made


def at(num_calls: int, do):
    """Do something once, when so many calls have ended."""
    seen = []

    def react(record):
        seen.append(record)
        if len(seen) == num_calls:
            do()

    return Reactor(react)


def responses(runs):
    return {key: (record.response, record.output_tokens) for key, record in runs.records.items()}


@pytest.fixture
def kept():
    with ExitStack() as stack:

        def keep(machines, *args):
            launcher = launcher_on(machines, *args)
            stack.enter_context(launcher.kept())
            return launcher

        yield keep


@pytest.mark.slow
def test_machines_say_what_this_one_says(tmp_path, kept, host) -> None:
    calls = [*some_calls("A", 20), *some_calls("B", 20)]
    plan = make_plan(make_session(0, calls[:20]), make_session(1, calls[20:], workers=(1,)))
    there = Runs(tmp_path / "there", kept(HereMachines({"a": 1, "b": 1})))
    result = there.execute(plan, calls)
    here = Runs(tmp_path / "here", host)
    here.execute(plan, calls)
    assert responses(there) == responses(here)
    finished_once(tmp_path / "there", calls)
    assert [session.workers for session in result.sessions] == [(0,), (1,)]


@pytest.mark.slow
def test_workers_of_a_lost_machine_are_planned_around_at_once_and_together(tmp_path, kept) -> None:
    machines = HereMachines({"a": 1, "b": 2})
    calls = [*some_calls("A", 300), *some_calls("B", 40), *some_calls("C", 40)]
    plan = make_plan(
        make_session(0, calls[:300]),
        make_session(1, calls[300:340], workers=(1,)),
        make_session(2, calls[340:], workers=(2,)),
        num_workers=3,
    )
    runs = Runs(tmp_path, kept(machines), names="ABC", num_workers=3)
    replan, made = on_first(3)
    runs.execute(plan, calls, Replanning(replan), at(8, lambda: machines.unplug("b")))
    finished_once(tmp_path, calls)
    assert runs.lost == dict.fromkeys((1, 2), "machine b is gone")
    assert [sorted(lost) for _, lost in made] == [[1, 2]] * len(made), "never planned on what goes at the same instant"
    assert len(made) == 1
    lost_at = next(i for i, event in enumerate(runs.watcher.events) if isinstance(event, Lost))
    own_end = next(i for i, e in enumerate(runs.watcher.events) if isinstance(e, Closed) and e.record.session == 0)
    assert lost_at < own_end, "the session that goes on elsewhere is not waited for"


class UseJoined:
    """Gives a worker that joins half of the calls that are left, of which the last ones wait for it."""

    reacts = True

    def __init__(self, folder) -> None:
        self.hold = folder / "A" / "hold"
        self.hold.touch()
        self.numbers = set()

    def on(self, event, view):
        if isinstance(event, Ready) and event.session in self.numbers:
            self.hold.unlink(missing_ok=True)
        if not isinstance(event, Joined):
            return ()
        keys = [key for key, call in view.running.items() if call.expert == "A"][::2]
        number = view.next_session()
        self.numbers.add(number)
        session = make_session(number, expert="A", workers=(event.worker,))
        return [Open(session), *(Move(key, number) for key in keys), Close(number)]


@pytest.mark.slow
def test_a_machine_that_comes_back_serves_its_workers_again(tmp_path, kept) -> None:
    machines = HereMachines({"a": 1, "b": 1})
    runs = Runs(tmp_path, kept(machines))
    calls = [*some_calls("A", 200), *some_calls("B", 20)]
    plan = make_plan(make_session(0, calls[:200]), make_session(1, calls[200:], workers=(1,)))
    unplug = at(4, lambda: machines.unplug("b"))

    class PlugIn:
        reacts = False

        def on(self, event, view):
            if isinstance(event, Lost):
                machines.rooms["b2"] = 1
            return ()

    runs.execute(plan, calls, UseJoined(tmp_path), Replanning(on_first(2)[0]), unplug, PlugIn())
    ended = finished_once(tmp_path, calls).values()
    (lost,), (joined,) = runs.watcher.all(Lost), runs.watcher.all(Joined)
    assert lost.ts < joined.ts
    assert lost.worker == joined.worker == 1
    assert {record.workers for record in ended if record.finished_ts > joined.ts} == {(0,), (1,)}, "it gets calls too"


def test_what_one_run_lost_the_next_one_leaves_alone(tmp_path, host) -> None:
    calls = [*some_calls("A", 6), *some_calls("B", 6)]
    plan = make_plan(make_session(0, calls[:6]), make_session(1, calls[6:], workers=(1,)))
    runs = Runs(tmp_path, host, patience=IMPATIENT)
    replan, made = on_first(2)
    backend = runs.backend()
    backend.lost = {1: "it broke in the pilot"}
    runs.backend = lambda: backend
    runs.execute(plan, calls, Replanning(replan))
    finished_once(tmp_path, calls)
    assert made == [(6, {1: "it broke in the pilot"})]
    assert [type(event) for event in runs.watcher.events[:2]] == [Started, Lost]
    assert {event.session for event in runs.watcher.all(Ready)} == {0, 2}, "nothing was tried there"


def test_a_cluster_says_of_all_machines_what_they_lack(tmp_path, kept) -> None:
    path = make_checkpoint(tmp_path, "A")
    other = replace(check_checkpoint(path), path=tmp_path / "elsewhere", fingerprint="another")
    machines = HereMachines(
        {"a": 1, "b": 1, "c": 1},
        engines=VllmEngines(options=OPTIONS, found={"A": other, "B": other}),
        experts=(tiny_expert("A", path), tiny_expert("B", "nowhere/B")),
        versions={"Python": "2.7"},
    )
    machines.broken["c"] = "starts no agent in 60 s"
    with pytest.raises(BackendError) as raised:
        kept(machines)
    text = str(raised.value)
    assert "a has Python 3." in text
    assert ", and the driver 2.7" in text
    assert f"has another A in {path.resolve()} than the driver in {other.path}" in text
    assert "cannot load B: checkpoint nowhere/B: no such folder" in text
    assert "b has Python" in text
    assert "c starts no agent in 60 s" in text


def test_a_cluster_says_which_machine_cannot_import_its_engine(kept) -> None:
    with pytest.raises(BackendError, match="a the engine cannot be imported: ModuleNotFoundError: .*no_such_engine"):
        kept(HereMachines({"a": 1}, engine_module="tests.engines.no_such_engine"))


def test_a_machine_that_goes_while_its_agent_starts_is_absent(kept) -> None:
    machines = HereMachines({"a": 1, "b": 1})
    machines.broken["b"] = GONE
    assert kept(machines).absent == (1,)
    machines = HereMachines({"a": 1, "b": 1})
    machines.broken = {"a": GONE, "b": GONE}
    with pytest.raises(BackendError, match="machines cannot serve: a cannot start .*; b cannot start"):
        kept(machines)


def listen_until(launcher, is_done) -> None:
    end = time.monotonic() + 30
    while not is_done() and time.monotonic() < end:
        list(launcher.listen(1.0))
    assert is_done()


@pytest.mark.slow
def test_a_cluster_that_cannot_be_asked_for_a_while_is_asked_again(kept) -> None:
    machines = HereMachines({"a": 1})
    launcher = kept(machines, 2)
    machines.num_deaf = 2
    machines.rooms["b"] = 1
    listen_until(launcher, lambda: not launcher.absent)
    assert machines.num_deaf == 0


@pytest.mark.slow
@pytest.mark.parametrize("when", ["in the run", "before it"])
def test_a_run_without_any_machine_waits_for_one(tmp_path, kept, when) -> None:
    machines, told = HereMachines({"a": 1, "b": 1}), []
    launcher = kept(machines, 2, told.append)
    runs = Runs(tmp_path, launcher)
    calls = [*some_calls("A", 300), *some_calls("B", 300)]
    plan = make_plan(make_session(0, calls[:300]), make_session(1, calls[300:], workers=(1,)))
    come = threading.Timer(2.0, lambda: machines.rooms.update(c=1))

    def unplug_all() -> None:
        machines.unplug("a")
        machines.unplug("b")
        come.start()

    if when == "before it":
        unplug_all()
        listen_until(launcher, lambda: len(launcher.absent) == 2)
    replan, made = on_first(2)
    runs.execute(plan, calls, Replanning(replan), at(8, unplug_all if when == "in the run" else lambda: None))
    finished_once(tmp_path, calls)
    assert len(made[-1][1]) == 1, "for the worker that no machine serves now"
    assert len(made) <= 2, "once more if the machines were heard to go one by one"
    assert ["no machine is left" in line for line in told] == [True]


@pytest.mark.slow
def test_machines_that_are_lost_again_and_again_before_a_call_ends_cost_no_worker(tmp_path, kept) -> None:
    machines, names = HereMachines({"a": 1}), list("abcd")

    class Unplug:
        reacts = True

        def on(self, event, view):
            if isinstance(event, Ready) and len(names) > 1:
                machines.unplug(names.pop(0))
                machines.rooms[names[0]] = 1
            return ()

    runs = Runs(tmp_path, kept(machines), num_workers=1)
    calls = some_calls("A", 20)
    runs.execute(make_plan(make_session(0, calls), num_workers=1), calls, Unplug())
    assert (names, runs.lost) == (["d"], {})
    finished_once(tmp_path, calls)


def test_a_run_does_not_wait_for_ever(tmp_path, kept, monkeypatch) -> None:
    monkeypatch.setattr("mosaic.engines.remote_launcher.COME_BACK_S", 0.5)
    machines = HereMachines({"a": 1})
    runs = Runs(tmp_path, kept(machines), num_workers=1)
    calls = some_calls("A", 300)
    with pytest.raises(BackendError, match="all workers are lost and .* calls are left .*machine a is gone"):
        runs.execute(
            make_plan(make_session(0, calls), num_workers=1), calls, Replanning(on_first(1)[0]),
            at(8, lambda: machines.unplug("a")),
        )  # fmt: skip


def test_a_machine_finds_its_own_copy_of_a_checkpoint(tmp_path, kept) -> None:
    here, there = make_checkpoint(tmp_path / "here", "A"), make_checkpoint(tmp_path / "there", "A")
    engines = VllmEngines(options=OPTIONS, found={"A": check_checkpoint(here)})
    machines = HereMachines({"a": 1}, engines=engines, experts=(tiny_expert("A", there),))
    (there / "behave").write_text("note")
    runs = Runs(tmp_path / "here", kept(machines), num_workers=1)
    calls = some_calls("A", 2)
    runs.execute(make_plan(make_session(0, calls), num_workers=1), calls)
    assert list(there.glob("pid-*")), "the copy in the machine's own folder was loaded"
    assert not list(here.glob("pid-*"))


@pytest.mark.slow
def test_a_machine_that_came_and_cannot_serve_is_told(tmp_path, kept) -> None:
    machines, told = HereMachines({"a": 1}), []
    machines.broken["b"] = "has not {'CPU': 1.0} free"
    runs = Runs(tmp_path, kept(machines, 2, told.append))
    calls = some_calls("A", 1500)
    runs.execute(make_plan(make_session(0, calls)), calls, at(4, lambda: machines.rooms.update(b=1)))
    assert told == ["b has not {'CPU': 1.0} free"]
    assert runs.lost == {1: ABSENT}
    assert not runs.watcher.all(Joined)


def test_instants_of_a_machine_are_on_its_own_clock(tmp_path, kept) -> None:
    machines = HereMachines({"a": 1, "b": 1})
    machines.ahead_s["b"] = 1000.0
    launcher = kept(machines)
    launcher.begin(tmp_path, 2, is_new=True)
    for worker in (0, 1):
        assert launcher.open(worker, (worker,))
        launcher.send(worker, Load(spec="any spec", zero_ts=50.0))
    list(launcher.listen(0.0))
    loads = [[order.message for order in machines.started[name].orders if isinstance(order, Forward)] for name in "ab"]
    zeros = [load.zero_ts for name in loads for load in name]
    assert zeros == [pytest.approx(50.0, abs=0.1), pytest.approx(1050.0, abs=0.1)]


def test_what_a_process_printed_comes_along(tmp_path, kept) -> None:
    (make_checkpoint(tmp_path, "A") / "behave").write_text("print")
    runs = Runs(tmp_path, kept(HereMachines({"a": 1})), num_workers=1)
    calls = some_calls("A", 2)
    runs.execute(make_plan(make_session(0, calls), num_workers=1), calls)
    assert (tmp_path / "journal" / "worker-0.log").read_text() == (
        "--- on a\nsaid by \\x1b[1mthe engine\ncomplained by the engine\n"
    )


def test_a_call_that_kills_its_process_is_found_on_a_machine_too(tmp_path, kept) -> None:
    calls = some_calls("A", 8)
    prompts = lambda call, inputs: "die" if call is calls[3] else "well"  # noqa: E731
    runs = Runs(tmp_path, kept(HereMachines({"a": 1})), num_workers=1, prompts=prompts)
    runs.execute(make_plan(make_session(0, calls), num_workers=1), calls)
    assert [call.key for call in calls if runs.records[call.key].response.error] == [calls[3].key]
