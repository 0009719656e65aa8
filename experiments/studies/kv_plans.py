"""Plans that choose KV caches against the paper's, on the same questions with the same luck."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from experiments.config.job import simulated
from mosaic.core.plan import Plan
from mosaic.pipelines.final_answers import accuracy_frac
from mosaic.runtime.job import Job, Outcome
from mosaic.runtime.run import measure, run
from mosaic.runtime.run import plan as make_plan
from sim.site import SimSite

PRESET = ("+policy=kv_plans", "scheduler.time_limit_s=600")
"""With a time limit that no busy machine reaches: the plans are the same everywhere."""
FREE = ("scheduler.max_experts_per_worker=null", "scheduler.max_replicas=null")
ITERATIONS = "scheduler.prices=iterations"
PAPER = "the paper's ILP"
POLICIES = {
    PAPER: ("+policy=ilp",),
    "no loss accepted": (*PRESET, "scheduler.accepted_kv_loss_frac=0"),
    "0.1% accepted": (*PRESET, "scheduler.accepted_kv_loss_frac=0.001"),
    "0.25% accepted": (*PRESET, "scheduler.accepted_kv_loss_frac=0.0025"),
    "0.5% accepted": (*PRESET, "scheduler.accepted_kv_loss_frac=0.005"),
    "0.5% accepted, K and copies free": (*PRESET, "scheduler.accepted_kv_loss_frac=0.005", *FREE),
    "no loss accepted, prices by iterations": (*PRESET, "scheduler.accepted_kv_loss_frac=0", ITERATIONS),
    "0.25% accepted, prices by iterations": (*PRESET, "scheduler.accepted_kv_loss_frac=0.0025", ITERATIONS),
    "0.5% accepted, prices by iterations": (*PRESET, "scheduler.accepted_kv_loss_frac=0.005", ITERATIONS),
}
"""By name, how it is asked for. All keep the paper's K, caps and prices, unless said."""


class PlanRun(NamedTuple):
    """A run of a policy's plan with one seed."""

    policy: str
    seed: int
    expert_stage_s: float
    end_to_end_s: float
    skip_frac: float
    accuracy_frac: float
    num_preemptions: int


class ExpertRun(NamedTuple):
    """What an expert's sessions of such a run took."""

    policy: str
    seed: int
    expert: str
    gpu_s: float
    """Seconds of all its sessions, loads included."""
    finished_s: float
    """When its last call ended."""
    num_preemptions: int


class PlanShape(NamedTuple):
    """What a policy planned."""

    policy: str
    predicted_s: float
    calls: str
    """Of the experts that have a choice, by KV budget."""
    expected_loss_frac: float
    low_frac: float
    high_frac: float


class Prepared(NamedTuple):
    """A policy's job with what was measured for it, and its plan; no seed changes these."""

    job: Job
    plan: Plan


def prepare(policy: str, workload: str = "mmlu_pro") -> Prepared:
    """Measure and plan the batch for a policy."""
    job, _ = simulated([f"workload={workload}", *POLICIES[policy]])
    profiles = measure(job)
    (first,), (upper,) = job.graph.first_nodes, job.graph.upper_nodes
    job = replace(job, profile=profiles[first], upper_profile=profiles[upper.name])
    plan = make_plan(job).plan
    return Prepared(replace(job, plans=(plan,)), plan)


def shape_of_plan(policy: str, prepared: Prepared) -> PlanShape:
    """Sum up a plan's KV caches, and what they are believed to cost over all calls."""
    job, plan = prepared
    variants = {(e.name, one.budget_tokens): one for e in job.experts for one in e.kv_variants}
    served: Counter[tuple[str, int | None]] = Counter()
    for session in plan.sessions:
        served[session.expert, session.kv_budget_tokens] += len(session.shard)
    chosen = [(variants[name, budget], number) for (name, budget), number in served.items() if budget is not None]
    total = sum(served.values())
    reasoning = [expert.name for expert in job.experts if expert.family == "reasoning"]
    parts = [
        f"{name}: " + " + ".join(f"{served[name, budget]:,} {_shown(budget)}" for budget in _budgets(served, name))
        for name in reasoning
    ]
    return PlanShape(
        policy=policy,
        predicted_s=plan.predicted_makespan_s,
        calls="; ".join(parts),
        expected_loss_frac=sum(one.accuracy_cost_frac * number for one, number in chosen) / total,
        low_frac=sum(one.low_frac * number for one, number in chosen) / total,
        high_frac=sum(one.high_frac * number for one, number in chosen) / total,
    )


def _budgets(served: Iterable[tuple[str, int | None]], name: str) -> list[int | None]:
    return sorted({budget for expert, budget in served if expert == name}, key=lambda budget: -(budget or 1 << 30))


def _shown(budget: int | None) -> str:
    return "full" if budget is None else f"at {budget:,}"


def run_plans(
    policies: Mapping[str, Prepared], num_seeds: int, workload: str = "mmlu_pro"
) -> Iterator[tuple[PlanRun, list[ExpertRun]]]:
    """Run all plans in the preset's worlds, one a seed, the aggregator included."""
    _, preset = simulated([f"workload={workload}", *PRESET])
    for seed in range(num_seeds):
        world = replace(preset.world, root_seed=seed)  # one for all plans: what calls say is drawn once
        for policy, (job, _) in policies.items():
            assert isinstance(job.site, SimSite)
            outcome = run(replace(job, site=replace(job.site, world=world)))
            yield _plan_run(policy, seed, outcome), _expert_runs(policy, seed, outcome)


def _plan_run(policy: str, seed: int, outcome: Outcome) -> PlanRun:
    calls, first = outcome.result.calls, outcome.result.first_nodes
    accuracy, skipped = accuracy_frac(outcome.answers or ()), outcome.skip_frac
    assert accuracy is not None, "the world has answers"
    assert skipped is not None, "the pipeline has a gate"
    return PlanRun(
        policy=policy,
        seed=seed,
        expert_stage_s=max(call.finished_ts or 0.0 for call in calls if call.key.node in first),
        end_to_end_s=max(call.finished_ts or 0.0 for call in calls),
        skip_frac=skipped,
        accuracy_frac=accuracy,
        num_preemptions=sum(call.num_preemptions for call in calls if call.key.node in first),
    )


def _expert_runs(policy: str, seed: int, outcome: Outcome) -> list[ExpertRun]:
    result = outcome.result
    sessions = [session for session in result.sessions if session.node in result.first_nodes]
    calls = [call for call in result.calls if call.key.node in result.first_nodes]
    return [
        ExpertRun(
            policy=policy,
            seed=seed,
            expert=name,
            gpu_s=sum(one.end_ts - one.load_start_ts for one in sessions if one.expert == name),
            finished_s=max(call.finished_ts or 0.0 for call in calls if call.expert == name),
            num_preemptions=sum(call.num_preemptions for call in calls if call.expert == name),
        )
        for name in sorted({session.expert for session in sessions})
    ]
