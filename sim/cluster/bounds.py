"""Lower bounds on the makespan of every plan, from the same iteration times that the engine steps with.

NOTE: the idea. If every iteration satisfies

    time >= s x 1 + a x decoded tokens + b x KV tokens read + c x prefilled tokens,

a session takes at least s times its steps, plus the shares of its tokens, whatever the batches were; preemptions only
add. Its steps are at least those of its longest call. For given s and b, the largest a and c are minima over batches;
of several choices the best wins. Waiting, the rest of a gang and everything else count as free.

The plain bound, which summaries report, is the case s = 0 with two choices of b. It holds for chunked prompts, where
tokens of both kinds share an iteration, and for sparse KV caches.

The tight bound tries a grid of pairs (s, b). Experts with a long tail pay for it whatever the batches are (drain
tails), and KV memory enters through a: batches that the cache cannot hold do not count, so a rate b above the price of
a read leaves a high a where contexts are long (KV-limited rates). Where prompts are chunked or the KV cache is sparse,
it is the plain one.

Chains: an aggregation starts after its question's calls, so a run lasts at least as long as the longest chain does
alone; and all work of both layers has to find room.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, lru_cache
from typing import NamedTuple, TypeAlias

from mosaic.core.addition import add_in_order
from mosaic.core.engine_options import EngineOptions
from mosaic.core.results import RunResult
from mosaic.core.workload import Call, CallKey, Expert, ExpertName
from sim.cluster.expert_on_gpu import ExpertOnGpu, ExpertsOnGpus
from sim.hardware.iteration_time import IterationTime

_BETWEEN_POINTS_FRAC = 0.98
"""Room for what lies between the batches that are looked at: prompts are seldom cut exactly as there."""
_TOKENS_PER_SEQ = (1, 64, 512, 2048, 8192, 32768)
"""Lengths at which decode steps are looked at; below, those of the tight bound."""
_TIGHT_TOKENS_PER_SEQ = tuple(sorted({*(2**power for power in range(16)), *(3 * 2**power for power in range(14))}))
_STEP_SHARES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.97)
"""Choices of s, in shares of the shortest step."""
_NUM_SLOPES = 8


Job: TypeAlias = tuple[Call, int]
"""A call, and the tokens that it really writes."""


class Demand(NamedTuple):
    """The calls of one expert, and where it could run."""

    jobs: Sequence[Job]
    tp_degree: int
    context_tokens: int
    places: Sequence[ExpertOnGpu]

    @property
    def load_s(self) -> float:
        """Shortest load of the expert."""
        return min(place.load_s for place in self.places)


class Rates(NamedTuple):
    """Least seconds per step and per unit of work."""

    step_s: float
    decode_s: float
    kv_read_s: float
    prefill_s: float


RatesOf: TypeAlias = Callable[[ExpertOnGpu, EngineOptions, int], Sequence[Rates]]
"""Choices of rates for an expert of a context length on a kind of GPU."""


def lower_bound_s(jobs: Iterable[Job], models: ExpertsOnGpus, num_workers: int) -> float | None:
    """Bound the makespan of every plan for some calls; None: there are none."""
    demands = group_by_expert(jobs, models)
    return makespan_bound_s(demands, models.settings, num_workers) if demands else None


def group_by_expert(jobs: Iterable[Job], models: ExpertsOnGpus) -> list[Demand]:
    """Group calls by expert, with where each could run."""
    groups: dict[ExpertName, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job[0].expert, []).append(job)
    return [
        Demand(group, models.expert(name).tp_degree, models.expert(name).context_tokens, models.everywhere(name))
        for name, group in groups.items()
    ]


def makespan_bound_s(
    demands: Sequence[Demand], settings: EngineOptions, num_workers: int, rates_of: RatesOf | None = None
) -> float:
    """Bound the makespan of every plan for these calls on this many workers.

    It is the largest of: one call alone behind its load; an expert's load and its work spread over as many
    replicas as there are gangs; all loads and all work spread over all workers. Replica caps are not used,
    so the bound also holds for plans that ignore them.
    """
    bound_s = busy_s = 0.0
    for demand in demands:
        load_s, work_s = demand.load_s, session_work_s(demand, settings, rates_of or plain_rates)
        longest_s = min(_longest_uncontended_s(demand, place, settings) for place in demand.places)
        bound_s = max(bound_s, longest_s, load_s + work_s / (num_workers // demand.tp_degree))
        busy_s += (load_s + work_s) * demand.tp_degree
    return max(bound_s, busy_s / num_workers)


def tight_makespan_bound_s(demands: Sequence[Demand], settings: EngineOptions, num_workers: int) -> float:
    """Bound the makespan of every plan for these calls; never below the plain bound."""
    return max(makespan_bound_s(demands, settings, num_workers, rates_of) for rates_of in (plain_rates, tight_rates))


def session_work_s(demand: Demand, settings: EngineOptions, rates_of: RatesOf) -> float:
    """Seconds that the sessions of an expert take together at least, loads left out."""
    prompts = decoded = reads = 0
    for call, output_tokens in demand.jobs:
        steps = output_tokens - 1
        prompts += call.prompt_tokens
        decoded += steps
        reads += steps * (2 * call.prompt_tokens + output_tokens)
    reads //= 2  # Step i of a call reads prompt + i tokens.
    longest = max(output_tokens for _, output_tokens in demand.jobs) - 1
    return min(
        max(
            rates.step_s * longest + rates.decode_s * decoded + rates.kv_read_s * reads + rates.prefill_s * prompts
            for rates in rates_of(place, settings, demand.context_tokens)
        )
        for place in demand.places
    )


@lru_cache(maxsize=256)
def plain_rates(place: ExpertOnGpu, settings: EngineOptions, context_tokens: int) -> tuple[Rates, ...]:
    """Take the minima over batches at s = 0, for two rates of KV reads: none, and the slope at the largest batch."""
    time, max_seqs = place.time, settings.max_num_seqs
    # With a sparse KV cache a batch has more tokens than the GPU holds: the others are on the host.
    most_read = max(max_seqs, place.kv_tokens if place.expert.kv is None else max_seqs * context_tokens)
    decodes = list(_decode_batches(max_seqs, most_read, most_read, _TOKENS_PER_SEQ))
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
        rates.append(Rates(0.0, max(0.0, decode_s), read_s, max(0.0, prefill_s)))
    return tuple(rates)


def tight_rates(place: ExpertOnGpu, settings: EngineOptions, context_tokens: int) -> Sequence[Rates]:
    """List planes below the time of every decode step that the cache can hold, over a grid of s and b."""
    plain = plain_rates(place, settings, context_tokens)
    if settings.order.chunks_prompts or place.expert.kv is not None:
        return plain
    batches = list(_decode_batches(settings.max_num_seqs, place.kv_tokens, context_tokens, _TIGHT_TOKENS_PER_SEQ))
    times_s = [_BETWEEN_POINTS_FRAC * place.time.decode_span_s(num_seqs, kv, 1) for num_seqs, kv in batches]
    shortest_s = min(times_s)
    steepest_s = min(seconds / kv for seconds, (_, kv) in zip(times_s, batches, strict=True))
    rates = []
    for share in _STEP_SHARES:
        for slope in range(_NUM_SLOPES + 1):
            step_s, read_s = share * shortest_s, steepest_s * slope / _NUM_SLOPES
            decode_s = min(
                (seconds - step_s - read_s * kv) / num_seqs
                for seconds, (num_seqs, kv) in zip(times_s, batches, strict=True)
            )
            # NOTE: with nothing below 0 the batches at the upper ends of padded sizes are those that count.
            if decode_s >= 0:
                rates.append(Rates(step_s, decode_s, read_s, plain[0].prefill_s))
    return rates


def _decode_batches(
    max_num_seqs: int, kv_tokens: int, context_tokens: int, lengths: Sequence[int]
) -> Iterator[tuple[int, int]]:
    """Batches that the cache can hold: sizes where padding to a captured graph wastes nothing, at several lengths."""
    for num_seqs in sorted({1, 2, 4, *range(8, max_num_seqs, 8), max_num_seqs}):
        if num_seqs > max_num_seqs:
            continue
        most = max(num_seqs, min(kv_tokens, num_seqs * context_tokens))
        yield num_seqs, most
        for tokens in lengths:
            if num_seqs * tokens < most:
                yield num_seqs, num_seqs * tokens


def _prefill_batches(
    time: IterationTime, settings: EngineOptions, budget: int
) -> Iterator[tuple[list[tuple[int, int]], int, int]]:
    """Iterations with prompts of equal size, one or many; in mixed order also with decodes beside them."""
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
    """Find, in every half octave, where a token is cheapest: measured times rise in steps, with dips anywhere.

    While time does not fall with tokens, these sizes are within their spacing of the true minimum.
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


