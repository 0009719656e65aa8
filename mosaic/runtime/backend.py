"""What every backend promises."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from mosaic.core.plan import Plan
from mosaic.core.results import Listener, RunResult
from mosaic.core.workload import Call


class Backend(Protocol):
    """Runs a plan: on the simulator or on real engines, with records of the same shape."""

    @property
    def name(self) -> str:
        """Its name in summaries."""

    @property
    def dead_workers(self) -> Mapping[int, str]:
        """Workers that the last run lost for good, with the cause: the result may lack calls of their sessions."""

    def execute(self, plan: Plan, calls: Sequence[Call], listener: Listener | None = None) -> RunResult:
        """Run the plan's sessions over the calls.

        Raises
        ------
        BackendError
            If the plan names an expert or a call that the backend does not have.
        """
