"""Computes a lower bound on the makespan of every plan, from the iteration times of the engine.

NOTE: the idea. If every iteration satisfies

    time >= a x decoded tokens + b x KV tokens read + c x prefilled tokens,

a session takes at least the shares of its tokens, for any batches; preemptions only add time. For a given b the largest
a and c are minima over batches; of two choices of b the better one is taken. With chunked prompts, tokens of both kinds
share an iteration and a rate. Waiting, the rest of a gang and everything else count as free.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache, lru_cache
from typing import NamedTuple, TypeAlias

from mosaic.core.engine_options import EngineOptions
from mosaic.core.workload import Call, ExpertName
from sim.cluster.expert_on_gpu import ExpertOnGpu, ExpertsOnGpus
from sim.hardware.iteration_time import IterationTime

_BETWEEN_POINTS_FRAC = 0.98
"""Room for batches between the priced ones: prompts are seldom cut exactly like these."""
_TOKENS_PER_SEQ = (1, 64, 512, 2048, 8192, 32768)
"""Lengths at which decode steps are priced."""

Job: TypeAlias = tuple[Call, int]
"""A call, and its true output tokens."""


class Rates(NamedTuple):
    """Least seconds per unit of work."""

    decode_s: float
    kv_read_s: float
    prefill_s: float


def lower_bound_s(jobs: Iterable[Job], models: ExpertsOnGpus, num_workers: int) -> float | None:
    """Bound the makespan of every plan for some calls on this many workers; None: there are no calls, or not known.

    It is the largest of three terms. The first is one call alone after its load. The second is an expert's load and
    work spread over as many replicas as there are gangs. The third is all loads and all work spread over all workers.
    Replica caps are not used, so the bound also holds for plans that ignore them. It is not known for ranks that step
    together, which compute several batches at once, nor for an expert with a choice of degrees.
    """
    jobs_by_expert: dict[ExpertName, list[Job]] = {}
    for job in jobs:
        jobs_by_expert.setdefault(job[0].expert, []).append(job)
    experts = map(models.expert, jobs_by_expert)
    if any(expert.num_ranks > 1 or len(expert.possible_degrees) > 1 for expert in experts):
        return None
    bound_s = busy_s = 0.0
    for name, own in jobs_by_expert.items():
        places, tp_degree, extremes = models.everywhere(name), models.expert(name).tp_degree, _extremes(own)
        load_s, work_s = min(place.load_s for place in places), _session_work_s(own, places, models.settings)
        longest_s = min(_longest_uncontended_s(extremes, place, models.settings) for place in places)
        bound_s = max(bound_s, longest_s, load_s + work_s / (num_workers // tp_degree))
        busy_s += (load_s + work_s) * tp_degree
    return max(bound_s, busy_s / num_workers) if jobs_by_expert else None


def _session_work_s(jobs: Sequence[Job], places: Sequence[ExpertOnGpu], settings: EngineOptions) -> float:
    """Least total seconds of an expert's sessions, without loads."""
    prompts = decoded = reads = 0
    for call, output_tokens in jobs:
        steps, prompt_tokens = output_tokens - 1, call.prompt_tokens
        prompts += prompt_tokens if call.prefix is None else prompt_tokens - _most_cached(call, settings)
        decoded += steps
        reads += steps * (2 * prompt_tokens + output_tokens)
    reads //= 2  # Step i of a call reads prompt + i tokens.
    return min(
        max(
            rates.decode_s * decoded + rates.kv_read_s * reads + rates.prefill_s * prompts
            for rates in _rates(place, settings)
        )
        for place in places
    )


def _most_cached(call: Call, settings: EngineOptions) -> int:
    """Count the tokens of a prompt that an engine may find in its cache."""
    if call.prefix is None or not settings.caches_prefixes:
        return 0
    return min(call.prefix.num_tokens, call.prompt_tokens - 1)


@lru_cache(maxsize=256)
def _rates(place: ExpertOnGpu, settings: EngineOptions) -> tuple[Rates, ...]:
    """Take the minima over batches for two rates of KV reads: none, and the slope at the largest batch."""
    time, max_seqs, context_tokens = place.time, settings.max_num_seqs, place.expert.context_limit
    # With a sparse KV cache a batch has more tokens than the GPU holds: the others are in CPU memory.
    most_read = max(max_seqs, place.kv_tokens if place.expert.kv is None else max_seqs * context_tokens)
    decodes = list(_decode_batches(max_seqs, most_read))
    steps_s = [time.decode_span_s(num_seqs, kv_tokens, 1) for num_seqs, kv_tokens in decodes]
    mixes = list(_prefill_batches(place.time, settings, settings.batched_tokens(context_tokens)))
    mixes_s = [place.time.mixed_s(*mix) for mix in mixes]
    slope_s = time.decode_span_s(max_seqs, most_read, 1) - time.decode_span_s(max_seqs, max_seqs, 1)
    slope_s = max(0.0, slope_s) / max(1, most_read - max_seqs)
    rates = []
    for read_s in {0.0: None, slope_s: None}:
        decode_s = min((s - read_s * kv) / num_seqs for s, (num_seqs, kv) in zip(steps_s, decodes, strict=True))
        prefill_s = _BETWEEN_POINTS_FRAC * min(
            (s - read_s * kv) / (sum(tokens for tokens, _ in chunks) + num_decodes)
            for s, (chunks, num_decodes, kv) in zip(mixes_s, mixes, strict=True)
        )
        if settings.order.chunks_prompts:
            # Tokens of both kinds share an iteration, so they share one rate.
            decode_s = prefill_s = min(decode_s, prefill_s)
        rates.append(Rates(max(0.0, decode_s), read_s, max(0.0, prefill_s)))
    return tuple(rates)


