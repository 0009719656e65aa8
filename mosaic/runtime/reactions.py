"""Makes the controllers of a run: its pipeline and the job's reactions, in the order in which they receive events."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mosaic.core.plan import Plan
from mosaic.pipelines.questions import Questions
from mosaic.runtime.controller import Controller
from mosaic.runtime.forecaster import Forecaster
from mosaic.runtime.job import Job, Reaction
from mosaic.runtime.layers import Layers, OnPlan
from mosaic.runtime.moves import Moves
from mosaic.runtime.no_barrier import Keeping, Overlap, PlannedAhead
from mosaic.runtime.prefill_ahead import PrefillAhead
from mosaic.runtime.preparing import Begun
from mosaic.runtime.replanning import Replanning
from mosaic.runtime.revising import Revising
from mosaic.runtime.stopping import stopping_controllers

NUM_TICKS, MIN_TICK_S = 40, 0.5
"""Moves and new plans are considered so many times in a predicted expert stage, and no more often than this."""
UNSURE_BATCHES = 1.0
"""Real engines report the progress of their calls once per second."""
MOVING = {Reaction.MOVES, Reaction.REPLAN}
"""Reactions that move calls to other sessions than the plan's, which must stay open, and that need ticks."""


def make_controllers(
    job: Job,
    begun: Begun,
    questions: Questions,
    on_plan: OnPlan,
    on_replan: Callable[[Plan, Mapping[int, str]], None],
    others: Sequence[Controller] = (),
) -> list[Controller]:
    """Make the controllers of a run; ``others`` receive events after the pipeline, and before calls are moved."""
    wanted, planner = job.reactions, begun.planner
    is_real = job.site.kind != "simulated"
    keeps = bool(wanted & {Reaction.OVERLAP, *MOVING})
    forecaster = Forecaster(planner.profiles, job.cluster, planner.experts, job.host_loads)
    ahead = PrefillAhead(questions)
    made: list[Controller] = [forecaster] if keeps or is_real else []
    made.append(_pipeline(job, begun, questions, forecaster, on_plan, ahead))
    if job.graph.prefill_order is not None:
        made.append(ahead)
    if is_real:
        made.append(Replanning(lambda calls, lost: planner.plan(calls, lost).plan, on_replan))
    made += [*stopping_controllers(questions, is_cancelling=job.is_cancelling), *others]
    if Reaction.REPLAN in wanted:
        unsure = UNSURE_BATCHES if is_real else 0.0
        num_pilot_sessions = begun.pilot.num_sessions
        # NOTE: a pilot's ticks started before there was a plan, at the shortest interval.
        least_s = (tick_s_of(job, begun.planned.plan) or 0.0) if num_pilot_sessions else 0.0
        made.append(Revising(planner, forecaster, on_replan, num_pilot_sessions, unsure, least_s))
    if Reaction.MOVES in wanted or is_real:
        awaited = {expert.name for node in job.graph.upper_nodes for expert in node.experts}
        kept = awaited if Reaction.OVERLAP in wanted else ()
        made.append(Moves(forecaster, kept, waits_for_join=Reaction.MOVES not in wanted))
    return [*made, Keeping()] if keeps else made


def _pipeline(
    job: Job,
    begun: Begun,
    questions: Questions,
    forecaster: Forecaster,
    on_plan: OnPlan,
    ahead: PrefillAhead,
) -> Controller:
    wanted, first, planner = job.reactions, begun.planned, begun.planner
    if not wanted & {Reaction.OVERLAP, Reaction.NO_BARRIER}:
        return Layers(questions, planner, job.plans[1:], on_plan, first, closes=not wanted & MOVING)
    given: dict[str, Any] = {"questions": questions, "home": ahead.home, "on_plan": on_plan, "first": first}
    if Reaction.OVERLAP in wanted:
        return Overlap(planner=planner, forecaster=forecaster, **given)
    expected = job.graph.expected_calls(job.workload, begun.rehearsal.needed_frac, begun.rehearsal.prompt_tokens())
    return PlannedAhead(planner=planner, expected=expected, stays=Reaction.FORECAST in wanted, **given)


def tick_s_of(job: Job, first: Plan | None) -> float | None:
    """Return the seconds between ticks for a job's reactions; None: no ticks. Without a plan, the shortest."""
    if not job.reactions & MOVING:
        return None
    return MIN_TICK_S if first is None else max(MIN_TICK_S, first.predicted_makespan_s / NUM_TICKS)
