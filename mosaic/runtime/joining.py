"""Plans the first layer for a run in which aggregations join its sessions."""

from dataclasses import replace

from mosaic.core.workload import ExpertName
from mosaic.planning.expected_calls import plan_expected
from mosaic.planning.joined_calls import JoinedCalls
from mosaic.runtime.job import Job
from mosaic.runtime.preparing import Begun


def plan_joined(job: Job, begun: Begun) -> Begun:
    """Plan the first layer anew, now that upper nodes are priced; a saved plan stays."""
    if job.plans:
        return begun
    more = more_frac_by_expert(job, begun)
    if not any(more.values()):
        return begun
    planned = begun.planned
    problem = replace(planned.problem, costs=JoinedCalls(planned.problem.costs, more))
    if begun.settled_frac is None:
        plan = planned.scheduler.plan(problem)
    else:
        plan = plan_expected(planned.scheduler, problem, begun.settled_frac)
    named = ", ".join(f"{name} {frac:.0%}" for name, frac in more.items() if frac)
    note = f"overlap: priced with the aggregations that are expected to join ({named} more work)"
    plan = replace(plan, notes=(*plan.notes, note))
    return replace(begun, planned=begun.planner.plan(problem.calls, saved=plan))


def more_frac_by_expert(job: Job, begun: Begun) -> dict[ExpertName, float]:
    """Give the tokens that experts of the first layer are to write for upper nodes, as a share of their own."""
    profiles, problem = begun.planner.profiles, begun.planned.problem
    own = {name: len(calls) * problem.lengths[name].mean for name, calls in problem.calls_by_expert().items()}
    more = dict.fromkeys(own, 0.0)
    for node in job.graph.upper_nodes:
        num_questions = begun.rehearsal.needed_frac.get(node.name, 0.0) * len(job.workload.questions)
        for expert in node.experts:
            if expert.name in own:
                more[expert.name] += num_questions * profiles[node.name].lengths(expert.name).mean / own[expert.name]
    return more
