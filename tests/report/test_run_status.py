import pytest

from mosaic.core.commands import Close, Move, Open, Submit
from mosaic.core.events import Idle, Lost, Progress, Ready, Started
from mosaic.core.plan import PredictedTimes, Session
from mosaic.core.results import CallStatus
from mosaic.report.run_status import RunStatus, SessionStatus, describe_session
from tests.factories import make_call
from tests.report.told_runs import Clock, Run

PREDICTED = {0: PredictedTimes(0.0, 30.0, 70.0), 1: PredictedTimes(0.0, 0.0, 0.0), 2: PredictedTimes(70.0, 8.0, 98.0)}


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def status(clock):
    return RunStatus("calls", predicted=PREDICTED, clock=clock)


@pytest.fixture
def run(status, clock):
    return Run(status.hear, clock)


# A session in a line.


def make_status(**changes: object) -> SessionStatus:
    return SessionStatus((0,), "A", is_loaded=True, elapsed_s=3.0, num_calls=4)._replace(**changes)


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (make_status(is_loaded=False, elapsed_s=12.4, predicted_s=39.0), "worker 0: A loading, 12 s of 39 s planned"),
        (make_status(is_loaded=False, elapsed_s=75.0), "worker 0: A loading, 1 min 15 s"),
        (make_status(num_calls=350), "worker 0: A serving, 0 of 350 calls"),
        (make_status(num_calls=350, predicted_s=80.0), "worker 0: A serving, 0 of 350 calls, 1 min 20 s left"),
        (
            make_status(
                num_calls=4000, num_ended=1000, output_tokens=240_000, elapsed_s=100.0, predicted_s=800.0
            ),
            "worker 0: A serving, 1,000 of 4,000 calls, 2,400 tokens/s, 10 min 00 s left",
        ),
        (
            make_status(num_calls=4000, num_ended=1000, output_tokens=240_000, elapsed_s=2400.0),
            "worker 0: A serving, 1,000 of 4,000 calls, 100 tokens/s, 2 h 00 min left",
        ),
        (make_status(num_ended=4, output_tokens=9, elapsed_s=0.0), "worker 0: A serving, 4 of 4 calls, 0 s left"),
        (make_status(workers=(0, 2), num_ended=1), "workers 0, 2: A serving, 1 of 4 calls, 9 s left"),
        (make_status(num_calls=0, num_ended=7, output_tokens=30), "worker 0: A serving, 7 calls, 10 tokens/s"),
    ],
)  # fmt: skip
def test_a_session_in_a_line(status, text):
    assert describe_session(status) == text


def test_calls_of_an_earlier_try_count_as_done_but_not_for_the_pace():
    status = make_status(num_calls=100, num_ended=90, num_before=80, output_tokens=50, elapsed_s=10.0)
    text = "worker 0: A serving, 90 of 100 calls, 5 tokens/s"
    assert describe_session(status) == f"{text}, 10 s left"
    assert describe_session(status._replace(predicted_s=500.0)) == f"{text}, 50 s left"


# A run.


def test_before_anything_is_told_nothing_is_known(status):
    assert status.describe_workers() == []
    assert status.describe_calls() == "calls: 0 of 0 calls (100%) after 0 s"


