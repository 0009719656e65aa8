"""Implements the simulator as a site: in the world of the batch, and in another one for measurements."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import mosaic
import sim
from mosaic.core.cluster import Cluster
from mosaic.core.engine_options import EngineOptions
from mosaic.core.results import CallRecord, Inputs, RunResult
from mosaic.core.spending import Cost
from mosaic.core.workload import Call, Expert, ExpertName, Question, Workload
from mosaic.planning.wrapped_costs import HostLoads
from mosaic.runtime.backend import Backend
from mosaic.runtime.journal import Journal
from mosaic.runtime.site import Prompts
from mosaic.runtime.store import digest_of
from mosaic.runtime.unpriced import gangs_of
from sim.cluster.backend import SimBackend
from sim.cluster.evidence import evidence_lines
from sim.cluster.expert_on_gpu import GpuUse
from sim.cluster.session import cut_off
from sim.cluster.session_times import kept_loads
from sim.hardware.hardware import Hardware
from sim.world.world import World


@cache
def code_digest() -> tuple[str, ...]:
    """Digest the code of the simulator and of its measurements."""
    return tuple(digest_of([Path(module.__file__ or "").parent]) for module in (sim, mosaic))


def draw_records(world: World, calls: Sequence[Call], experts: Sequence[Expert], earlier: Inputs) -> list[CallRecord]:
    """Record the answers of calls in a world, without their times."""
    pool = {expert.name: expert for expert in experts}
    records = []
    for call in calls:
        true = cut_off(call, pool[call.expert], world.outcome(call, earlier))
        records.append(
            CallRecord(
                key=call.key,
                expert=call.expert,
                session=-1,
                workers=(),
                prompt_tokens=call.prompt_tokens,
                output_tokens=true.output_tokens,
                queued_ts=0.0,
                admitted_ts=None,
                first_token_ts=None,
                finished_ts=None,
                answer=true.answer,
                visible_tokens=true.visible_tokens,
                confidence=true.confidence,
            )
        )
    return records


@dataclass(frozen=True, slots=True, kw_only=True)
class SimSite:
    """Simulated workers."""

    experts: tuple[Expert, ...]
    cluster: Cluster
    hardware: Hardware
    """Of the first worker."""
    batch: Workload
    world: World
    """World of the run."""
    calibration_world: World
    """The same distributions with other draws, or with wrong means if a length error is set."""
    settings: EngineOptions = field(default_factory=EngineOptions)
    more_hardware: tuple[Hardware, ...] = ()
    """Of workers of other kinds."""
    use: GpuUse = field(default_factory=GpuUse)
    """Resources that sessions share."""
    draws: str = ""
    """Description of the calibration world for the source of profiles."""
    name: str = "sim"
    kind: str = "simulated"

    def open(self) -> AbstractContextManager[None]:
        """Hold no resources."""
        return nullcontext()

    @property
    def description(self) -> str:
        """Machines and draws of the measurements."""
        return f"on {', '.join(self._hardware_by_gpu)}{self.draws}"

    @property
    def expert_by_server(self) -> None:
        """Always None: any expert may be loaded anywhere."""

    @property
    def cache_key(self) -> tuple[object, ...] | None:
        """The machines, the calibration world and the code: runs with any seed share measurements."""
        return (
            *code_digest(),
            self.experts,
            self.cluster,
            self.hardware,
            self.more_hardware,
            self.settings,
            self.use,
            self.calibration_world,
        )

    @property
    def world_key(self) -> World:
        """World of the run."""
        return self.world

    def evidence(self, result: RunResult) -> Sequence[str]:
        """Describe how far each kind of GPU can be trusted, and what was extrapolated in a run."""
        return evidence_lines(result, self.cluster, self._hardware_by_gpu, self.experts, self.settings.max_num_seqs)

    @property
    def answers_source(self) -> str:
        """Source of the answer model's agreement."""
        return self.world.answers.source if self.world.answers else "assumed"

    def backend(
        self,
        questions: Mapping[str, Question],
        prompts: Prompts,
        *,
        name: str = "run",
        prefixes: Prompts | None = None,
        earlier: Inputs | None = None,
        is_measured: bool = False,
    ) -> Backend:
        """Return a backend in the world of the run, or in the calibration world.

        In measurements every load is cold; sessions have the same memory as in the run, and wait for no turns.
        """
        if is_measured:
            return self.backend_in(self.calibration_world, earlier, self.use.one_at_a_time)
        return self.backend_in(self.world, earlier)

    def backend_in(self, world: World, earlier: Inputs | None = None, use: GpuUse | None = None) -> SimBackend:
        """Return a backend in a world, in which some calls have ended before."""
        return SimBackend(
            experts=self.experts,
            cluster=self.cluster,
            hardware=self._hardware_by_gpu,
            settings=self.settings,
            outcomes=world.outcome,
            earlier=earlier,
            use=use or self.use,
        )

    @property
    def host_loads(self) -> HostLoads | None:
        """Return load times from CPU memory; None: the machine keeps no models."""
        return kept_loads(self._hardware_by_gpu, self.cluster, self.settings, self.use)

    @property
    def _hardware_by_gpu(self) -> dict[str, Hardware]:
        return {hardware.gpu.name: hardware for hardware in (self.hardware, *self.more_hardware)}

    def has_begun(self, name: str) -> bool:
        """Always False: a simulation starts anew."""
        return False

    def command_log(self, backend: Backend) -> Journal | None:
        """Always None: a simulation starts anew."""
        return None

    def calibration(self, experts: Sequence[ExpertName]) -> Workload:
        """Return the batch: in the calibration world it has other draws."""
        return self.batch

    def draw(self, calls: Sequence[Call], earlier: Inputs) -> Sequence[CallRecord]:
        """Record the answers of calls in the calibration world: they do not depend on the schedule."""
        return draw_records(self.calibration_world, calls, self.experts, earlier)

    def swept_questions(self) -> Sequence[tuple[Question, int]]:
        """List the questions of the batch's own calls: prompts are known to a scheduler."""
        known = {question.id: question for question in self.batch.questions}
        return [(known[call.key.question], call.prompt_tokens) for call in self.batch.calls]

    def places(self, expert: Expert) -> list[tuple[int, ...]]:
        """List the gangs of the workers, as many as the expert's cap allows."""
        return gangs_of(expert, self.cluster.num_workers)

    def swept_places(self, expert: Expert) -> Sequence[tuple[int, ...]]:
        """Return only the first workers: all are equal and do not disturb each other."""
        return self.places(expert)[:1]

    def costs(self) -> Mapping[ExpertName, Cost]:
        """Return nothing: a simulation is not billed."""
        return {}

    def lower_bound_s(self, backend: Backend) -> float | None:
        """Bound the first layer's makespan by the true lengths."""
        assert isinstance(backend, SimBackend)
        return backend.lower_bound_s()
