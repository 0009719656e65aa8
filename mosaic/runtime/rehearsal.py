"""Prices upper nodes by the calls that already answered questions need of them."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from msgspec.structs import replace

from mosaic.core.errors import DisturbedSweepError
from mosaic.core.plan import Session
from mosaic.core.results import CallRecord, CallStatus
from mosaic.core.workload import Call, CallKey, Expert, NodeName, Question
from mosaic.pipelines.budgets import cut_record
from mosaic.pipelines.node import Node
from mosaic.pipelines.questions import Questions
from mosaic.planning.profiles import Profile, ProfileEntry
from mosaic.runtime.controller import Log
from mosaic.runtime.job import LARGE_BATCH, Job
from mosaic.runtime.planner import Planner, placed
from mosaic.runtime.profiling import fit_entry, in_waves_of
from mosaic.runtime.site import prompts_of
from mosaic.runtime.stages import OtherCalls, Pilot, Stage, Stages, undisturbed
from mosaic.runtime.sweep import measured_calls, of_questions, wave_shards
from mosaic.runtime.unpriced import SHARES, even_plan, sessions_in_waves, waves_in_thirds

GIVEN_BY = "profile.aggregator_path"
"""How to avoid measuring upper nodes; without a barrier, or for a quorum, they are rehearsed anyway."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """What calibration questions show about a pipeline's upper nodes."""

    questions: Mapping[str, Question] = field(default_factory=dict)
    records: Mapping[CallKey, CallRecord] = field(default_factory=dict)
    calls: Mapping[NodeName, tuple[Call, ...]] = field(default_factory=dict)
    """Typical calls of each upper node."""
    needed_frac: Mapping[NodeName, float] = field(default_factory=dict)
    """Share of the questions that reach it."""

    def prompt_tokens(self) -> dict[NodeName, int]:
        """Prompt tokens of a typical call of each node."""
        return {
            node: round(sum(call.prompt_tokens for call in calls) / len(calls))
            for node, calls in self.calls.items()
            if calls
        }


