"""A quote's pilot: which calls of a batch it sends, and what it leaves.

Whole questions come first, then the calls that say most about the batch's time, then what an aggregator has to read.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import pstdev
from typing import TypeAlias

from mosaic.core.plan import Expected, Plan, unpriced_plan
from mosaic.core.results import CallRecord, RunResult
from mosaic.core.workload import Call, CallKey, Expert, ExpertName
from mosaic.pipelines.node import Node
from mosaic.quote.worlds import Batch, PilotQuestion, PilotSample
from mosaic.runtime.job import Job
from mosaic.runtime.layers import Questions
from mosaic.runtime.measuring import Show, Tell, prompts_of, show_nothing
from mosaic.runtime.pilot import choose, first_stage, pilot_announcement
from mosaic.runtime.pilot_stages import Pilot, Stage, run_stage, with_stage
from mosaic.runtime.planner import NodePlacements, placed
from mosaic.runtime.taking_over import stage_name
from mosaic.runtime.unpriced import even_plan, one_session_each, waves_in_thirds

WHOLE_SHARE = 0.4
"""Of a pilot's calls: questions that are asked whole, which show what the gate leaves and how far lengths spread."""
MAX_SHARE = 0.5
"""Of the batch: what is more, a quote would have nothing left to say about."""
MIN_CALLS = 8
"""Of each expert, or all that it has."""


def num_pilot_calls(first_calls: Sequence[Call], per_expert: int) -> int:
    """Say how many calls a pilot has: so many an expert on average, and at most half of the batch."""
    num_experts = len({call.expert for call in first_calls})
    return min(per_expert * num_experts, int(MAX_SHARE * len(first_calls)))


def first_share(first_calls: Sequence[Call], num_calls: int, *, seed: int = 0) -> tuple[Call, ...]:
    """Choose the calls of a pilot's first stage."""
    counts = Counter(call.expert for call in first_calls)
    num_questions = len({call.key.question for call in first_calls})
    least = {expert: min(count, MIN_CALLS) for expert, count in counts.items()}
    return choose(first_calls, least, int(WHOLE_SHARE * num_calls * num_questions / len(first_calls)), seed=seed)


def second_share(
    first_calls: Sequence[Call],
    asked: Mapping[CallKey, int],
    num_calls: int,
    *,
    seed: int = 0,
) -> tuple[Call, ...]:
    """Choose the rest: each expert in proportion to its calls and to how far their lengths spread.

    Parameters
    ----------
    first_calls
        Of the batch.
    asked
        What the calls of the first stage wrote, in tokens.
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
        if call.key in asked:
            lengths.setdefault(call.expert, []).append(asked[call.key])
    weights = {expert: counts[expert] * pstdev(own) for expert, own in lengths.items()}
    wanted: Counter[ExpertName] = Counter()
    for _ in range(num_calls - len(asked)):
        open_ = [e for e in weights if len(lengths[e]) + wanted[e] < min(counts[e], 0.6 * counts[e] + 1)]
        if not open_:
            break
        wanted[max(open_, key=lambda expert: weights[expert] / (len(lengths[expert]) + wanted[expert]))] += 1
    return choose(first_calls, wanted, 0, asked, seed=seed) if wanted else ()


Keep: TypeAlias = Callable[[Sequence[Plan]], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a quote's pilot asked of a batch, and what is left."""

    pilot: Pilot
    sample: PilotSample
    batch: Batch
    result: RunResult
    """Of the pilot's sessions and calls."""

    @property
    def records(self) -> Mapping[CallKey, CallRecord]:
        """Of the calls that finished."""
        return self.pilot.records


