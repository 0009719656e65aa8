"""Calls that wait: by when they came, then by number; against a list that is sorted each time."""

from hypothesis import given, settings
from hypothesis import strategies as st

from mosaic.core.workload import PROPOSE, CallKey
from mosaic.engines.calls import CallQueue


def key(number: int) -> CallKey:
    return CallKey(f"q{number}", PROPOSE, 0)


KEYS = st.integers(0, 5)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), KEYS, st.sampled_from((0.0, 1.0, 5.0))),
        st.tuples(st.just("discard"), KEYS, st.just(0.0)),
        st.tuples(st.just("pop"), st.just(0), st.sampled_from((0.0, 1.0))),
    ),
    max_size=60,
)


@settings(max_examples=500)
@given(STEPS)
def test_it_gives_what_a_sorted_list_would(steps):
    """Also where a call left and came again."""
    queue, waiting, now = CallQueue(), {}, 0.0
    for number, (what, chosen, seconds) in enumerate(steps):
        if what == "add" and key(chosen) not in waiting:
            waiting[key(chosen)] = number, seconds
            queue.add(key(chosen), *waiting[key(chosen)])
        elif what == "discard":
            assert queue.discard(key(chosen)) == (waiting.pop(key(chosen), None) is not None)
        elif what == "pop":
            now += seconds
            ready = sorted((ready_s, of, one) for one, (of, ready_s) in waiting.items() if ready_s <= now)
            assert queue.pop(now) == (ready[0][2] if ready else None)
            if ready:
                del waiting[ready[0][2]]
            later = [ready_s for _, ready_s in waiting.values()]
            assert queue.next_ready_s(now) == (min(later) if later and min(later) > now else None)
        assert len(queue) == len(waiting)
        assert queue.in_order() == sorted(waiting, key=waiting.__getitem__)
