from dataclasses import replace

import pytest

from mosaic.core.plan import PredictedTimes
from mosaic.report.worker_board import WorkerBoard, describe_worker
from mosaic.runtime.worker_state import WorkerState
from tests.run_records import make_record
from tests.sim.cluster_runs import make_plan, make_session, some_calls

A, B, GANG = some_calls("A", 4), some_calls("B", 2), some_calls("Z", 3)
PLAN = replace(
    make_plan(make_session(0, A), make_session(1, B, workers=(1,)), make_session(2, GANG, workers=(0, 1))),
    predicted=(PredictedTimes(0.0, 30.0, 70.0), PredictedTimes(0.0, 0.0, 0.0), PredictedTimes(70.0, 8.0, 98.0)),
)


class Clock:
    """Seconds as a test sets them."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def board(clock):
    return WorkerBoard(PLAN, clock)


def make_state(phase: str = "serving", **changes: object) -> WorkerState:
    state = WorkerState((0,), "A", phase, 0, num_calls=4, num_ended=0, output_tokens=0)
    return state._replace(**changes)


def finish(board: WorkerBoard, calls, output_tokens: int = 100) -> None:
    for call in calls:
        assert board.on_finish(make_record()._replace(key=call.key, output_tokens=output_tokens)) == ()


# A worker in a line.


@pytest.mark.parametrize(
    ("state", "elapsed_s", "predicted_s", "text"),
    [
        (make_state("loading"), 12.4, 39.0, "worker 0: A loading, 12 s of 39 s planned"),
        (make_state("loading"), 75.0, None, "worker 0: A loading, 1 min 15 s"),
        (make_state(num_calls=350), 2.0, None, "worker 0: A serving, 0 of 350 calls"),
        (make_state(num_calls=350), 2.0, 80.0, "worker 0: A serving, 0 of 350 calls, 1 min 20 s left"),
        (
            make_state(num_calls=4000, num_ended=1000, output_tokens=240_000), 100.0, 800.0,
            "worker 0: A serving, 1,000 of 4,000 calls, 2,400 tokens/s, 10 min 00 s left",
        ),
        (
            make_state(num_calls=4000, num_ended=1000, output_tokens=240_000), 2400.0, None,
            "worker 0: A serving, 1,000 of 4,000 calls, 100 tokens/s, 2 h 00 min left",
        ),
        (
            make_state(num_ended=4, output_tokens=9), 0.0, None,
            "worker 0: A serving, 4 of 4 calls, 0 s left",
        ),
        (make_state(workers=(0, 2), num_ended=1), 3.0, None, "workers 0, 2: A serving, 1 of 4 calls, 9 s left"),
        (make_state("idle", session=None, num_calls=0), 3.0, None, "worker 0: idle"),
        (make_state("idle", num_ended=4), 3.0, None, "worker 0: idle"),
        (make_state("closing", session=None, num_calls=0), 3.0, None, "worker 0: idle"),
        (make_state(session=None, cause="A failed: RuntimeError"), 3.0, None, "worker 0: A failed: RuntimeError"),
    ],
)  # fmt: skip
def test_a_worker_in_a_line(state, elapsed_s, predicted_s, text):
    assert describe_worker(state, elapsed_s, predicted_s) == text


def test_calls_of_an_earlier_try_count_as_done_but_not_for_the_pace():
    state = make_state(num_calls=100, num_ended=10, output_tokens=50)
    text = "worker 0: A serving, 90 of 100 calls, 5 tokens/s"
    assert describe_worker(state, 10.0, None, num_before=80) == f"{text}, 10 s left"
    assert describe_worker(state, 10.0, 500.0, num_before=80) == f"{text}, 50 s left"


# The board.


def test_before_anything_is_told_all_workers_wait(board):
    assert board.describe_workers() == ("worker 0: waiting", "worker 1: waiting")
    assert board.num_calls == 9
    assert board.describe_progress() == "0 of 9 calls (0%) after 0 s"


def test_a_session_from_its_start_to_its_end(board, clock):
    assert board.tell(make_state("loading")) == ("worker 0: loading A (session 0, 4 calls)",)
    clock.now += 20
    assert board.describe_workers()[0] == "worker 0: A loading, 20 s of 30 s planned"
    clock.now += 5
    assert board.tell(make_state()) == ()
    assert board.describe_workers()[0] == "worker 0: A serving, 0 of 4 calls, 40 s left"
    finish(board, A[:1])
    clock.now += 10
    assert board.tell(make_state(num_ended=1, output_tokens=100)) == ()
    assert board.describe_workers()[0] == "worker 0: A serving, 1 of 4 calls, 10 tokens/s, 30 s left"
    finish(board, A[1:])
    clock.now += 10
    assert board.tell(make_state("idle", session=None, num_calls=0)) == (
        "worker 0: A (session 0): 4 of 4 calls finished in 20 s after 25 s of loading, 20 tokens/s",
    )
    assert board.tell(make_state("closing", session=None, num_calls=0)) == ()
    assert board.describe_workers()[0] == "worker 0: idle"
    assert board.describe_progress() == "4 of 9 calls (44%) after 45 s"


def test_states_that_say_the_same_again_are_no_news(board, clock):
    told = [line for _ in range(3) for line in board.tell(make_state("loading"))]
    told += [line for _ in range(3) for line in board.tell(make_state())]
    assert told == ["worker 0: loading A (session 0, 4 calls)"]


def test_a_session_without_a_price_goes_by_its_pace(board, clock):
    state = make_state(workers=(1,), expert="B", session=1, num_calls=2)
    board.tell(state)
    assert board.describe_workers()[1] == "worker 1: B serving, 0 of 2 calls"
    clock.now += 7
    board.tell(state._replace(num_ended=1))
    assert board.describe_workers()[1] == "worker 1: B serving, 1 of 2 calls, 7 s left"


def test_a_server_says_in_its_session_that_it_is_idle(board, clock):
    state = make_state()
    assert board.tell(state) == ("worker 0: serving A (session 0, 4 calls)",)
    finish(board, A[:3])
    clock.now += 10
    ended = state._replace(phase="idle", num_ended=3)
    assert board.tell(ended) == ("worker 0: A (session 0): 3 of 4 calls finished in 10 s, 30 tokens/s",)
    assert board.tell(ended) == ()


def test_a_session_that_follows_on_the_same_expert_is_shown_but_no_news(clock):
    plan = make_plan(make_session(0, A[:2]), make_session(1, A[2:]), make_session(2, B))
    board = WorkerBoard(plan, clock)
    idle = make_state("idle", session=None, num_calls=0)
    assert len(board.tell(make_state(num_calls=2))) == 1
    finish(board, A[:2])
    assert len(board.tell(idle)) == 1
    clock.now += 9
    assert board.tell(make_state(session=1, num_calls=2)) == ()
    clock.now += 4
    finish(board, A[2:3])
    assert board.tell(make_state(session=1, num_calls=2, num_ended=1, output_tokens=100)) == ()
    assert board.describe_workers()[0] == "worker 0: A serving, 1 of 2 calls, 25 tokens/s, 4 s left"
    assert board.tell(idle) == ()
    assert board.tell(idle._replace(phase="closing")) == ()
    assert len(board.tell(make_state("loading", expert="B", session=2, num_calls=2))) == 1


def test_a_session_that_follows_is_news_once_it_must_be_loaded_again(clock):
    board = WorkerBoard(make_plan(make_session(0, A[:2]), make_session(1, A[2:])), clock)
    for state in (make_state(num_calls=2), make_state("idle", session=None), make_state(session=1, num_calls=2)):
        board.tell(state)
    lost = board.tell(make_state(session=None, cause="A failed: RuntimeError"))
    assert lost == ("worker 0: A (session 1): 0 of 2 calls finished in 0 s: A failed: RuntimeError",)
    again = make_state("loading", session=1, num_calls=2)
    assert board.tell(again) == ("worker 0: loading A (session 1, 2 calls)",)


def test_a_session_that_is_tried_again_goes_on_from_what_has_finished(board, clock):
    board.tell(make_state("loading"))
    board.tell(make_state())
    finish(board, A[:3])
    clock.now += 10
    assert board.tell(make_state(session=None, num_calls=0, cause="A failed: RuntimeError")) == (
        "worker 0: A (session 0): 3 of 4 calls finished in 10 s, 30 tokens/s: A failed: RuntimeError",
    )
    assert board.describe_workers()[0] == "worker 0: A failed: RuntimeError"
    assert board.tell(make_state("loading")) == ("worker 0: loading A (session 0, 1 of 4 calls that are left)",)
    board.tell(make_state())
    clock.now += 5
    assert board.describe_workers()[0] == "worker 0: A serving, 3 of 4 calls, 10 s left"
    finish(board, A[3:])
    assert board.tell(make_state("idle", session=None, num_calls=0)) == (
        "worker 0: A (session 0): 4 of 4 calls finished in 5 s, 20 tokens/s",
    )


def test_a_run_that_is_started_again_counts_what_was_done(board, clock):
    finish(board, A[:3])
    assert board.tell(make_state("loading")) == ("worker 0: loading A (session 0, 1 of 4 calls that are left)",)
    assert board.describe_progress() == "3 of 9 calls (33%) after 0 s, 1 loading"


def test_an_expert_that_cannot_be_loaded_says_why(board, clock):
    board.tell(make_state("loading"))
    clock.now += 3
    lost = board.tell(make_state("loading", session=None, num_calls=0, cause="A cannot be loaded: no memory"))
    assert lost == ("worker 0: A (session 0) ended after 3 s of loading: A cannot be loaded: no memory",)
    assert board.describe_workers()[0] == "worker 0: A cannot be loaded: no memory"


def test_a_gang_has_one_line_of_its_own_and_frees_its_workers(board):
    gang = make_state("loading", workers=(0, 1), expert="Z", session=2, num_calls=3)
    assert board.tell(gang) == ("workers 0, 1: loading Z (session 2, 3 calls)",)
    assert board.describe_workers() == ("workers 0, 1: Z loading, 0 s of 8 s planned", "worker 1: with worker 0")
    assert board.describe_progress() == "0 of 9 calls (0%) after 0 s, 1 loading"
    finish(board, GANG)
    done = board.tell(gang._replace(phase="closing", session=None, num_calls=0))
    assert done == ("workers 0, 1: Z (session 2) ended after 0 s of loading",)
    assert board.tell(make_state("loading", workers=(1,), expert="B", session=1, num_calls=2)) == (
        "worker 1: loading B (session 1, 2 calls)",
    )
    assert board.describe_workers() == ("workers 0, 1: idle", "worker 1: B loading, 0 s")


def test_progress_of_the_whole_run_counts_what_workers_do(board, clock):
    board.tell(make_state())
    board.tell(make_state("loading", workers=(1,), expert="B", session=1, num_calls=2))
    finish(board, A)
    clock.now += 80
    assert board.describe_progress() == "4 of 9 calls (44%) after 1 min 20 s, 1 serving, 1 loading"


def test_a_plan_without_calls_is_done(clock):
    board = WorkerBoard(make_plan(num_workers=1), clock)
    assert board.describe_progress() == "0 of 0 calls (100%) after 0 s"