def test_a_session_from_its_start_to_its_end(status, run, clock):
    calls = run.open(0, "A", 4)
    assert run.tell(Started(0.0)) == ["calls: 4 calls on 2 workers", "worker 0: loading A (session 0, 4 calls)"]
    clock.now += 20
    assert status.describe_workers() == ["worker 0: A loading, 20 s of 30 s planned", "worker 1: idle"]
    assert status.describe_calls() == "calls: 0 of 4 calls (0%) after 20 s, 1 loading"
    clock.now += 5
    assert run.tell(Ready(25.0, 0)) == []
    assert status.describe_workers()[0] == "worker 0: A serving, 0 of 4 calls, 40 s left"
    assert run.finish(0, calls[:1]) == []
    clock.now += 10
    assert status.describe_workers()[0] == "worker 0: A serving, 1 of 4 calls, 10 tokens/s, 30 s left"
    assert status.describe_calls() == "calls: 1 of 4 calls (25%) after 35 s, 1 serving"
    clock.now += 10
    run.finish(0, calls[1:])
    assert run.close(0, load_s=25.0, serve_s=20.0) == [
        "worker 0: A (session 0): 4 of 4 calls ended in 20 s after 25 s of loading, 20 tokens/s"
    ]
    assert run.tell(Idle(45.0, 0)) == []
    assert status.describe_workers()[0] == "worker 0: idle"
    assert status.describe_calls() == "calls: 4 of 4 calls (100%) after 45 s"


def test_calls_told_all_at_once_at_the_end_give_the_same_line(status, run, clock):
    calls = run.open(0, "A", 4)
    run.tell(Started(0.0))
    run.tell(Ready(0.0, 0))
    clock.now += 30
    assert status.describe_workers()[0] == "worker 0: A serving, 0 of 4 calls, 40 s left"
    run.finish(0, calls)
    assert run.close(0, serve_s=30.0) == ["worker 0: A (session 0): 4 of 4 calls ended in 30 s, 13 tokens/s"]
    assert status.describe_calls() == "calls: 4 of 4 calls (100%) after 30 s"


def test_running_calls_count_for_the_pace_until_they_end(status, run, clock):
    calls = run.open(1, "B", 2, workers=(1,))
    run.tell(Started(0.0))
    run.tell(Ready(0.0, 1))
    assert status.describe_workers()[1] == "worker 1: B serving, 0 of 2 calls"
    clock.now += 5
    run.tell(Progress(5.0, 1, {calls[0].key: 40, calls[1].key: 60}))
    assert status.describe_workers()[1] == "worker 1: B serving, 0 of 2 calls, 20 tokens/s"
    run.finish(1, calls[:1], output_tokens=45)
    assert status.describe_workers()[1] == "worker 1: B serving, 1 of 2 calls, 21 tokens/s, 5 s left"


def test_sessions_load_one_after_the_other_on_a_worker(status, run, clock):
    first, second = run.open(0, "A", 4), run.open(1, "B", 2)
    assert run.tell(Started(0.0))[1:] == ["worker 0: loading A (session 0, 4 calls)"]
    run.tell(Ready(0.0, 0))
    assert status.describe_calls() == "calls: 0 of 6 calls (0%) after 0 s, 1 serving"
    run.finish(0, first)
    assert run.close(0) == [
        "worker 0: A (session 0): 4 of 4 calls ended in 0 s", "worker 0: loading B (session 1, 2 calls)"
    ]  # fmt: skip
    clock.now += 3
    assert status.describe_workers()[0] == "worker 0: B loading, 3 s"
    run.tell(Ready(3.0, 1))
    run.finish(1, second)
    assert len(run.close(1)) == 1


def test_a_session_waits_for_those_that_it_comes_after(status, run):
    calls = run.open(0, "A", 4)
    run.open(1, "B", 2, workers=(1,), after=(0,))
    assert len(run.tell(Started(0.0))) == 2
    assert status.describe_workers()[1] == "worker 1: waiting to load B"
    run.tell(Ready(0.0, 0))
    run.finish(0, calls)
    assert run.close(0)[1:] == ["worker 1: loading B (session 1, 2 calls)"]


def test_a_session_that_is_opened_while_the_run_goes_on_is_found(status, run):
    calls = run.open(0, "A", 4)
    run.tell(Started(0.0))
    run.tell(Ready(0.0, 0))
    run.open(1, "B", 2, workers=(1,))
    assert run.finish(0, calls[:1]) == ["worker 1: loading B (session 1, 2 calls)"]
    assert status.describe_calls() == "calls: 1 of 6 calls (17%) after 0 s, 1 serving, 1 loading"
    run.open(2, "C", 1, workers=(0,))
    assert run.tell(Ready(0.0, 1)) == []
    assert status.describe_workers()[1] == "worker 1: B serving, 0 of 2 calls"


