"""Measures on the batch's own calls: runs its pilot, layer by layer."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import count

from mosaic.core.errors import DisturbedSweepError
from mosaic.core.plan import Expected, unpriced_plan
from mosaic.core.results import CallStatus, RunResult
from mosaic.core.workload import Call, Expert, Workload
from mosaic.pipelines.node import Node
from mosaic.planning.profiles import Profile, ProfileEntry
from mosaic.runtime.job import Job
from mosaic.runtime.layers import Questions
from mosaic.runtime.measuring import Show, Tell, prompts_of
from mosaic.runtime.pilot import choose_calls, first_stage, pilot_announcement, profile_of
from mosaic.runtime.pilot_stages import Pilot, Stage, run_stage, with_stage
from mosaic.runtime.planner import Planner, placed
from mosaic.runtime.profiling import fit_entry
from mosaic.runtime.site import Prompts
from mosaic.runtime.unpriced import SHARES, waves_in_thirds

MAX_TRIES = 2
"""Where an expert's sessions were disturbed, more calls of the batch are asked; stages that a start begins in all."""


def pilot_first_layer(
    job: Job,
    first_calls: Sequence[Call],
    experts: Sequence[Expert],
    source: str,
    show: Show,
    tell: Tell,
    pilot: Pilot,
) -> tuple[Pilot, Profile | None]:
    """Ask some of the batch's calls, and price the experts by them.

    The profile is None where sessions were disturbed too often: what was answered is kept all the same. ``pilot`` is
    what was asked before.

    Raises
    ------
    BackendError
        If calls fail and none finish.
    """
    profile: Profile | None = None
    num_tries = 0
    for number in count():
        name = f"pilot_{number}"
        num_tries += not job.site.has_begun(name)
        calls = choose_calls(job, first_calls, pilot.records)
        stage = first_stage(job, calls, experts, name)
        tell(pilot_announcement("pilot", Counter(call.expert for call in calls), len(first_calls)))
        with show("pilot", Expected()) as shown:
            result, stage = run_stage(job, _prompts(job), pilot, stage, shown)
        pilot = with_stage(pilot, stage, result)
        try:
            profile = profile_of(job, experts, pilot, source)
            if not job.site.has_begun(f"pilot_{number + 1}"):  # what it asked is not asked twice
                break
        except DisturbedSweepError as error:
            profile = None
            is_over = num_tries >= MAX_TRIES
            tell(f"{error}; {'it is given up' if is_over else 'more calls of the batch are asked'}")
            if is_over:
                break
        if len(pilot.records) + len(calls) >= len(first_calls):
            break
    return pilot, profile


def pilot_node(
    job: Job, node: Node, planner: Planner, pilot: Pilot, questions: Questions, source: str, show: Show, tell: Tell
) -> tuple[Pilot, Profile | str]:
    """Price an upper node by the calls that the pilot's own questions need of it, at each degree by others of them.

    What they need less than a price takes is not asked here; a text then says so.

    Raises
    ------
    BackendError
        If calls fail and none finish.
    """
    needed = questions.calls_of(node.name)
    places = {
        (expert.name, degree): job.site.places(placed(expert, degree))
        for expert in dict.fromkeys(node.experts)
        for degree in planner.degrees(node.name, expert)
    }
    entries: list[ProfileEntry] = []
    shares: list[tuple[Expert, list[Call]]] = []
    for expert in dict.fromkeys(node.experts):
        mine = [call for call in needed if call.expert == expert.name]
        degrees = planner.degrees(node.name, expert)
        least = SHARES * len(degrees)
        if len(mine) < least:
            return pilot, f"of the pilot's questions {len(mine)} need {expert.name}, and its price takes {least}"
        shares += [(placed(expert, degree), mine[turn :: len(degrees)]) for turn, degree in enumerate(degrees)]
    for expert, calls in shares:
        waves = waves_in_thirds(calls, places[expert.name, expert.tp_degree])
        sessions = [session for wave in waves for session in wave]
        name = f"pilot_{node.name}_{expert.name}_tp{expert.tp_degree}"
        plan = unpriced_plan(sessions, num_workers=job.cluster.num_workers)
        stage = Stage(name=name, plan=plan, calls=tuple(calls))
        tell(pilot_announcement(f"pilot of {node.name}", Counter(call.expert for call in calls), len(needed)))
        first = pilot.num_sessions
        with show(f"pilot of {node.name}", Expected()) as shown:
            result, stage = run_stage(job, _prompts(job), pilot, stage, shown)
        pilot = with_stage(pilot, stage, result)
        for call in calls:
            if call.key in pilot.records:
                questions.note(pilot.records[call.key])
        try:
            entries.append(fit_entry(expert, job.cluster, _own(result, first, calls), waves))
        except DisturbedSweepError as error:
            return pilot, str(error)
    return pilot, Profile(source=source, entries=tuple(entries))


def _own(result: RunResult, first_session: int, calls: Sequence[Call]) -> RunResult:
    """Give what became of a stage: its calls, and its sessions from 0 on."""
    keys = {call.key for call in calls}
    records = tuple(record for record in result.calls if record.key in keys)
    if any(record.status is not CallStatus.FINISHED for record in records):
        raise DisturbedSweepError("pilot: calls failed")
    sessions = [record for record in result.sessions if record.session >= first_session]
    own = tuple(replace(record, session=record.session - first_session) for record in sessions)
    return replace(result, calls=records, sessions=own)


def questions_of(job: Job, pilot: Pilot, first_calls: Sequence[Call]) -> tuple[Workload, Questions]:
    """Give the questions that the pilot answered whole, on their way through the pipeline."""
    whole = pilot.whole_questions(job.workload, first_calls)
    kept = {question.id for question in whole.questions}
    questions = Questions(whole, job.graph)
    for key, record in pilot.records.items():
        if key.question in kept:
            questions.note(record)
    return whole, questions


def _prompts(job: Job) -> Prompts:
    return prompts_of(job.graph, {question.id: question for question in job.workload.questions})