def _decode_batches(max_num_seqs: int, most_tokens: int) -> Iterator[tuple[int, int]]:
    """Batches of at most so many tokens: sizes without padding to a captured graph, at several lengths."""
    for num_seqs in sorted({1, 2, 4, *range(8, max_num_seqs, 8), max_num_seqs}):
        if num_seqs > max_num_seqs:
            continue
        yield num_seqs, most_tokens
        for tokens in _TOKENS_PER_SEQ:
            if num_seqs * tokens < most_tokens:
                yield num_seqs, num_seqs * tokens


def _prefill_batches(
    time: IterationTime, settings: EngineOptions, budget: int
) -> Iterator[tuple[list[tuple[int, int]], int, int]]:
    """Iterations with prompts of equal size, one or many; in mixed order also with concurrent decodes."""
    max_seqs = settings.max_num_seqs
    sizes = {budget, *_cheapest_sizes(time, budget)}
    beside = {0, max_seqs // 2, max_seqs - 1} if settings.order.chunks_prompts else {0}
    for num_tokens in sorted(sizes):
        for num_decodes in sorted(beside):
            left = num_tokens - num_decodes
            room = min(left, max_seqs - num_decodes)
            for num_chunks in sorted({1, 16, room}):
                if not 1 <= num_chunks <= room:
                    continue
                size, rest = divmod(left, num_chunks)
                chunks = [(size + 1, 0)] * rest + [(size, 0)] * (num_chunks - rest)
                yield chunks, num_decodes, num_decodes
                if num_decodes:
                    yield chunks, num_decodes, num_decodes * _TOKENS_PER_SEQ[-1]


def _cheapest_sizes(time: IterationTime, budget: int) -> set[int]:
    """Find the cheapest size per token in every half octave: measured times rise in steps, with dips anywhere.

    If time does not fall with tokens, these sizes are within their spacing of the true minimum.
    """
    cheapest: dict[int, tuple[float, int]] = {}
    for size in _sizes(budget):
        half_octave = (size * size).bit_length()
        candidate = (time.mixed_s([(size, 0)], 0, 0) / size, size)
        cheapest[half_octave] = min(candidate, cheapest.get(half_octave, candidate))
    return {size for _, size in cheapest.values()}


@cache
def _sizes(budget: int) -> tuple[int, ...]:
    """Every size up to 32, multiples of 8 up to 2,048, 2% apart beyond: tables are measured at multiples of 8."""
    sizes = {*range(1, min(32, budget) + 1), *range(8, min(2048, budget) + 1, 8), budget}
    size = 2048
    while size < budget:
        sizes.add(size)
        size += size // 50
    return tuple(sorted(sizes))


def _extremes(jobs: Sequence[Job]) -> set[Job]:
    """Find the call with the most tokens to write, and the one that arrives last."""
    return {max(jobs, key=lambda job: (job[1], job[0].prompt_tokens)), max(jobs, key=lambda job: job[0].ready_s)}


def _longest_uncontended_s(jobs: Iterable[Job], place: ExpertOnGpu, settings: EngineOptions) -> float:
    """Time the longest of some calls, each as if nothing else ran."""
    budget = settings.batched_tokens(place.expert.context_limit)
    return max(_uncontended_s(job, budget, place, settings) for job in jobs)


def _uncontended_s(job: Job, budget: int, place: ExpertOnGpu, settings: EngineOptions) -> float:
    """Time a call after its expert's load, as if nothing else ran; prompts are read in pieces of so many tokens."""
    call, output_tokens = job
    done, serve_s = _most_cached(call, settings), 0.0
    while done < call.prompt_tokens:
        size = min(call.prompt_tokens - done, budget)
        serve_s += place.time.mixed_s([(size, done)], 0, 0)
        done += size
    if output_tokens > 1:
        serve_s += place.time.decode_span_s(1, call.prompt_tokens + 1, output_tokens - 1)
    return max(place.load_s, call.ready_s) + serve_s * _least_company_frac(place, settings)


@lru_cache(maxsize=256)
def _least_company_frac(place: ExpertOnGpu, settings: EngineOptions) -> float:
    """Least time of a step in a batch relative to a step alone: below 1 if noisy tables are not monotone."""
    time = place.time
    fracs = [1.0]
    for tokens in _TOKENS_PER_SEQ:
        alone_step_s = time.decode_span_s(1, tokens, 1)
        fracs += [
            time.decode_span_s(num_seqs, num_seqs * tokens, 1) / alone_step_s
            for num_seqs in (2, 4, 8, 16, 32, 64, settings.max_num_seqs)
            if num_seqs <= settings.max_num_seqs
        ]
        if settings.order.chunks_prompts:
            fracs.append(time.mixed_s([(1, 0)], 1, tokens) / alone_step_s)
    return min(fracs)
