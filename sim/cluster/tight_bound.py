"""A tighter bound on the makespan of every plan: steps, KV memory and chains of calls count, not only tokens.

NOTE: the idea. If every decode step satisfies

    time >= s x 1 + a x sequences + b x KV tokens read,

a session takes at least s times its steps, plus a per token decoded and b per token read. Its steps are at least those
of its longest call, so experts with a long tail pay for it whatever the batches are (drain tails). KV memory enters
through a: batches that the cache cannot hold do not count, so a rate b above the price of a read leaves a high a where
contexts are long (KV-limited rates). For each pair (s, b) of a grid the largest a is taken, and the best pair wins.
``sim.cluster.lower_bound`` is the case s = 0 with two choices of b, and what the runs' summaries report.

Chains: an aggregation starts after its question's calls, so a run lasts at least as long as the longest chain does
alone; and all work of both layers has to find room.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mosaic.core.addition import add_in_order
from mosaic.core.engine_options import EngineOptions
from mosaic.core.results import RunResult
from mosaic.core.workload import Call, CallKey, Expert, ExpertName
from sim.cluster.expert_on_gpu import ExpertOnGpu, ExpertsOnGpus
from sim.cluster.lower_bound import (
    Demand,
    Job,
    alone_s,
    company_frac,
    demands_of,
    makespan_lower_bound_s,
    prefill_rate_s,
)

_STEP_SHARES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.97)
"""Choices of s, in shares of the shortest step."""
_NUM_SLOPES = 8
_BETWEEN_POINTS_FRAC = 0.98
"""Room for what lies between the batches that are looked at, as for the prefill rate."""
_TOKENS_PER_SEQ = tuple(sorted({*(2**power for power in range(16)), *(3 * 2**power for power in range(14))}))


class Plane(NamedTuple):
    """Least seconds of a decode step: per step, per sequence and per KV token read."""

    step_s: float
    decode_s: float
    kv_read_s: float


def tight_lower_bound_s(demands: Sequence[Demand], settings: EngineOptions, num_workers: int) -> float:
    """Bound the makespan of every plan for these calls; never below ``makespan_lower_bound_s``."""
    bound_s = makespan_lower_bound_s(demands, settings, num_workers)
    busy_s = 0.0
    for demand in demands:
        load_s = min(place.load_s for place in demand.places)
        work_s = min(session_work_s(demand, place, settings) for place in demand.places)
        bound_s = max(bound_s, load_s + work_s / (num_workers // demand.tp_degree))
        busy_s += (load_s + work_s) * demand.tp_degree
    return max(bound_s, busy_s / num_workers)


def chain_lower_bound_s(
    first: Sequence[Demand], last: Demand, chains_s: float, settings: EngineOptions, num_workers: int
) -> float:
    """Bound runs of two layers without a barrier: the longest chain, the first layer, and the work of both.

    Experts of both layers are loaded once at least, and count once.
    """
    bound_s = max(chains_s, tight_lower_bound_s(first, settings, num_workers) if first else 0.0)
    busy_s = 0.0
    loads_s: dict[ExpertName, float] = {}
    for demand in (*first, last):
        name = demand.places[0].expert.name
        load_s = min(place.load_s for place in demand.places) * demand.tp_degree
        loads_s[name] = min(loads_s.get(name, load_s), load_s)
        busy_s += min(session_work_s(demand, place, settings) for place in demand.places) * demand.tp_degree
    return max(bound_s, (busy_s + add_in_order(loads_s.values())) / num_workers)


def session_work_s(demand: Demand, place: ExpertOnGpu, settings: EngineOptions) -> float:
    """Seconds that the sessions of an expert take together at least, loads left out."""
    prompts = decoded = reads = 0
    for call, output_tokens in demand.jobs:
        steps = output_tokens - 1
        prompts += call.prompt_tokens
        decoded += steps
        reads += steps * (2 * call.prompt_tokens + output_tokens)
    reads //= 2  # Step i of a call reads prompt + i tokens.
    longest = max(output_tokens for _, output_tokens in demand.jobs) - 1
    prefill_s = prefill_rate_s(place, settings, demand.context_tokens) * prompts
    planes = decode_planes(place, settings, demand.context_tokens)
    return prefill_s + max(
        (plane.step_s * longest + plane.decode_s * decoded + plane.kv_read_s * reads for plane in planes), default=0.0
    )


def decode_planes(place: ExpertOnGpu, settings: EngineOptions, context_tokens: int) -> Iterator[Plane]:
    """List planes below the time of every decode step.

    There are none where prompts are chunked, and share steps with decodes, or the KV cache is sparse.
    """
    if settings.order.chunks_prompts or place.expert.kv is not None:
        return
    batches = list(_batches(settings.max_num_seqs, place.kv_tokens, context_tokens))
    times_s = [_BETWEEN_POINTS_FRAC * place.time.decode_span_s(num_seqs, kv, 1) for num_seqs, kv in batches]
    shortest_s = min(times_s)
    steepest_s = min(seconds / kv for seconds, (_, kv) in zip(times_s, batches, strict=True))
    for share in _STEP_SHARES:
        for slope in range(_NUM_SLOPES + 1):
            step_s, read_s = share * shortest_s, steepest_s * slope / _NUM_SLOPES
            decode_s = min(
                (seconds - step_s - read_s * kv) / num_seqs
                for seconds, (num_seqs, kv) in zip(times_s, batches, strict=True)
            )
            # NOTE: with nothing below 0 the batches at the upper ends of padded sizes are those that count.
            if decode_s >= 0:
                yield Plane(step_s, decode_s, read_s)


def _batches(max_num_seqs: int, kv_tokens: int, context_tokens: int) -> Iterator[tuple[int, int]]:
    """Batches that the cache can hold: sizes where padding wastes nothing, contexts from one token to the longest."""
    for num_seqs in sorted({1, 2, 4, *range(8, max_num_seqs, 8), max_num_seqs}):
        if num_seqs > max_num_seqs:
            continue
        most = max(num_seqs, min(kv_tokens, num_seqs * context_tokens))
        yield num_seqs, most
        for tokens in _TOKENS_PER_SEQ:
            if num_seqs * tokens < most:
                yield num_seqs, num_seqs * tokens


class RunBounds(NamedTuple):
    """Bounds for the calls that a run served, in seconds."""

    plain_s: float
    """What the summary reports: tokens alone."""
    expert_s: float
    """Of the first layer."""
    end_to_end_s: float | None
    """Of both layers without a barrier; None: there is one."""


def run_bounds(
    result: RunResult, models: ExpertsOnGpus, num_workers: int, aggregator: Expert | None = None
) -> RunBounds:
    """Bound what any plan needs for the calls that a run has finished, all of the first layer's being there at once.

    Parameters
    ----------
    result
        What was served; a call of a later node comes after its question's calls of the first ones.
    models, num_workers
        The experts on the cluster, and its size.
    aggregator
        Who merges answers, at a degree that every plan in question gives it; None: there is one layer.
    """
    first: list[Job] = []
    proposals: dict[str, list[CallKey]] = {}
    for record in result.calls:
        if record.key.node in result.first_nodes:
            first.append((Call(record.key, record.expert, record.prompt_tokens), record.output_tokens))
            proposals.setdefault(record.key.question, []).append(record.key)
    last: list[Job] = [
        (
            Call(record.key, record.expert, record.prompt_tokens, after=tuple(proposals[record.key.question])),
            record.output_tokens,
        )
        for record in result.calls
        if record.key.node not in result.first_nodes
    ]
    demands, settings = demands_of(first, models), models.settings
    plain_s = makespan_lower_bound_s(demands, settings, num_workers)
    expert_s = tight_lower_bound_s(demands, settings, num_workers)
    if aggregator is None or not last:
        return RunBounds(plain_s, expert_s, None)
    merging = Demand(last, aggregator.tp_degree, aggregator.context_tokens, models.of_expert(aggregator))
    chains_s = _longest_chain_s(demands, merging, settings)
    return RunBounds(plain_s, expert_s, chain_lower_bound_s(demands, merging, chains_s, settings, num_workers))


def _longest_chain_s(first: Sequence[Demand], last: Demand, settings: EngineOptions) -> float:
    """Time the longest chain of a call and one that comes after it, each as if nothing else ran, loads only before."""
    ends_s = {
        job[0].key: min(alone_s(job, demand.context_tokens, place, settings, frac) for place, frac in places)
        for demand in first
        for places in ([(place, company_frac(place, settings)) for place in demand.places],)
        for job in demand.jobs
    }
    fracs = [(place, company_frac(place, settings)) for place in last.places]
    return max(
        min(
            alone_s(job, last.context_tokens, place, settings, frac, max(ends_s.get(key, 0.0) for key in job[0].after))
            for place, frac in fracs
        )
        for job in last.jobs
    )
