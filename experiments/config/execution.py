"""Where a run's plans are executed: what every place promises."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from experiments.config.stage_wiring import StageSetup
from experiments.config.wiring import Setup
from mosaic.core.plan import Plan
from mosaic.core.results import Listener, RunResult
from mosaic.core.workload import Call, Expert
from mosaic.pipelines.final_answers import accuracy_frac
from mosaic.planning.profiles import Profile
from mosaic.report.metrics import makespan_s
from mosaic.runtime.backend import Backend
from mosaic.runtime.second_stage import SecondStage


@dataclass(frozen=True, slots=True, kw_only=True)
class AlwaysAggregate:
    """What the same world gives when every question is aggregated; None: only a simulation could tell."""

    aggregator_s: float | None = None
    accuracy_frac: float | None = None


def already_aggregated(first: RunResult, second: SecondStage) -> AlwaysAggregate:
    """Tell what a run says whose gate never skips: it has aggregated every question."""
    stage_s = (makespan_s(second.joined.sessions) or 0.0) - (makespan_s(first.sessions) or 0.0)
    return AlwaysAggregate(aggregator_s=stage_s, accuracy_frac=accuracy_frac(second.answers))


class Execution(Protocol):
    """Runs the stages of one run."""

    def profile(self) -> Profile:
        """Read the profile, or measure one on calibration questions."""

    def experts(self) -> Backend:
        """Give the backend of the expert stage."""

    def aggregator_profile(self, stage: StageSetup, plan: Plan) -> Profile:
        """Read the aggregator's profile, or measure it on what calibration questions leave to the aggregator.

        ``plan`` is the expert stage's.
        """

    def aggregator(self, stage: StageSetup, first: RunResult) -> Callable[[Expert], Backend]:
        """Give what makes the backend of the second stage for the aggregator as it is placed."""

    def always_aggregate(self, stage: StageSetup, first: RunResult, second: SecondStage) -> AlwaysAggregate:
        """Tell what aggregating every question gives, as far as that is known."""

    @property
    def skip_source(self) -> str:
        """Whether the agreement of the experts, and so what the gate skips, was measured, fitted or assumed."""

    def errors(self) -> Mapping[str, int]:
        """Count what made calls fail, by error."""

    def files(self, calls: Sequence[Call]) -> Mapping[str, bytes]:
        """Give what the run's calls left beside their records, by file name."""


@contextmanager
def open_execution(setup: Setup, journal: Path) -> Iterator[Execution]:
    """Open the place that the configuration names; a real one keeps what has finished in a folder of journals."""
    if setup.executor is None:
        from experiments.config.simulated_execution import SimulatedExecution

        yield SimulatedExecution(setup)
        return
    from experiments.config.executor_wiring import open_host
    from experiments.config.real_execution import RealExecution

    with open_host(setup.executor) as host:
        yield RealExecution(setup, setup.executor, journal, host)


@dataclass(frozen=True, slots=True)
class WatchedBackend:
    """A backend whose runs are shown while they last."""

    backend: Backend
    watch: Callable[[Plan], AbstractContextManager[Listener | None]]

    @property
    def name(self) -> str:
        """Of the backend."""
        return self.backend.name

    @property
    def dead_workers(self) -> Mapping[int, str]:
        """Workers that the last run lost."""
        return self.backend.dead_workers

    def execute(self, plan: Plan, calls: Sequence[Call], listener: Listener | None = None) -> RunResult:
        """Run a plan; a listener of the caller's own takes the place of the display."""
        with self.watch(plan) as shown:
            return self.backend.execute(plan, calls, listener or shown)
