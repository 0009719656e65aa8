"""Servers as engines: which one a worker is, and what it may serve."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from mosaic.core.cluster import Worker
from mosaic.core.errors import BackendError
from mosaic.core.workload import Expert
from mosaic.engines.call_specs import ServedExpert
from mosaic.engines.endpoint import Endpoint, EndpointPatience, EndpointSettings, endpoint_by_expert
from mosaic.engines.engine import EngineSpec

ENDPOINT_ENGINE = "mosaic.engines.endpoint_engine"


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointEngines:
    """The server of each worker, in order. Servers of one expert are asked in one way."""

    endpoints: tuple[Endpoint, ...]
    patience: EndpointPatience = field(default_factory=EndpointPatience)
    max_in_flight: int = 64

    def served(self, expert: Expert) -> ServedExpert:
        """Take an expert as its servers have it; a server cuts a response off where its context ends."""
        endpoint = endpoint_by_expert(self.endpoints, {expert.name, *(e.expert for e in self.endpoints)}).get(
            expert.name
        )
        if endpoint is None:
            known = sorted({endpoint.expert for endpoint in self.endpoints})
            raise BackendError(f"expert must be one that a server has, {known}, got {expert.name!r}")
        return ServedExpert(
            expert=expert,
            context_tokens=expert.context_tokens,
            vocab_size=None,
            decides=("endpoint", expert.checkpoint, *endpoint.asked_as),
        )

    def spec(self, expert: Expert, workers: Sequence[Worker]) -> EngineSpec:
        """Say which server serves an expert.

        Raises
        ------
        BackendError
            If it is not the expert's, or more workers than one are asked for.
        """
        if len(workers) > 1:
            raise BackendError(
                f"workers must be one, got {tuple(worker.id for worker in workers)}: a server is one worker, whatever "
                "GPUs it spans; set the expert's tp_degree to 1"
            )
        endpoint = self.endpoints[workers[0].id]
        if endpoint.expert != expert.name:
            raise BackendError(
                f"worker {workers[0].id} must serve {expert.name!r}, but {endpoint.base_url} serves "
                f"{endpoint.expert!r} and a server keeps its expert; plan with workers for it only"
            )
        settings = EndpointSettings(endpoint=endpoint, patience=self.patience, max_in_flight=self.max_in_flight)
        return EngineSpec(
            expert=expert.name,
            num_workers=1,
            context_tokens=expert.context_tokens,
            max_num_seqs=self.max_in_flight,
            settings=settings,
        )
