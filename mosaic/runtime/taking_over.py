"""Takes over what a quote has asked of a batch: its answers are the batch's, and its sessions price the rest.

A quote keeps the plans of its pilot's stages. Run again over the same journal, what was answered is told and not
asked; what the quote did not come to is asked now.
"""

from collections.abc import Sequence
from dataclasses import replace

from mosaic.core.errors import DisturbedSweepError
from mosaic.core.plan import Expected, Session
from mosaic.core.results import RunResult
from mosaic.core.workload import Call, CallKey
from mosaic.pipelines.node import Node
from mosaic.planning.profiles import Profile
from mosaic.runtime.job import Job
from mosaic.runtime.layers import Questions
from mosaic.runtime.measuring import Show, prompts_of
from mosaic.runtime.pilot import why_not_kept
from mosaic.runtime.pilot_stages import Pilot, Stage, run_stage, with_stage
from mosaic.runtime.planner import placed
from mosaic.runtime.profiling import fit


def stage_name(number: int) -> str:
    """Name a stage of a quote's pilot, and its journal."""
    return f"quote_{number}"


def why_not_taken(job: Job, first_calls: Sequence[Call]) -> str | None:
    """Say why a quote's answers cannot be taken over; None: they can."""
    reason = why_not_kept(job)
    if reason is not None:
        return reason
    sessions = [session for plan in job.asked for session in plan.sessions]
    num_workers = 1 + max(worker for session in sessions for worker in session.workers)
    if num_workers > job.cluster.num_workers:
        return f"it was asked on {num_workers} workers, and the batch has {job.cluster.num_workers}"
    known = {call.key: call.expert for call in first_calls}
    for session in sessions:
        for key in session.shard:
            if key.node in job.graph.first_nodes and known.get(key) != session.expert:
                return f"it asked {session.expert} for {key}, and the batch does not"
    return None


def take_over(job: Job, first_calls: Sequence[Call], show: Show) -> Pilot:
    """Go through the stages of a quote's pilot again.

    A merge that is not needed any more, as an answer below it has changed, is left out.
    """
    pilot = Pilot()
    prompts = prompts_of(job.graph, {question.id: question for question in job.workload.questions})
    calls = {call.key: call for call in first_calls}
    for number, plan in enumerate(job.asked):
        if any(key not in calls for session in plan.sessions for key in session.shard):
            calls |= _merges(job, first_calls, pilot)
        sessions = tuple(replace(one, shard=tuple(key for key in one.shard if key in calls)) for one in plan.sessions)
        mine = tuple(calls[key] for session in sessions for key in session.shard)
        stage = Stage(name=stage_name(number), plan=replace(plan, sessions=sessions), calls=mine)
        with show("quote", Expected()) as shown:
            result, stage = run_stage(job, prompts, pilot, stage, shown)
        pilot = with_stage(pilot, stage, result)
    return pilot


def node_profile(job: Job, node: Node, degrees: Sequence[int], pilot: Pilot, source: str) -> Profile | None:
    """Price the aggregator by the merges that a quote asked of it; None: too few, or at other degrees than these."""
    first_session = 0
    for stage in pilot.stages:
        served = [session for session in stage.plan.sessions if session.shard]
        if served and all(session.node == node.name for session in served):
            waves: dict[tuple[int, ...], list[Session]] = {}
            for session in served:
                waves.setdefault(session.after, []).append(session)
            return _entry_of(job, node, degrees, pilot, list(waves.values()), first_session, source)
        first_session += len(stage.plan.sessions)
    return None


def _entry_of(
    job: Job,
    node: Node,
    degrees: Sequence[int],
    pilot: Pilot,
    waves: Sequence[Sequence[Session]],
    first_session: int,
    source: str,
) -> Profile | None:
    number = {session.session: session for session in pilot.sessions}
    ids = [session.id for wave in waves for session in wave]
    degree = len(waves[0][0].workers)
    sizes = {max(len(session.shard) for session in wave) for wave in waves}
    if len(sizes) < 2 or tuple(degrees) != (degree,) or any(first_session + one not in number for one in ids):
        return None
    result = RunResult(
        calls=tuple(pilot.records[key] for wave in waves for session in wave for key in session.shard),
        sessions=tuple(replace(number[first_session + one], session=one) for one in ids),
        num_workers=job.cluster.num_workers,
    )
    try:
        return fit([placed(node.experts[0], degree)], job.cluster, result, source, waves)
    except DisturbedSweepError:
        return None


def _merges(job: Job, first_calls: Sequence[Call], pilot: Pilot) -> dict[CallKey, Call]:
    questions = Questions(pilot.whole_questions(job.workload, first_calls), job.graph)
    for call in questions.first_calls:
        questions.note(pilot.records[call.key])
    return {call.key: call for node in job.graph.upper_nodes for call in questions.calls_of(node.name)}
