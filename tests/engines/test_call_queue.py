"""Calls that wait: by time, then by number; against a list that is sorted each time."""

from hypothesis import given
from hypothesis import strategies as st

from mosaic.core.workload import PROPOSE, CallKey
from mosaic.engines.calls import CallQueue


def key(number: int) -> CallKey:
    return CallKey(f"q{number}", PROPOSE, 0)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.just(0), st.floats(0, 10)),
        st.tuples(st.just("add again"), st.integers(0, 30), st.floats(0, 10)),
        st.tuples(st.just("discard"), st.integers(0, 30), st.just(0.0)),
        st.tuples(st.just("pop"), st.just(0), st.floats(0, 1)),
    ),
    max_size=60,
)


@given(STEPS)
def test_it_gives_what_a_sorted_list_would(steps):
    queue, waiting, number, now = CallQueue(), {}, 0, 0.0
    for what, value, seconds in steps:
        if what.startswith("add"):
            added = key(number if what == "add" else value)
            if added not in waiting:
                waiting[added] = number, seconds
                queue.add(added, *waiting[added])
            number += 1
        elif what == "discard":
            assert queue.discard(key(value)) == (waiting.pop(key(value), None) is not None)
        else:
            now += seconds
            ready = sorted((of, one) for one, (of, ready_s) in waiting.items() if ready_s <= now)
            assert queue.pop(now) == (ready[0][1] if ready else None)
            if ready:
                del waiting[ready[0][1]]
        later = [ready_s for _, ready_s in waiting.values()]
        assert queue.next_ready_s(now) == (min(later) if later and min(later) > now else None)
        assert len(queue) == len(waiting)
        assert queue.in_order() == sorted(waiting, key=waiting.__getitem__)
