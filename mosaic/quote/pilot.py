"""Runs a quote's pilot: chooses the calls of a batch to send, and returns the remaining batch.

Whole questions come first, then the calls with the most information about the batch's time, then the aggregator's
calls.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import pstdev

from mosaic.core.checks import require
from mosaic.core.plan import Session
from mosaic.core.workload import Call, CallKey, Expert, ExpertName
from mosaic.pipelines.node import Node
from mosaic.quote.worlds import Batch, PilotQuestion
from mosaic.runtime.controller import Log, Show, show_nothing
from mosaic.runtime.job import Job
from mosaic.runtime.pilot import choose
from mosaic.runtime.planner import NodePlacements, placed
from mosaic.runtime.rehearsal import questions_of
from mosaic.runtime.stages import FirstStretch, Pilot, Stage, Stages
from mosaic.runtime.unpriced import (
    PlacesOf,
    first_workers,
    sessions_by_size,
    sessions_in_thirds,
    sessions_in_waves,
    waves_in_thirds,
)

WHOLE_SHARE = 0.4
"""Share of a pilot's calls in whole questions, which show what the gate skips and how much lengths vary."""
MAX_SHARE = 0.5
"""Largest share of the batch: with more, a quote would have little left to predict."""
MIN_CALLS = 8
"""Of each expert, or all its calls but one: some calls are left to plan."""


def num_pilot_calls(first_calls: Sequence[Call], per_expert: int) -> int:
    """Return the number of a pilot's calls: so many per expert on average, and at most half of the batch."""
    num_experts = len({call.expert for call in first_calls})
    return min(per_expert * num_experts, int(MAX_SHARE * len(first_calls)))


def first_share(first_calls: Sequence[Call], num_calls: int, *, seed: int = 0) -> tuple[Call, ...]:
    """Choose the calls of a pilot's first stage."""
    counts = Counter(call.expert for call in first_calls)
    num_questions = len({call.key.question for call in first_calls})
    least = {expert: min(count - 1, MIN_CALLS) for expert, count in counts.items()}
    return choose(first_calls, least, int(WHOLE_SHARE * num_calls * num_questions / len(first_calls)), seed=seed)


def second_share(
    first_calls: Sequence[Call],
    written: Mapping[CallKey, int],
    num_calls: int,
    *,
    seed: int = 0,
) -> tuple[Call, ...]:
    """Choose the rest: for each expert in proportion to its number of calls and to the spread of their lengths.

    Parameters
    ----------
    first_calls
        Of the batch.
    written
        Tokens written by the calls of the first stage.
    num_calls
        Of the whole pilot.
    seed
        Of the order of questions.

    References
    ----------
    Neyman, On the two different aspects of the representative method, 1934: the allocation with the least variance of
    a sum over strata.
    """
    counts = Counter(call.expert for call in first_calls)
    lengths: dict[ExpertName, list[int]] = {}
    for call in first_calls:
        if call.key in written:
            lengths.setdefault(call.expert, []).append(written[call.key])
    weights = {expert: counts[expert] * pstdev(own) for expert, own in lengths.items()}
    wanted: Counter[ExpertName] = Counter()
    for _ in range(num_calls - len(written)):
        open_ = [e for e in weights if len(lengths[e]) + wanted[e] < min(counts[e], 0.6 * counts[e] + 1)]
        if not open_:
            break
        wanted[max(open_, key=lambda expert: weights[expert] / (len(lengths[expert]) + wanted[expert]))] += 1
    return choose(first_calls, wanted, 0, written, seed=seed) if wanted else ()


def run_quote_pilot(
    job: Job, per_expert: int, *, seed: int = 0, show: Show = show_nothing, log: Log = lambda line: None
) -> tuple[Pilot, Batch]:
    """Run some of a batch's calls; returns the measurements, and the rest of the batch, which uses the same journal.

    Parameters
    ----------
    job
        The batch, and the site of its pilot.
    per_expert
        Calls per expert, on average.
    seed
        Of the order in which questions are taken.
    show, log
        See ``mosaic.run``.

    Raises
    ------
    ValueError
        If the pipeline has more than experts and one aggregator.
    BackendError
        If too many calls fail in a row.
    """
    node = upper_node(job)
    stretch = FirstStretch(job, quote_stages(job, per_expert, seed=seed), show, log)
    stretch.run("quote", is_quote=True)
    return stretch.outcome, _left_of(job, node, stretch.outcome)


