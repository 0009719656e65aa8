"""What a sweep's processes keep and leave behind."""

import gc

from mosaic.runtime.garbage import FULL_EVERY, spare_garbage_collector


class Knot:
    """Refers to itself."""

    num_left = 0

    def __init__(self) -> None:
        self.itself = self
        Knot.num_left += 1

    def __del__(self) -> None:
        Knot.num_left -= 1


def test_a_runs_cycles_are_gone_when_the_next_begins_and_what_outlived_it_some_runs_later() -> None:
    before = gc.get_threshold()
    try:
        spare_garbage_collector()
        config = Knot()
        spare_garbage_collector()
        kept = [Knot() for _ in range(1000)]
        del kept, config
        assert Knot.num_left == 1001, "no collection in a run so short"
        for _ in range(FULL_EVERY):
            spare_garbage_collector()
            assert Knot.num_left <= 1
        assert Knot.num_left == 0
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
