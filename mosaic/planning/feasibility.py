"""Whether a pool and its machines can serve a workload at all: what no placement can mend."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from mosaic.core.checks import require
from mosaic.core.cluster import Cluster, Gpu, Worker
from mosaic.core.engine_options import EngineOptions
from mosaic.core.kv_memory import activation_bytes, check_sparse_kv, describe_need, fits_memory
from mosaic.core.workload import BadLine, Call, Expert, Workload


class TooLongError(ValueError):
    """Prompts do not fit into the contexts of those that read them."""


def check_calls(workload: Workload, experts: Sequence[Expert], cluster: Cluster | None, options: EngineOptions) -> None:
    """Check that the pool has every expert called, that the machines can hold it and that it can take its prompts.

    Without a cluster nothing is loaded: servers have the experts.

    Schedulers and backends check so much themselves; a profile's sweep comes before them, and would complain of
    calibration calls that no user wrote.
    """
    too_long: list[TooLongError] = []
    for _, error in _misfits(workload, experts):
        if not isinstance(error, TooLongError):
            raise error
        too_long.append(error)
    if too_long:
        others = f", and {len(too_long) - 1:,} other calls are too long too" if len(too_long) > 1 else ""
        raise TooLongError(f"{too_long[0]}{others}")
    if cluster is not None:
        pool = {expert.name: expert for expert in experts}
        for name in workload.num_calls_by_expert:
            check_fit(pool[name], cluster, options)


def without_misfits(workload: Workload, experts: Sequence[Expert]) -> Workload:
    """Leave out the questions that the pool cannot answer, as bad lines of their file; unless that leaves none."""
    reasons: dict[str, str] = {}
    for name, error in _misfits(workload, experts):
        reasons.setdefault(name, str(error))
    kept = tuple(question for question in workload.questions if question.id not in reasons)
    if not reasons or not kept:
        return workload
    lengths = workload.output_tokens
    lines = {question.id: question.source.number for question in workload.questions if question.source is not None}
    bad = [BadLine(lines.get(name, 0), name, reason) for name, reason in reasons.items()]
    return replace(
        workload,
        questions=kept,
        calls=tuple(call for call in workload.calls if call.key.question not in reasons),
        output_tokens=lengths and {key: tokens for key, tokens in lengths.items() if key.question not in reasons},
        bad_lines=tuple(sorted((*workload.bad_lines, *bad), key=lambda line: line.number)),
    )


def _misfits(workload: Workload, experts: Sequence[Expert]) -> Iterator[tuple[str, ValueError]]:
    """Find calls of experts that are not there, or whose prompt is too long: the question, and what is wrong."""
    pool = {expert.name: expert for expert in experts}
    found: list[tuple[Call, str, bool]] = []
    for call in workload.calls:
        if call.expert not in pool:
            found.append((call, f"expert must be one of the pool {list(pool)}, got {call.expert!r}", False))
        elif call.prompt_tokens >= (context := pool[call.expert].context_limit):
            rule = f"below context_tokens={context} of {call.expert}"
            found.append((call, f"prompt_tokens must be {rule}, got {call.prompt_tokens}", True))
    sources = {question.id: question.source for question in workload.questions} if found else {}
    for call, what, is_too_long in found:
        source = sources[call.key.question]
        place = f"workload {workload.name}, call {call.key}" if source is None else source.at
        yield call.key.question, (TooLongError if is_too_long else ValueError)(f"{place}: {what}")


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