def ask(
    job: Job,
    per_expert: int,
    *,
    seed: int = 0,
    show: Show = show_nothing,
    tell: Tell = lambda line: None,
    keep: Keep = lambda plans: None,
) -> Asked:
    """Ask some of a batch's calls: whole questions, then those that say most, then what an aggregator has to read.

    Parameters
    ----------
    job
        The batch, and where its pilot runs.
    per_expert
        Calls an expert, on average.
    seed
        Of the order in which questions are taken.
    show, tell
        See ``mosaic.run``.
    keep
        Given the plans of all stages before each of them runs, for ``Job.asked``: the batch goes on from them.

    Raises
    ------
    ValueError
        If the pipeline has more than experts and one aggregator.
    BackendError
        If calls fail in a row.
    """
    node = upper_node(job)
    first_calls = job.graph.first_calls(job.workload)
    experts = {expert.name: expert for expert in (*job.graph.experts, *job.experts)}
    num_calls = num_pilot_calls(first_calls, per_expert)
    run = _Pilot(job, len(first_calls), show, tell, keep)
    run.stage(first_stage(job, first_share(first_calls, num_calls, seed=seed), list(experts.values()), stage_name(0)))
    asked = {key: record.output_tokens for key, record in run.pilot.records.items()}
    if more := second_share(first_calls, asked, num_calls, seed=seed):
        sessions = one_session_each(more, list(experts.values()), job.site)
        plan = unpriced_plan(sessions, num_workers=job.cluster.num_workers)
        run.stage(Stage(name=run.next_name, plan=plan, calls=more))
    whole = run.pilot.whole_questions(job.workload, first_calls)
    questions = Questions(whole, job.graph)
    for call in questions.first_calls:
        questions.note(run.pilot.records[call.key])
    merges = questions.calls_of(node.name) if node is not None else ()
    if node is not None and merges:
        merging = placed(node.experts[0], pilot_degree(job, node))
        run.stage(Stage(name=run.next_name, plan=merging_plan(merges, merging, job), calls=merges))
    return _asked(job, node, first_calls, {question.id for question in whole.questions}, run)


def merging_plan(merges: Sequence[Call], expert: Expert, job: Job) -> Plan:
    """Spread merges over places, in waves of three sizes where they are enough: these price the aggregator."""
    num_workers = job.cluster.num_workers
    waves = waves_in_thirds(merges, job.site.places(expert))
    if not waves:
        return even_plan(merges, [expert], job.site, num_workers)
    return unpriced_plan([session for wave in waves for session in wave], num_workers=num_workers)


def upper_node(job: Job) -> Node | None:
    """Find the aggregator's node.

    Raises
    ------
    ValueError
        If there are others.
    """
    nodes = job.graph.upper_nodes
    if len(nodes) > 1 or any(len(node.experts) > 1 for node in nodes):
        raise ValueError(
            f"a quote takes experts and at most one aggregator, got the nodes {[node.name for node in nodes]}"
        )
    return nodes[0] if nodes else None


def pilot_degree(job: Job, node: Node) -> int:
    """Say over how many workers the aggregator answers in the pilot."""
    options = job.placements.get(node.name, NodePlacements()).placements
    return options[0].tp_degree if options else node.experts[0].tp_degree


class _Pilot:
    """A pilot under way."""

    def __init__(self, job: Job, num_calls: int, show: Show, tell: Tell, keep: Keep) -> None:
        self._job = job
        self._num_calls = num_calls
        self._show = show
        self._tell = tell
        self._keep = keep
        self._prompts = prompts_of(job.graph, {question.id: question for question in job.workload.questions})
        self.pilot = Pilot()
        self.result: RunResult | None = None

    @property
    def next_name(self) -> str:
        """Of the stage that comes."""
        return stage_name(len(self.pilot.stages))

    def stage(self, stage: Stage) -> None:
        """Run the next stage."""
        self._keep([*(done.plan for done in self.pilot.stages), stage.plan])
        counts = Counter(call.expert for call in stage.calls)
        self._tell(pilot_announcement("quote", counts, self._num_calls))
        with self._show("quote", Expected()) as shown:
            self.result, stage = run_stage(self._job, self._prompts, self.pilot, stage, shown)
        self.pilot = with_stage(self.pilot, stage, self.result)


def _asked(job: Job, node: Node | None, first_calls: Sequence[Call], whole: set[str], run: _Pilot) -> Asked:
    records = run.pilot.records
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
    batch = Batch(
        calls=left,
        num_open_questions=len({call.key.question for call in first_calls} - whole),
        aggregator=None if node is None else node.experts[0],
        aggregator_degrees=tuple(sorted({1, *degrees})),
    )
    assert run.result is not None, "a stage has run"
    return Asked(pilot=run.pilot, sample=PilotSample(questions=questions), batch=batch, result=run.result)
