"""The time left that a run predicts of itself, while most of its calls still write."""

from contextlib import AbstractContextManager, nullcontext

import pytest

import mosaic
from mosaic.config.job import simulated_job
from mosaic.core.events import Event, Finished, Tick
from mosaic.core.plan import Expected
from mosaic.core.view import View
from mosaic.runtime.controller import Controller


class Reader:
    """Reads the time left when shares of the calls have ended."""

    reacts = True

    def __init__(self, *shares: float) -> None:
        self.shares, self.num_ended = list(shares), 0
        self.ends_s: list[float] = []
        self.expected = Expected()

    def show(self, title: str, expected: Expected) -> AbstractContextManager[tuple[Controller, ...]]:
        self.expected = expected
        return nullcontext(())

    def on(self, event: Event, view: View):
        self.num_ended += isinstance(event, Finished)
        if isinstance(event, Tick) and self.shares and self.num_ended >= self.shares[0] * self.expected.num_calls:
            left_s = self.expected.left_s(view)
            assert left_s is not None
            self.ends_s.append(event.ts + left_s)
            self.shares.pop(0)
        return ()


def test_the_calls_that_end_last_are_foreseen() -> None:
    """The calls that end first are the short ones: they alone would predict 143 to 300 s of 1,030."""
    words = ["workload=gpqa", "aggregator=none", "costs=affine", "pipeline.moves=true", "profile.store=null"]
    job, _ = simulated_job(words)
    reader = Reader(0.0, 0.25, 0.5, 0.75)
    result = mosaic.run(job, controllers=[reader], show=reader.show, tick_s=10.0).result
    assert reader.expected.num_calls == len(result.calls)
    assert reader.ends_s == pytest.approx([max(session.end_ts for session in result.sessions)] * 4, rel=0.15)