def test_a_session_may_be_ready_before_anything_else_is_told_of_it(status, run):
    run.tell(Started(0.0))
    run.open(1, "B", 2, workers=(1,))
    assert run.tell(Ready(0.0, 1)) == ["worker 1: loading B (session 1, 2 calls)"]
    assert status.describe_workers()[1] == "worker 1: B serving, 0 of 2 calls"


def test_a_session_that_follows_on_the_same_expert_is_shown_but_no_news(status, run, clock):
    first, second = run.open(3, "A", 2), run.open(4, "A", 2)
    run.open(5, "B", 2)
    run.tell(Started(0.0))
    run.tell(Ready(0.0, 3))
    run.finish(3, first)
    assert len(run.close(3)) == 1
    assert run.tell(Ready(0.0, 4)) == []
    clock.now += 4
    run.finish(4, second[:1])
    assert status.describe_workers()[0] == "worker 0: A serving, 1 of 2 calls, 25 tokens/s, 4 s left"
    run.finish(4, second[1:])
    assert run.close(4) == ["worker 0: loading B (session 5, 2 calls)"]


def test_an_expert_that_spans_other_workers_than_before_is_news(status, run):
    calls = run.open(3, "A", 2)
    run.open(4, "A", 2, workers=(0, 1))
    run.tell(Started(0.0))
    run.tell(Ready(0.0, 3))
    run.finish(3, calls)
    assert run.close(3)[1:] == ["workers 0, 1: loading A (session 4, 2 calls)"]


def test_a_run_that_goes_on_after_an_interruption_counts_what_was_done(status, run, clock):
    calls = run.open(0, "A", 4)
    run.view.observe(Started(0.0))
    for call in calls[:3]:
        run.finish(0, [call])
    assert status.describe_calls() == "calls: 3 of 4 calls (75%) after 0 s, 1 loading"
    run.tell(Ready(0.0, 0))
    clock.now += 5
    assert status.describe_workers()[0] == "worker 0: A serving, 3 of 4 calls, 10 s left"
    run.finish(0, calls[3:])
    assert run.close(0, serve_s=5.0) == ["worker 0: A (session 0): 4 of 4 calls ended in 5 s, 20 tokens/s"]


def test_what_is_left_of_a_session_when_it_loads_is_told(status, run):
    first, second = run.open(0, "A", 1), run.open(1, "B", 4)
    run.tell(Started(0.0))
    run.finish(1, second[:3])
    run.finish(0, first)
    assert run.close(0)[1:] == ["worker 0: loading B (session 1, 1 of 4 calls that are left)"]


def test_a_lost_worker_and_what_is_planned_anew(status, run, clock):
    calls = run.open(0, "A", 4)
    run.open(1, "B", 2)
    run.tell(Started(0.0))
    run.tell(Ready(0.0, 0))
    run.finish(0, calls[:3])
    lost = Lost(0.0, 0, "exit status 9")
    run.view.observe(lost)
    run.give(Open(Session(id=2, expert="A", workers=(1,))), Submit(calls[3], 2), Close(2))
    assert run.hear(lost, run.view) == [
        "worker 0: lost: exit status 9",
        "worker 0: A (session 0) lost after 3 calls",
        "worker 1: loading A (session 2, 1 calls)",
    ]
    assert status.describe_workers() == ["worker 0: lost: exit status 9", "worker 1: A loading, 0 s of 8 s planned"]
    assert status.describe_calls() == "calls: 3 of 6 calls (50%) after 0 s, 1 loading, 1 lost"