def _longest_uncontended_s(demand: Demand, place: ExpertOnGpu, settings: EngineOptions) -> float:
    """Time the call with the most tokens to write, and the one that arrives last, as if nothing else ran."""
    jobs = demand.jobs
    longest = max(jobs, key=lambda job: (job[1], job[0].prompt_tokens))
    last = max(jobs, key=lambda job: job[0].ready_s)
    return max(uncontended_s(job, demand, place, settings) for job in {longest, last})


def uncontended_s(
    job: Job, demand: Demand, place: ExpertOnGpu, settings: EngineOptions, start_s: float | None = None
) -> float:
    """Time a call of a demand behind its expert's load, or from another instant on, as if nothing else ran."""
    call, output_tokens = job
    budget = settings.batched_tokens(demand.context_tokens)
    done, serve_s = 0, 0.0
    while done < call.prompt_tokens:
        size = min(call.prompt_tokens - done, budget)
        serve_s += place.time.mixed_s([(size, done)], 0, 0)
        done += size
    if output_tokens > 1:
        serve_s += place.time.decode_span_s(1, call.prompt_tokens + 1, output_tokens - 1)
    begun_s = max(place.load_s if start_s is None else start_s, call.ready_s)
    return begun_s + serve_s * least_company_frac(place, settings)


