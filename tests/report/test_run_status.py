"""What a run says of itself while it lasts: rows of workers, and lines of a log."""

import pytest
from msgspec.structs import replace

from mosaic.core.commands import Close, Move, Open, Submit
from mosaic.core.events import Finished, Idle, Lost, Progress, Ready, Started
from mosaic.core.plan import Expected, PredictedTimes, Session
from mosaic.core.results import CallStatus
from mosaic.report.run_status import Row, RunStatus
from tests.factories import make_call
from tests.report.sent_events import Clock, Run
from tests.run_records import make_record

TIMES = {0: PredictedTimes(0.0, 30.0, 70.0), 1: PredictedTimes(0.0, 0.0, 0.0), 2: PredictedTimes(70.0, 8.0, 98.0)}


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def status(clock):
    return RunStatus("calls", Expected(times=TIMES), clock=clock)


@pytest.fixture
def run(status, clock):
    return Run(status.receive, clock)


def texts(status: RunStatus) -> list[str]:
    return [f"{row.name}: {row.text}" for row in status.worker_rows()]


# A session in a row.


@pytest.mark.parametrize(
    ("num_ended", "elapsed_s", "times", "row"),
    [
        (0, 0.0, None, Row("worker 0", "A serving", 0, 350)),
        (0, 0.0, PredictedTimes(0.0, 3.0, 83.0), Row("worker 0", "A serving, 1 min 20 s left", 0, 350)),
        (
            70,
            100.0,
            PredictedTimes(0.0, 3.0, 83.0),
            Row("worker 0", "A serving, 70 tokens/s, 1 min 04 s left", 70, 350),
        ),
        (70, 2400.0, None, Row("worker 0", "A serving, 3 tokens/s, 2 h 40 min left", 70, 350)),
        (350, 0.0, None, Row("worker 0", "A serving, 0 s left", 350, 350)),
    ],
)
def test_a_session_in_a_row(clock, num_ended, elapsed_s, times, row):
    status = RunStatus("calls", Expected(times={} if times is None else {0: times}), clock=clock)
    run = Run(status.receive, clock)
    calls = run.open(0, "A", 350)
    run.start(0)
    clock.now += elapsed_s
    run.finish(0, calls[:num_ended])
    assert status.worker_rows()[0] == row


# A run.


def test_before_the_first_event_nothing_is_known(status):
    assert status.worker_rows() == []
    assert status.describe() == "calls: 0 of 0 calls (100%) after 0 s"


def test_a_session_from_its_start_to_its_end(status, run, clock):
    calls = run.open(0, "A", 4)
    assert run.send(Started(0.0)) == ["calls: 4 calls on 2 workers", "worker 0: loading A (session 0, 4 calls)"]
    clock.now += 20
    assert texts(status) == ["worker 0: A loading, 20 s of 30 s planned", "worker 1: idle"]
    assert status.describe() == "calls: 0 of 4 calls (0%) after 20 s, 1 loading"
    clock.now += 5
    assert run.send(Ready(25.0, 0)) == []
    assert texts(status)[0] == "worker 0: A serving, 40 s left"
    assert run.finish(0, calls[:1]) == []
    clock.now += 10
    assert status.worker_rows()[0] == Row("worker 0", "A serving, 10 tokens/s, 30 s left", 1, 4)
    assert status.describe() == "calls: 1 of 4 calls (25%) after 35 s, 1 serving"
    clock.now += 10
    run.finish(0, calls[1:])
    assert run.close(0, load_s=25.0, serve_s=20.0) == [
        "worker 0: A (session 0): 4 calls ended in 20 s after 25 s of loading, 20 tokens/s"
    ]
    assert run.send(Idle(45.0, 0)) == []
    assert texts(status)[0] == "worker 0: idle"
    assert status.describe() == "calls: 4 of 4 calls (100%) after 45 s"
    assert status.row() == Row("calls", "45 s", 4, 4)


