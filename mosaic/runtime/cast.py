"""Who steers a run: the pipeline, and the reactions that a job wants, in the order in which they hear events."""

from collections.abc import Callable, Mapping, Sequence

from mosaic.core.plan import Plan
from mosaic.runtime.budgets import budget_controllers
from mosaic.runtime.controller import Controller
from mosaic.runtime.job import Job
from mosaic.runtime.keeping import Keeping
from mosaic.runtime.layers import Flow, Layers, Questions
from mosaic.runtime.moves import Moves
from mosaic.runtime.overlap import Overlap
from mosaic.runtime.pilot import InTurn
from mosaic.runtime.planner import Planned
from mosaic.runtime.preparing import Begun
from mosaic.runtime.prospects import Measured, Prospects
from mosaic.runtime.quorum import Quorum
from mosaic.runtime.replanning import Replanning

NUM_TICKS, MIN_TICK_S = 40, 0.5
"""Moves are looked at so many times in a predicted expert stage, and no more often than this."""


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
    prospects = Prospects(Measured(planner.profiles, job.cluster))
    keeps = job.has_overlap or job.has_moves
    awaited = {expert.name for node in job.graph.upper_nodes for expert in node.experts}
    replanning = Replanning(lambda calls, lost: planner.plan(calls, lost).plan, note_replan)
    return [
        *([prospects] if keeps else ()),
        _pipeline(job, begun, questions, prospects, note_plan),
        *([replanning] if job.site.way != "simulated" else ()),
        *budget_controllers(questions),
        *([Quorum(questions)] if job.has_quorum else ()),
        *others,
        *([Moves(prospects, awaited if job.has_overlap else ())] if job.has_moves else ()),
        *([Keeping()] if keeps else ()),
    ]


def _pipeline(
    job: Job,
    begun: Begun,
    questions: Questions,
    prospects: Prospects,
    note_plan: Callable[[Planned, int], None],
) -> Controller:
    first, planner, rehearsal = begun.planned, begun.planner, begun.rehearsal
    if job.has_overlap:
        return Overlap(questions, planner, prospects, first.plan, note_plan)
    if job.has_barrier:
        pilot = InTurn(begun.pilot.stages)
        return Layers(questions, planner, job.plans[1:], note_plan, pilot, first, closes=not job.has_moves)
    expected = job.graph.forecast(job.workload, rehearsal.needed_frac, rehearsal.prompt_tokens())
    return Flow(questions, planner, expected, note_plan, first)


def tick_s_of(job: Job, first: Plan) -> float | None:
    """Give the seconds between ticks that a job's reactions want; None: none."""
    return max(MIN_TICK_S, first.predicted_makespan_s / NUM_TICKS) if job.has_moves else None