def quote_stages(job: Job, per_expert: int, *, seed: int = 0, num_workers: int | None = None) -> Stages[Pilot]:
    """Send whole questions, then the calls with the most information, then the aggregator's calls.

    Parameters
    ----------
    job, per_expert, seed
        See `run_quote_pilot`.
    num_workers
        Number of workers for it, the first ones; None: all. A batch on more workers than its quote repeats the same
        sessions.
    """
    node = upper_node(job)
    first_calls = job.graph.first_calls(job.workload)
    experts = list({expert.name: expert for expert in (*job.graph.experts, *job.experts)}.values())
    num_calls = num_pilot_calls(first_calls, per_expert)
    places = job.site.places if num_workers is None else first_workers(job.site.places, num_workers)

    chosen = first_share(first_calls, num_calls, seed=seed)
    num_questions = len(job.workload.questions)
    require(len(chosen) > 0, "quote: questions", "so many that some can be forecast by others", num_questions)
    pilot = yield Stage("quote", sessions_in_thirds(chosen, experts, places), chosen)
    written = {key: record.output_tokens for key, record in pilot.records.items()}
    if more := second_share(first_calls, written, num_calls, seed=seed):
        counts = Counter(call.expert for call in more)
        shards = {name: [[call for call in more if call.expert == name]] for name in counts}
        longest_first = sorted(experts, key=lambda expert: -counts[expert.name])
        pilot = yield Stage("quote", sessions_by_size(shards, longest_first, places), more)
    merges = questions_of(job, pilot).calls_of(node.name) if node is not None else ()
    if node is None or not merges:
        return pilot
    pilot = yield Stage("quote", merging(merges, placed(node.experts[0], pilot_degree(job, node)), places), merges)
    assert pilot.stage is not None, "it has run"
    return replace(pilot, merging=pilot.stage.sessions)


def merging(merges: Sequence[Call], expert: Expert, places: PlacesOf) -> tuple[Session, ...]:
    """Spread aggregations over gangs, in waves of three sizes if there are enough: these price the aggregator."""
    return waves_in_thirds(merges, places(expert)) or sessions_in_waves([merges], places(expert))


def can_quote(job: Job) -> bool:
    """Return whether a batch has experts and at most one aggregator."""
    nodes = job.graph.upper_nodes
    return len(nodes) < 2 and all(len(node.experts) < 2 for node in nodes)


def upper_node(job: Job) -> Node | None:
    """Find the aggregator's node.

    Raises
    ------
    ValueError
        If there are other upper nodes.
    """
    nodes = job.graph.upper_nodes
    if not can_quote(job):
        raise ValueError(
            f"a quote takes experts and at most one aggregator, got the nodes {[node.name for node in nodes]}"
        )
    return nodes[0] if nodes else None


def pilot_degree(job: Job, node: Node) -> int:
    """Return the number of workers over which the aggregator runs in the pilot."""
    options = job.placements.get(node.name, NodePlacements()).placements
    return options[0].tp_degree if options else node.experts[0].tp_degree


def _left_of(job: Job, node: Node | None, pilot: Pilot) -> Batch:
    records, first_calls = pilot.records, job.graph.first_calls(job.workload)
    whole = {question.id for question in pilot.whole_questions(job)}
    left = tuple(call for call in first_calls if call.key not in records)
    lengths: dict[str, dict[str, tuple[int, ...]]] = {}
    merged: dict[str, tuple[tuple[int, int], ...]] = {}
    first_keys = {call.key for call in first_calls}
    for key, record in records.items():
        if key in first_keys:
            own = lengths.setdefault(key.question, {})
            own[record.expert] = (*own.get(record.expert, ()), record.output_tokens)
        else:
            pair = record.prompt_tokens, record.output_tokens
            merged[key.question] = (*merged.get(key.question, ()), pair)
    questions = tuple(
        PilotQuestion(output_tokens=own, is_whole=name in whole, merged=merged.get(name, ()))
        for name, own in lengths.items()
    )
    options = () if node is None else job.placements.get(node.name, NodePlacements()).placements
    degrees = tuple(option.tp_degree for option in options)
    return Batch(
        questions=questions,
        calls=left,
        num_open_questions=len({call.key.question for call in first_calls} - whole),
        aggregator=None if node is None else node.experts[0],
        aggregator_degrees=tuple(sorted({1, *degrees})),
    )