@lru_cache(maxsize=256)
def least_company_frac(place: ExpertOnGpu, settings: EngineOptions) -> float:
    """Least time of a step in company relative to a step alone: below 1 where noisy tables are not monotone."""
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


def chain_bound_s(
    first: Sequence[Demand], last: Demand, chains_s: float, settings: EngineOptions, num_workers: int
) -> float:
    """Bound runs of two layers without a barrier: the longest chain, the first layer, and the work of both.

    Experts of both layers are loaded once at least, and count once.
    """
    bound_s = max(chains_s, tight_makespan_bound_s(first, settings, num_workers) if first else 0.0)
    busy_s = 0.0
    loads_s: dict[ExpertName, float] = {}
    for demand in (*first, last):
        name = demand.places[0].expert.name
        load_s = demand.load_s * demand.tp_degree
        loads_s[name] = min(loads_s.get(name, load_s), load_s)
        busy_s += session_work_s(demand, settings, tight_rates) * demand.tp_degree
    return max(bound_s, (busy_s + add_in_order(loads_s.values())) / num_workers)


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
    demands, settings = group_by_expert(first, models), models.settings
    plain_s = makespan_bound_s(demands, settings, num_workers)
    expert_s = tight_makespan_bound_s(demands, settings, num_workers)
    if aggregator is None or not last:
        return RunBounds(plain_s, expert_s, None)
    merging = Demand(last, aggregator.tp_degree, aggregator.context_tokens, models.of_expert(aggregator))
    chains_s = _longest_chain_s(demands, merging, settings)
    return RunBounds(plain_s, expert_s, chain_bound_s(demands, merging, chains_s, settings, num_workers))


def _longest_chain_s(first: Sequence[Demand], last: Demand, settings: EngineOptions) -> float:
    """Time the longest chain of a call and one that comes after it, each as if nothing else ran, loads only before."""
    ends_s = {
        job[0].key: min(uncontended_s(job, demand, place, settings) for place in demand.places)
        for demand in first
        for job in demand.jobs
    }
    return max(
        min(
            uncontended_s(job, last, place, settings, max(ends_s.get(key, 0.0) for key in job[0].after))
            for place in last.places
        )
        for job in last.jobs
    )
