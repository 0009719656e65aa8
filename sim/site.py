"""The simulator as the place where plans run: in the world of the batch, and in another for measuring."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from mosaic.core.cluster import Cluster
from mosaic.core.results import Inputs
from mosaic.core.workload import Expert, ExpertName, Question, Workload
from mosaic.runtime.aggregator_sweep import aggregator_places
from mosaic.runtime.backend import Backend
from mosaic.runtime.loop import CommandLog
from mosaic.runtime.site import Prompts
from sim.cluster.backend import SimBackend
from sim.engine.engine_settings import EngineSettings
from sim.hardware.hardware import Hardware
from sim.world.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class SimSite:
    """Simulated workers of one kind."""

    experts: tuple[Expert, ...]
    cluster: Cluster
    hardware: Hardware
    batch: Workload
    world: World
    """That the run meets."""
    calibration_world: World
    """The same distributions and other luck, or means that are off where an error is asked for."""
    settings: EngineSettings = field(default_factory=EngineSettings)
    luck: str = ""
    """Says of the calibration world what a profile's source should tell."""
    name: str = "sim"
    way: str = "simulated"

    def open(self) -> AbstractContextManager[None]:
        """Need nothing."""
        return nullcontext()

    @property
    def circumstances(self) -> str:
        """On what, and with which luck, profiles are measured."""
        return f"on {self.hardware.gpu.name}{self.luck}"

    @property
    def answers_source(self) -> str:
        """What the answer model's agreement rests on."""
        return self.world.answers.source if self.world.answers else "assumed"

    def backend(self, questions: Mapping[str, Question], prompts: Prompts) -> Backend:
        """Give the backend of the run."""
        return self.backend_in(self.world)

    def backend_in(self, world: World, earlier: Inputs | None = None) -> SimBackend:
        """Give a backend in a world, in which some calls have ended before."""
        known = earlier or {}
        return SimBackend(
            experts=self.experts,
            cluster=self.cluster,
            hardware={self.hardware.gpu.name: self.hardware},
            settings=self.settings,
            outcomes=lambda call, inputs: world.outcome(
                call, {**{key: known[key] for key in call.after if key in known}, **inputs}
            ),
        )

    def command_log(self) -> CommandLog | None:
        """None: a simulation is started anew."""
        return None

    def calibration(self, experts: Sequence[ExpertName]) -> Workload:
        """Give the batch: in the calibration world it has other luck."""
        return self.batch

    def rehearsal(self, name: str, questions: Mapping[str, Question], prompts: Prompts, earlier: Inputs) -> Backend:
        """Give a backend in the calibration world."""
        return self.backend_in(self.calibration_world, earlier)

    def sweep(self, name: str, experts: Sequence[Expert]) -> tuple[Backend, Callable[[int], int]]:
        """Give a backend in the calibration world.

        Prompts are visible to a scheduler, so the sweep's calls repeat the batch's own.
        """
        tokens = [call.prompt_tokens for call in self.batch.calls]
        return self.backend_in(self.calibration_world), lambda number: tokens[number % len(tokens)]

    def hindsight(self, earlier: Inputs) -> Backend | None:
        """Give a backend in the world of the run."""
        return self.backend_in(self.world, earlier)

    def places(self, expert: Expert) -> list[tuple[int, ...]]:
        """List the gangs that the workers make up, as many as the expert's cap allows."""
        return aggregator_places(expert, self.cluster.num_workers)

    def swept_place(self, expert: Expert, session: int, num_experts: int) -> tuple[int, ...]:
        """Take the first workers: they are all alike and do not disturb each other."""
        return tuple(range(expert.tp_degree))

    def lower_bound_s(self, backend: Backend) -> float | None:
        """Bound the first layer's makespan by the true lengths."""
        assert isinstance(backend, SimBackend)
        return backend.lower_bound_s()
