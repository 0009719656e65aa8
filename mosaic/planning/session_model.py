"""What a session would do with calls of given lengths, iteration by iteration: a cost model finer than a closed form.

Planning does not know engines: who composes a run passes in whoever steps them (the simulator does).
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from mosaic.core.cluster import Worker
from mosaic.core.workload import Expert


class Request(NamedTuple):
    """A call as an engine sees it; how much it writes is assumed, by a sample for example."""

    prompt_tokens: int
    output_tokens: int


class Served(NamedTuple):
    """When a request joined the running batch and when it ended, seconds after its session was up."""

    admitted_s: float
    finished_s: float


class SessionModel(Protocol):
    """Steps the iterations of one session."""

    def serve(self, expert: Expert, requests: Sequence[Request], workers: Sequence[Worker]) -> tuple[Served, ...]:
        """Serve requests that are all there at the start, in this order; one result each, in the same order.

        Raises
        ------
        ValueError
            If the workers cannot hold the expert.
        """
