"""Controllers whose seconds are counted answer as they would without."""

import time

from mosaic.core.commands import Close
from mosaic.core.events import Started
from mosaic.core.view import View
from mosaic.runtime.controller import Timed


class Slow:
    reacts = True

    def on(self, event, view):
        time.sleep(0.02)
        yield Close(1)  # a generator: its seconds are those in which it is gone through
        time.sleep(0.02)
        yield Close(2)


def test_the_seconds_of_a_controller_are_counted():
    timed = Timed(Slow())
    assert timed.reacts
    assert timed.total_s == 0
    assert timed.on(Started(0.0), View(1)) == [Close(1), Close(2)]
    once_s = timed.total_s
    assert once_s >= 0.04
    timed.on(Started(0.0), View(1))
    assert timed.total_s >= once_s + 0.04
