"""What keeps engines and servers from starting, found before they start."""

from collections.abc import Iterable

from mosaic.core.cluster import Cluster
from mosaic.core.errors import FatalEngineError, MosaicError
from mosaic.core.workload import Expert
from mosaic.engines.endpoint import Endpoint
from mosaic.engines.vllm_engines import VllmEngines


def loading_problems(experts: Iterable[Expert], cluster: Cluster, engines: VllmEngines) -> list[str]:
    """Say which experts could be loaded on no worker, and why."""
    found = []
    for expert in experts:
        try:
            engines.spec(expert, cluster.workers[: expert.tp_degree])
        except (MosaicError, ValueError) as error:
            found.append(f"{expert.name}: {error}")
    return found


def key_problems(endpoints: Iterable[Endpoint]) -> list[str]:
    """Say which servers' keys are not there."""
    found = []
    for endpoint in endpoints:
        try:
            endpoint.api_key()
        except FatalEngineError as error:
            found.append(str(error))
    return found
