"""Whether a pool and its machines can serve a workload at all: what no placement can mend."""

from collections.abc import Sequence

from mosaic.core.checks import require
from mosaic.core.cluster import Cluster, Gpu, Worker
from mosaic.core.engine_options import EngineOptions
from mosaic.core.kv_memory import activation_bytes, check_sparse_kv, describe_need, fits_memory
from mosaic.core.workload import Expert, Workload


class TooLongError(ValueError):
    """Prompts do not fit into the contexts of those that read them."""


def check_calls(workload: Workload, experts: Sequence[Expert], cluster: Cluster | None, options: EngineOptions) -> None:
    """Check that the pool has every expert called, that the machines can hold it and that it can take its prompts.

    Without a cluster nothing is loaded: servers have the experts.

    Schedulers and backends check so much themselves; a profile's sweep comes before them, and would complain of
    calibration calls that no user wrote.
    """
    pool = {expert.name: expert for expert in experts}
    too_long: list[str] = []
    for call in workload.calls:
        if call.expert not in pool:
            rule = f"one of the pool {list(pool)}"
            raise ValueError(f"workload {workload.name}, call {call.key}: expert must be {rule}, got {call.expert!r}")
        context = pool[call.expert].context_limit
        if call.prompt_tokens >= context:
            rule = f"below context_tokens={context} of {call.expert}"
            what = f"workload {workload.name}, call {call.key}: prompt_tokens must be {rule}, got {call.prompt_tokens}"
            too_long.append(what)
    if too_long:
        others = f", and {len(too_long) - 1:,} other calls are too long too" if len(too_long) > 1 else ""
        raise TooLongError(too_long[0] + others)
    if cluster is not None:
        for name in workload.num_calls_by_expert:
            check_fit(pool[name], cluster, options)


def check_fit(expert: Expert, cluster: Cluster, options: EngineOptions) -> None:
    """Check that an expert's workers can hold it, and that its engine can keep its KV cache as configured."""
    check_sparse_kv(expert.name, expert.kv, options)
    degree = expert.tp_degree
    label, gpu = f"expert {expert.name}", cluster.workers[0].gpu
    require(degree <= cluster.num_workers, f"{label}: tp_degree", f"at most num_workers={cluster.num_workers}", degree)
    kinds: dict[Gpu, list[Worker]] = {}
    for worker in cluster.workers:
        kinds.setdefault(worker.gpu, []).append(worker)
    if any(len(alike) >= degree and fits_memory(expert, alike[:degree], options) for alike in kinds.values()):
        return
    gib = 2.0**30
    activations = activation_bytes(expert, options, degree) / gib
    raise ValueError(
        f"{label} must fit into tp_degree={degree} x {gpu.name}, got {gpu.usable_bytes / gib:.1f} GiB usable on each "
        f"({gpu.memory_utilization_frac:g} of hardware.memory_gib={gpu.memory_bytes / gib:g}) for "
        f"{describe_need(expert)}, beside {activations:.1f} GiB of activations (fewer with a lower "
        "max_num_batched_tokens or context_tokens)"
    )