def test_a_worker_lost_while_it_loads_is_told(status, run):
    run.open(0, "A", 4)
    run.tell(Started(0.0))
    assert run.tell(Lost(3.0, 0, "A cannot be loaded: no memory")) == [
        "worker 0: lost: A cannot be loaded: no memory", "worker 0: A (session 0) lost after 0 calls"
    ]  # fmt: skip


def test_a_gang_has_one_line_of_its_own_and_frees_its_workers(status, run):
    run.open(2, "Z", 3, workers=(0, 1))
    run.open(1, "B", 2, workers=(1,))
    assert run.tell(Started(0.0))[1:] == ["workers 0, 1: loading Z (session 2, 3 calls)"]
    assert status.describe_workers() == ["workers 0, 1: Z loading, 0 s of 8 s planned", "worker 1: with worker 0"]
    assert status.describe_calls() == "calls: 0 of 5 calls (0%) after 0 s, 1 loading"
    assert run.close(2) == [
        "workers 0, 1: Z (session 2): 0 of 3 calls ended in 0 s", "worker 1: loading B (session 1, 2 calls)"
    ]  # fmt: skip
    assert status.describe_workers() == ["worker 0: idle", "worker 1: B loading, 0 s"]


def test_a_gang_waits_until_all_of_its_workers_are_free(status, run):
    calls = run.open(0, "A", 4)
    run.open(2, "Z", 3, workers=(0, 1))
    run.tell(Started(0.0))
    assert status.describe_workers() == ["worker 0: A loading, 0 s of 30 s planned", "worker 1: waiting to load Z"]
    run.finish(0, calls)
    assert run.close(0)[1:] == ["workers 0, 1: loading Z (session 2, 3 calls)"]


def test_calls_from_an_experts_queue_count_where_they_ended(status, run):
    run.give(Open(Session(id=0, expert="A", workers=(0,))), Open(Session(id=1, expert="A", workers=(1,))))
    calls = [make_call(f"q{i}") for i in range(3)]
    run.give(*(Submit(call, "A") for call in calls))
    assert run.tell(Started(0.0))[0] == "calls: 3 calls on 2 workers"
    run.tell(Ready(0.0, 0))
    run.tell(Ready(0.0, 1))
    run.finish(0, calls[:2])
    run.finish(1, calls[2:])
    assert status.describe_workers() == ["worker 0: A serving, 2 calls", "worker 1: A serving, 1 calls"]
    assert run.close(0) == ["worker 0: A (session 0): 2 calls ended in 0 s"]


def test_a_call_that_moves_counts_where_it_goes(status, run):
    calls = run.open(3, "A", 3)
    run.open(4, "A", 1, workers=(1,))
    run.tell(Started(0.0))
    run.tell(Ready(0.0, 3))
    run.tell(Ready(0.0, 4))
    run.give(Move(calls[0].key, 4))
    assert status.describe_workers() == ["worker 0: A serving, 0 of 2 calls", "worker 1: A serving, 0 of 2 calls"]


def test_failed_calls_are_counted(status, run):
    calls = run.open(0, "A", 4)
    run.tell(Started(0.0))
    run.finish(0, calls[:2], status=CallStatus.FAILED)
    run.finish(0, calls[2:3])
    assert status.describe_calls() == "calls: 3 of 4 calls (75%) after 0 s, 2 failed, 1 loading"


def test_in_a_simulation_time_passes_with_the_events_alone(clock):
    status = RunStatus("calls", is_simulated=True, clock=clock)
    run = Run(status.hear, clock)
    run.open(0, "A", 2)
    run.tell(Started(0.0))
    run.tell(Ready(40.0, 0))
    clock.now += 7
    assert status.describe_calls() == "calls: 0 of 2 calls (0%) after 40 s, 1 serving"
    run.tell(Progress(300.0, 0, {}))
    assert status.describe_calls() == "calls: 0 of 2 calls (0%) after 5 min 00 s, 1 serving"