def test_running_calls_count_for_the_pace_until_they_end(status, run, clock):
    calls = run.open(1, "B", 2, workers=(1,))
    run.start(1)
    assert texts(status)[1] == "worker 1: B serving"
    clock.now += 5
    run.send(Progress(5.0, 1, {calls[0].key: 40, calls[1].key: 60}))
    assert texts(status)[1] == "worker 1: B serving, 20 tokens/s"
    run.finish(1, calls[:1], output_tokens=45)
    assert texts(status)[1] == "worker 1: B serving, 21 tokens/s, 5 s left"


def test_sessions_load_one_after_the_other_on_a_worker_and_late_ones_are_found(status, run, clock):
    first, second = run.open(0, "A", 4), run.open(1, "B", 2)
    assert run.send(Started(0.0))[1:] == ["worker 0: loading A (session 0, 4 calls)"]
    run.send(Ready(0.0, 0))
    late = run.open(3, "C", 2, workers=(1,))
    assert run.finish(0, first[:1]) == ["worker 1: loading C (session 3, 2 calls)"], "opened while the run goes on"
    assert status.describe() == "calls: 1 of 8 calls (12%) after 0 s, 1 serving, 1 loading"
    run.finish(0, first[1:])
    assert run.close(0) == [
        "worker 0: A (session 0): 4 calls ended in 0 s", "worker 0: loading B (session 1, 2 calls)"
    ]  # fmt: skip
    clock.now += 3
    assert texts(status) == ["worker 0: B loading, 3 s", "worker 1: C loading, 3 s"]
    run.send(Ready(3.0, 1))
    run.finish(1, second)
    assert len(run.close(1)) == 1
    run.finish(3, late)
    run.open(4, "D", 1, workers=(0,))
    assert run.send(Ready(3.0, 4)) == ["worker 0: loading D (session 4, 1 calls)"], "ready before any other event of it"
    assert texts(status)[0] == "worker 0: D serving"


def test_a_session_waits_for_those_that_it_comes_after(status, run):
    calls = run.open(0, "A", 4)
    run.open(1, "B", 2, workers=(1,), after=(0,))
    assert len(run.send(Started(0.0))) == 2
    assert texts(status)[1] == "worker 1: waiting to load B"
    run.send(Ready(0.0, 0))
    run.finish(0, calls)
    assert run.close(0)[1:] == ["worker 1: loading B (session 1, 2 calls)"]


def test_a_session_that_follows_on_the_same_expert_is_shown_but_no_news(status, run, clock):
    first, second = run.open(3, "A", 2), run.open(4, "A", 2)
    run.open(5, "B", 2)
    run.start(3)
    run.finish(3, first)
    assert len(run.close(3)) == 1
    assert run.send(Ready(0.0, 4)) == []
    clock.now += 4
    run.finish(4, second[:1])
    assert texts(status)[0] == "worker 0: A serving, 25 tokens/s, 4 s left"
    run.finish(4, second[1:])
    assert run.close(4) == ["worker 0: loading B (session 5, 2 calls)"]


def test_an_expert_that_spans_other_workers_than_before_is_news(status, run):
    calls = run.open(3, "A", 2)
    run.open(4, "A", 2, workers=(0, 1))
    run.start(3)
    run.finish(3, calls)
    assert run.close(3)[1:] == ["workers 0, 1: loading A (session 4, 2 calls)"]


# A run that goes on.


