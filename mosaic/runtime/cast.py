"""Who steers a run: the pipeline, and the reactions that a job wants, in the order in which they hear events."""

from collections.abc import Callable, Mapping, Sequence

from mosaic.core.plan import Plan
from mosaic.runtime.budgets import budget_controllers
from mosaic.runtime.controller import Controller
from mosaic.runtime.job import Job
from mosaic.runtime.joining import Joining
from mosaic.runtime.keeping import Keeping
from mosaic.runtime.layers import Flow, Layers, Questions
from mosaic.runtime.moves import Moves
from mosaic.runtime.overlap import Overlap
from mosaic.runtime.pilot_stages import InTurn
from mosaic.runtime.planner import Planned
from mosaic.runtime.prefill_ahead import PrefillAhead
from mosaic.runtime.preparing import Begun
from mosaic.runtime.prospects import Measured, Prospects
from mosaic.runtime.quorum import Quorum
from mosaic.runtime.replanning import Replanning
from mosaic.runtime.revising import Revising
from mosaic.runtime.servers import Servers

NUM_TICKS, MIN_TICK_S = 40, 0.5
"""Moves and new plans are looked at so many times in a predicted expert stage, and no more often than this."""


UNSURE_BATCHES = 1.0
"""Real engines say once a second how far their calls are."""


def cast(
    job: Job,
    begun: Begun,
    questions: Questions,
    note_plan: Callable[[Planned, int], None],
    note_replan: Callable[[Plan, Mapping[int, str]], None],
    others: Sequence[Controller] = (),
) -> list[Controller]:
    """List the controllers of a run; ``others`` hear events behind the pipeline, and before calls are moved."""
    planner = begun.planner
    prospects = Prospects(Measured(planner.profiles, job.cluster, planner.experts, job.host_loads))
    keeps = job.has_overlap or job.has_moves or job.has_replan
    is_real = job.site.way != "simulated"
    moves = _moves(job, prospects)
    replanning = Replanning(lambda calls, lost: planner.plan(calls, lost).plan, note_replan)
    ahead = PrefillAhead(questions)
    return [
        *([prospects] if keeps or is_real else ()),
        _pipeline(job, begun, questions, prospects, note_plan, ahead),
        *([ahead] if job.graph.read_ahead is not None else ()),
        *([replanning] if is_real else ()),
        *budget_controllers(questions),
        *([Quorum(questions)] if job.has_quorum or job.graph.exit is not None else ()),
        *others,
        *([_revising(job, begun, prospects, note_replan)] if job.has_replan else ()),
        *([moves] if job.has_moves else [Joining(moves)] if is_real else ()),
        *([Keeping()] if keeps else ()),
    ]


def controllers_on_servers(
    job: Job, questions: Questions, plan: Plan, others: Sequence[Controller] = ()
) -> list[Controller]:
    """List the controllers of a run on servers: nothing can be moved or planned anew there."""
    cancels = job.has_quorum or job.graph.exit is not None
    quorum = [Quorum(questions)] if cancels else []
    return [Servers(questions, plan), *budget_controllers(questions), *quorum, *others]


def _revising(
    job: Job, begun: Begun, prospects: Prospects, note_replan: Callable[[Plan, Mapping[int, str]], None]
) -> Revising:
    unsure = 0.0 if job.site.way == "simulated" else UNSURE_BATCHES
    return Revising(begun.planner, prospects, note_replan, begun.pilot.num_sessions, unsure)


def _moves(job: Job, prospects: Prospects) -> Moves:
    awaited = {expert.name for node in job.graph.upper_nodes for expert in node.experts}
    return Moves(prospects, awaited if job.has_overlap else ())


def _pipeline(
    job: Job,
    begun: Begun,
    questions: Questions,
    prospects: Prospects,
    note_plan: Callable[[Planned, int], None],
    ahead: PrefillAhead,
) -> Controller:
    first, planner, rehearsal = begun.planned, begun.planner, begun.rehearsal
    if job.has_overlap:
        return Overlap(questions, planner, prospects, first.plan, note_plan, ahead.home)
    if job.has_barrier:
        pilot = InTurn(begun.pilot.stages)
        return Layers(
            questions, planner, job.plans[1:], note_plan, pilot, first, closes=not (job.has_moves or job.has_replan)
        )
    expected = job.graph.forecast(job.workload, rehearsal.needed_frac, rehearsal.prompt_tokens())
    return Flow(questions, planner, expected, note_plan, first, ahead.home, stays=job.has_forecast)


def tick_s_of(job: Job, first: Plan) -> float | None:
    """Give the seconds between ticks that a job's reactions want; None: none."""
    return max(MIN_TICK_S, first.predicted_makespan_s / NUM_TICKS) if job.has_moves or job.has_replan else None