def rehearse(job: Job, planner: Planner, pilot: Pilot) -> Stages[Rehearsal]:
    """Send calibration questions through all layers but the last, and collect the calls of each upper node.

    A node without calls there has no typical call; then all questions are used instead. If a pilot has answered
    questions of the batch, these are taken, and their known calls are not sent again.
    """
    graph, site = job.graph.deciding(), job.site
    whole = pilot.whole_questions(job) if pilot.records else ()
    if whole:
        rehearsed = of_questions(job.workload, whole)
    else:
        rehearsed = site.calibration([entry.expert for entry in planner.profiles[graph.first_nodes[0]].entries])
        most = measured_calls(len(job.workload.questions), job.max_swept_frac) or LARGE_BATCH
        number = len(rehearsed.questions)
        if most < number:  # evenly spread: a file may be sorted by subject
            rehearsed = of_questions(rehearsed, [rehearsed.questions[number * turn // most] for turn in range(most)])
    known = {question.id: question for question in rehearsed.questions}
    questions = Questions(rehearsed, graph)
    calls: Sequence[Call] = questions.first_calls
    records: dict[CallKey, CallRecord] = {}
    typical: dict[NodeName, tuple[Call, ...]] = {}
    needed_frac: dict[NodeName, float] = {}
    for number, layer in enumerate(graph.layers[1:]):
        ended = [pilot.records[call.key] for call in calls if call.key in pilot.records]
        calls = [call for call in calls if call.key not in pilot.records]
        drawn = site.draw(calls, records)
        if drawn is None and calls:
            spread = partial(even_plan, calls, graph.experts, site.places, planner.cluster.num_workers)
            plan = spread() if number else planner.plan(calls).plan
            prompts = prompts_of(graph, known)
            other = OtherCalls(
                name=f"calibration_{number}", why="to see what the gate leaves", given_by=GIVEN_BY, questions=known,
                prompts=prompts, earlier=records, for_answers=True,
            )  # fmt: skip
            drawn = tuple((yield Stage("calibrating", plan.sessions, tuple(calls), other)).records.values())
        for record in (*ended, *(drawn or ())):
            records[record.key] = cut_record(record, graph.budgets)
            questions.record(records[record.key])
        for question in known if number == 0 else ():
            if (late := questions.late_call(question)) is not None:
                records[late] = replace(records[late], status=CallStatus.CUT, answer=None)
                questions.record(records[late])
        for node in layer:
            mine = questions.calls_of(node.name)
            needed_frac[node.name] = len({call.key.question for call in mine}) / len(known)
            typical[node.name] = mine or questions.calls_of(node.name, skipping=False)
        calls = [call for node in layer for call in typical[node.name]]
    return Rehearsal(questions=known, records=records, calls=typical, needed_frac=needed_frac)


def price_by_rehearsal(
    job: Job, node: Node, planner: Planner, rehearsal: Rehearsal, source: str, log: Log
) -> Stages[Profile]:
    """Measure a node's experts, at each degree at which they may be placed, on the calls of a rehearsal.

    Each measurement has at most a share of the calls that the batch is expected to have for the node.
    """
    num_expected = round(rehearsal.needed_frac[node.name] * len(job.workload.questions))
    most = measured_calls(num_expected, job.max_swept_frac)
    prompts = prompts_of(job.graph, rehearsal.questions)
    entries: list[ProfileEntry] = []
    for expert in dict.fromkeys(node.experts):
        calls = [call for call in rehearsal.calls[node.name] if call.expert == expert.name]
        for degree in planner.degrees(node.name, expert) if calls else ():  # every question may be too long for it
            other = OtherCalls(
                name=f"profile_{node.name}_{expert.name}_tp{degree}", why="to price it", given_by=GIVEN_BY,
                questions=rehearsal.questions, prompts=prompts, earlier=rehearsal.records,
            )  # fmt: skip
            shaped = placed(expert, degree)
            stage_of = partial(_wave_stage, job, node, shaped, calls, most, other)
            entries.append((yield from undisturbed(stage_of, partial(fit_waves, job, shaped), log)))
    return Profile(source=source, entries=tuple(entries))


def _wave_stage(
    job: Job, node: Node, expert: Expert, calls: Sequence[Call], max_calls: int | None, other: OtherCalls
) -> Stage:
    """Make the stage in which an expert serves calls in waves, with as many replicas as cap and cluster allow."""
    places = job.site.places(expert)
    shards = list(wave_shards(calls, len(places), max_calls))
    calls = tuple(call for shard in shards for call in shard)
    return Stage(f"profiling {node.name}", sessions_in_waves(shards, places), calls, other)


def price_by_pilot_questions(
    job: Job, node: Node, planner: Planner, pilot: Pilot, source: str
) -> Stages[tuple[Pilot, Profile | str]]:
    """Price an upper node by the calls that the pilot's questions need of it, with other questions at each degree.

    If a quote has sent them in waves at the node's only degree, they are priced as they ran.

    Returns
    -------
    tuple[Pilot, Profile | str]
        The answers, and the prices or the reason why there are none.
    """
    degrees = planner.degrees(node.name, node.experts[0])
    if pilot.merging and degrees == (len(pilot.merging[0].workers),):
        with suppress(DisturbedSweepError):
            entry = fit_waves(job, placed(node.experts[0], degrees[0]), pilot, pilot.merging)
            return pilot, Profile(source=source, entries=(entry,))
    needed = questions_of(job, pilot).calls_of(node.name)
    shares: list[tuple[Expert, Sequence[Call]]] = []
    for expert in dict.fromkeys(node.experts):
        mine = [call for call in needed if call.expert == expert.name and call.key not in pilot.records]
        degrees = planner.degrees(node.name, expert)
        least = SHARES * len(degrees)
        if len(mine) < least:
            return pilot, f"of the pilot's questions {len(mine)} need {expert.name}, and its price takes {least}"
        shares += [(placed(expert, degree), mine[turn :: len(degrees)]) for turn, degree in enumerate(degrees)]
    entries = []
    for expert, calls in shares:
        sessions = waves_in_thirds(calls, job.site.places(expert))
        pilot = yield Stage(f"pilot of {node.name}", sessions, tuple(calls))
        try:
            entries.append(fit_waves(job, expert, pilot))
        except DisturbedSweepError as error:
            return pilot, str(error)
    return pilot, Profile(source=source, entries=tuple(entries))


def fit_waves(job: Job, expert: Expert, pilot: Pilot, sessions: Sequence[Session] = ()) -> ProfileEntry:
    """Fit the costs of an expert to the waves of its replicas; of the last stage, unless sessions are given.

    Raises
    ------
    DisturbedSweepError
        If failed calls or interrupted sessions leave too few others.
    """
    assert pilot.stage is not None, "it has run"
    sessions = sessions or pilot.stage.sessions
    keys = {key for session in sessions for key in session.shard}
    numbers = {session.id for session in sessions}
    if not keys <= pilot.records.keys():
        raise DisturbedSweepError("pilot: calls failed")
    calls = [record for key, record in pilot.records.items() if key in keys]
    ran = [session for session in pilot.sessions if session.session in numbers]
    return fit_entry(expert, job.cluster, calls, ran, in_waves_of(sessions))


def questions_of(job: Job, pilot: Pilot) -> Questions:
    """Return the batch's questions; the records of those that a pilot answered completely are added."""
    whole = {question.id for question in pilot.whole_questions(job)}
    questions = Questions(job.workload, job.graph)
    for key, record in pilot.records.items():
        if key.question in whole:
            questions.record(record)
    return questions