def test_what_had_ended_is_counted_and_not_shown_as_if_it_happened_now(status, run, clock):
    """What a quote or an earlier start did: session 0 is over, and of session 1 one call is left."""
    first, second = run.open(0, "A", 2), run.open(1, "B", 4)
    assert run.send(Started(0.0, resumes_ts=50.0)) == ["calls: 6 calls on 2 workers"]
    for number, calls in ((0, first), (1, second[:3])):
        for call in calls:
            record = replace(make_record(session=number, output_tokens=100), key=call.key, expert=call.expert)
            assert run.send(Finished(20.0, record)) == []
        assert number or (texts(status)[0], run.close_at(40.0, 0)) == ("worker 0: idle", [])
    assert texts(status)[0] == "worker 0: B loading, 0 s"
    assert status.describe() == "calls: 5 of 6 calls (83%) after 50 s, 1 loading"
    clock.now += 55
    assert run.send(Ready(55.0, 1)) == [
        "calls: 5 calls had ended", "worker 0: loading B (session 1, 1 of 4 calls left)"
    ]  # fmt: skip
    clock.now += 5
    run.finish(1, second[3:])
    assert status.worker_rows()[0] == Row("worker 0", "B serving, 20 tokens/s, 0 s left", 4, 4), "the pace is today's"
    assert status.counts["ended"] == {"B": 1}
    assert run.close(1, serve_s=5.0) == ["worker 0: B (session 1): 4 calls ended in 5 s, 20 tokens/s"]


# Workers that are lost, gangs, queues, moves.


def test_a_lost_worker_and_what_is_planned_anew(status, run, clock):
    calls = run.open(0, "A", 4)
    run.open(1, "B", 2)
    run.start(0)
    run.finish(0, calls[:3])
    lost = Lost(0.0, 0, "exit status 9")
    run.view.observe(lost)
    run.give(Open(Session(id=2, expert="A", workers=(1,))), Submit(calls[3], 2), Close(2))
    assert run.receive(lost, run.view) == [
        "worker 0: lost: exit status 9",
        "worker 0: A (session 0) lost after 3 calls",
        "worker 1: loading A (session 2, 1 calls)",
    ]
    assert texts(status) == ["worker 0: lost: exit status 9", "worker 1: A loading, 0 s of 8 s planned"]
    assert status.describe() == "calls: 3 of 6 calls (50%) after 0 s, 1 loading, 1 lost"


def test_a_worker_lost_while_it_loads_is_logged(status, run):
    run.open(0, "A", 4)
    run.send(Started(0.0))
    assert run.send(Lost(3.0, 0, "A cannot be loaded: no memory")) == [
        "worker 0: lost: A cannot be loaded: no memory", "worker 0: A (session 0) lost after 0 calls"
    ]  # fmt: skip


def test_a_gang_has_one_row_of_its_own_and_frees_its_workers(status, run):
    run.open(2, "Z", 3, workers=(0, 1))
    run.open(1, "B", 2, workers=(1,))
    assert run.send(Started(0.0))[1:] == ["workers 0, 1: loading Z (session 2, 3 calls)"]
    assert texts(status) == ["workers 0, 1: Z loading, 0 s of 8 s planned", "worker 1: with worker 0"]
    assert status.describe() == "calls: 0 of 5 calls (0%) after 0 s, 1 loading"
    assert run.close(2) == [
        "workers 0, 1: Z (session 2): 0 calls ended in 0 s", "worker 1: loading B (session 1, 2 calls)"
    ]  # fmt: skip
    assert texts(status) == ["worker 0: idle", "worker 1: B loading, 0 s"]


def test_a_gang_waits_until_all_of_its_workers_are_free(status, run):
    calls = run.open(0, "A", 4)
    run.open(2, "Z", 3, workers=(0, 1))
    run.send(Started(0.0))
    assert texts(status) == ["worker 0: A loading, 0 s of 30 s planned", "worker 1: waiting to load Z"]
    run.finish(0, calls)
    assert run.close(0)[1:] == ["workers 0, 1: loading Z (session 2, 3 calls)"]


