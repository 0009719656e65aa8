"""Calls that wait: by time, then by priority, then by number; against a list that is sorted each time."""

from hypothesis import given
from hypothesis import strategies as st

from mosaic.core.workload import PROPOSE, CallKey
from mosaic.engines.calls import CallQueue


def key(number: int) -> CallKey:
    return CallKey(f"q{number}", PROPOSE, 0)


def test_ready_calls_go_by_priority_and_then_by_number():
    queue = CallQueue()
    for number, (priority, ready_s) in enumerate([(1, 0.0), (0, 0.0), (0, 5.0), (1, 0.0), (-1, 9.0)]):
        queue.add(key(number), (priority, number), ready_s)
    assert queue.next_ready_s(1.0) is None, "one is ready"
    assert [queue.pop(1.0) for _ in range(4)] == [key(1), key(0), key(3), None]
    assert (len(queue), queue.next_ready_s(1.0)) == (2, 5.0)
    assert [queue.pop(9.0) for _ in range(3)] == [key(4), key(2), None]
    assert queue.next_ready_s(9.0) is None


def test_one_that_left_is_not_given_and_may_come_again():
    queue = CallQueue()
    queue.add(key(0), (0, 0), 0.0)
    queue.add(key(1), (0, 1), 0.0)
    assert queue.discard(key(0))
    assert not queue.discard(key(0))
    assert queue.in_order() == [key(1)]
    queue.add(key(0), (0, 2), 0.0)
    assert [queue.pop(0.0) for _ in range(3)] == [key(1), key(0), None]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(-2, 2), st.floats(0, 10)),
        st.tuples(st.just("discard"), st.integers(0, 30), st.just(0.0)),
        st.tuples(st.just("pop"), st.just(0), st.floats(0, 1)),
    ),
    max_size=60,
)


@given(STEPS)
def test_it_gives_what_a_sorted_list_would(steps):
    queue, waiting, number, now = CallQueue(), {}, 0, 0.0
    for what, value, seconds in steps:
        if what == "add":
            waiting[key(number)] = (value, number), seconds
            queue.add(key(number), (value, number), seconds)
            number += 1
        elif what == "discard":
            assert queue.discard(key(value)) == (waiting.pop(key(value), None) is not None)
        else:
            now += seconds
            ready = sorted((rank, one) for one, (rank, ready_s) in waiting.items() if ready_s <= now)
            assert queue.pop(now) == (ready[0][1] if ready else None)
            if ready:
                del waiting[ready[0][1]]
        assert len(queue) == len(waiting)
        assert queue.in_order() == sorted(waiting, key=waiting.__getitem__)
