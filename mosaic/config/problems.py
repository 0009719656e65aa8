"""What keeps engines and servers from starting, found before they start."""

from collections.abc import Sequence

from mosaic.config.sites import Parts
from mosaic.core.errors import FatalEngineError, MosaicError
from mosaic.core.workload import Expert
from mosaic.engines.endpoint import Endpoint
from mosaic.engines.vllm_engines import VllmEngines


def called_experts(parts: Parts) -> list[Expert]:
    """List the experts that a batch may call; an aggregator as it spans its workers."""
    upper = {expert.name: expert for expert in parts.graph.experts}
    return [*upper.values()] + [
        expert
        for expert in parts.experts
        if expert.name in parts.workload.num_calls_by_expert and expert.name not in upper
    ]


def loading_problems(parts: Parts, engines: VllmEngines, _: bool = False) -> list[str]:
    """Say which experts could be loaded on no worker, and why."""
    found = []
    for expert in called_experts(parts):
        try:
            engines.spec(expert, parts.cluster.workers[: expert.tp_degree])
        except (MosaicError, ValueError) as error:
            found.append(f"{expert.name}: {error}")
    return found


def key_problems(endpoints: Sequence[Endpoint], _: bool = False) -> list[str]:
    """Say which servers' keys are not there."""
    found = []
    for endpoint in endpoints:
        try:
            endpoint.api_key()
        except FatalEngineError as error:
            found.append(str(error))
    return found