def test_servers_have_sessions_that_nothing_is_loaded_for_and_a_queue(clock):
    status = RunStatus("calls", Expected(num_calls=5, unit="server"), clock=clock)
    run = Run(status.receive, clock)
    run.give(Open(Session(id=0, expert="A", workers=(0,))), Open(Session(id=1, expert="A", workers=(1,))))
    calls = [make_call(f"q{i}") for i in range(4)]
    run.give(*(Submit(call, "A") for call in calls))
    assert run.send(Started(0.0)) == [
        "calls: 5 calls on 2 servers", "server 0: A (session 0)", "server 1: A (session 1)"
    ]  # fmt: skip
    run.send(Ready(0.0, 0))
    run.send(Ready(0.0, 1))
    run.finish(0, calls[:2])
    run.finish(1, calls[2:3])
    assert texts(status) == ["server 0: A serving, 1 calls queued", "server 1: A serving, 1 calls queued"]
    run.finish(1, calls[3:])
    assert [(row.num_ended, row.num_all) for row in status.worker_rows()] == [(2, 2), (2, 2)]
    assert run.close(0) == ["server 0: A (session 0): 2 calls ended in 0 s"]


def test_a_call_that_moves_counts_where_it_goes(status, run):
    calls = run.open(3, "A", 3)
    run.open(4, "A", 1, workers=(1,))
    run.start(3, 4)
    run.give(Move(calls[0].key, 4))
    assert [row.num_all for row in status.worker_rows()] == [2, 2]


def test_failed_calls_are_counted(status, run):
    calls = run.open(0, "A", 4)
    run.send(Started(0.0))
    run.finish(0, calls[:2], status=CallStatus.FAILED)
    run.finish(0, calls[2:3])
    assert status.describe() == "calls: 3 of 4 calls (75%) after 0 s, 2 failed, 1 loading"


def test_in_a_simulation_time_passes_with_the_events_alone(clock):
    status = RunStatus("calls", is_simulated=True, clock=clock)
    run = Run(status.receive, clock)
    run.open(0, "A", 2)
    run.send(Started(0.0))
    run.send(Ready(40.0, 0))
    clock.now += 7
    assert status.describe() == "calls: 0 of 2 calls (0%) after 40 s, 1 serving"
    run.send(Progress(300.0, 0, {}))
    assert status.describe() == "calls: 0 of 2 calls (0%) after 5 min 00 s, 1 serving"


# The whole batch, and when it ends.


def test_all_calls_of_the_batch_count_and_not_those_of_the_pilot_alone(clock):
    status = RunStatus("calls", Expected(num_calls=600), clock=clock)
    run = Run(status.receive, clock)
    run.open(0, "A", 60)
    assert run.send(Started(0.0))[0] == "calls: 600 calls on 2 workers"
    assert (status.row().num_ended, status.row().num_all) == (0, 600)


def test_the_time_left_is_what_the_run_predicts_and_else_what_the_pace_says(clock):
    predictions = [None, 90.0, 30.0]
    status = RunStatus("calls", Expected(left_s=lambda view: predictions.pop(0)), clock=clock)
    run = Run(status.receive, clock)
    calls = run.open(0, "A", 20)
    run.send(Started(0.0))
    assert status.left_s is None, "nothing has ended that has a pace"
    clock.now += 10
    run.finish(0, calls[:1])
    assert (status.left_s, predictions) == (90.0, [30.0])
    clock.now += 4
    run.finish(0, calls[1:2])
    assert status.left_s == 86.0, "it is not predicted anew at every event"
    assert status.describe().endswith("1 loading, about 1 min 26 s left")
    clock.now += 2
    run.finish(0, calls[2:3])
    assert status.left_s == 30.0
    paced = RunStatus("calls", clock=clock)
    run = Run(paced.receive, clock)
    calls = run.open(0, "A", 20)
    clock.now = 1000.0
    run.send(Started(0.0))
    clock.now += 10
    run.finish(0, calls[:5])
    assert paced.left_s == 30.0


def test_calls_in_flight_are_those_that_engines_count_and_else_all_that_their_sessions_hold(status, run):
    calls = run.open(0, "A", 4)
    run.open(1, "B", 3, workers=(1,))
    run.start(0)
    assert (status.calls_in_flight(), status.open_calls()) == ({"A": 4}, {"A": 4, "B": 3})
    run.send(Progress(1.0, 0, {calls[0].key: 3}))
    assert status.calls_in_flight() == {"A": 1}
