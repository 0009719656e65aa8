"""Pilots whose truth is known: what a quote predicted of a batch, and what the batch then took."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import nnls

from mosaic.config.compose import compose_config
from mosaic.config.job import job_from, simulated
from mosaic.core.cluster import Cluster, uniform_cluster
from mosaic.core.errors import InfeasibleError
from mosaic.core.plan import Plan
from mosaic.core.results import CallRecord, RunResult
from mosaic.core.workload import CallKey
from mosaic.planning.costs import AffineCosts
from mosaic.planning.session_model import Request
from mosaic.quote import Asked, ask
from mosaic.quote.draws import Draw, draw_worlds
from mosaic.quote.forecast import Factors, Simulator
from mosaic.quote.offers import plan_time, simulated_profile, total_s
from mosaic.quote.quote import planner_for, plans_for
from mosaic.runtime.job import Job
from mosaic.runtime.layers import Layers, Questions
from mosaic.runtime.loop import drive
from mosaic.runtime.measuring import prompts_of
from mosaic.runtime.pilot import profile_of
from mosaic.runtime.pilot_stages import InTurn
from mosaic.runtime.planner import Planner
from sim.cluster.session_times import SimulatedSessions
from sim.site import SimSite, draw_records

SIZES = (1, 2, 4, 8)
POOLS = {
    "mmlu_pro": "hybrid",
    "medmcqa": "hybrid",
    "gpqa": "hybrid",
    "mmlu_pro_instruct": "instruct",
    "mmlu_pro_reasoning": "reasoning",
}
"""Simulated workloads, and who answers them."""
MEASURED = "tiny_mcq"
"""The workload that real vLLM answers."""
TINY = (f"workload={MEASURED}", "pool=tiny", "cluster=local", "aggregator=none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A pilot, at a number of GPUs."""

    workload: str
    seed: int
    per_expert: int
    num_pilot_calls: int
    num_calls: int
    num_gpus: int
    plan: str
    """The best of those that the quote simulated."""
    central_s: float
    spread: float
    truth_s: float
    affine_s: float
    """Of the experts alone, by the affine profile of the pilot's sessions."""
    truth_experts_s: float


def simulated_rows(workload: str, seed: int, per_expert: int, sizes: Sequence[int] = SIZES) -> Iterator[Row]:
    """Ask a pilot in a simulated world, quote, and simulate the same plans in that world."""
    job, site = simulated([f"workload={workload}", f"pool={POOLS[workload]}", f"seed={seed}", "aggregator=auto"])
    asked = ask(job, per_expert, seed=seed)
    simulator, cluster = _simulator(job, site, max(sizes))
    central, others = draw_worlds(asked.batch, asked.sample, simulator.experts, seed=seed)
    profile = simulated_profile(asked.sample, central[0], asked.batch, simulator, cluster)
    truth = true_world(job, site, asked)
    for size in sizes:
        own = uniform_cluster(name="quote", num_workers=size, gpu=site.hardware.gpu)
        try:
            best = plans_for(job, asked.batch, profile, simulator, own, central)[0]
        except InfeasibleError:
            continue
        plan = best.planned.plan
        found = plan_time(plan, asked.batch, simulator, own, central, others)
        yield Row(
            workload=workload,
            seed=seed,
            per_expert=per_expert,
            num_pilot_calls=len(job.graph.first_calls(job.workload)) - len(asked.batch.calls),
            num_calls=len(job.graph.first_calls(job.workload)),
            num_gpus=size,
            plan=best.name,
            central_s=found.central_s,
            spread=found.spread,
            truth_s=total_s(plan, asked.batch, simulator, own, truth),
            affine_s=affine_s(job, asked, plan, simulator, own),
            truth_experts_s=simulator.plan_s(plan, truth.requests, own),
        )


def _simulator(job: Job, site: SimSite, max_gpus: int, factors: Factors | None = None) -> tuple[Simulator, Cluster]:
    experts = {expert.name: expert for expert in (*job.graph.experts, *job.experts)}
    degrees = [expert.tp_degree for expert in experts.values()]
    cluster = uniform_cluster(name="quote", num_workers=max(4, max_gpus, *degrees), gpu=site.hardware.gpu)
    sessions = SimulatedSessions({site.hardware.gpu.name: site.hardware}, cluster, site.settings)
    return Simulator(experts=experts, sessions=sessions, loads=sessions, factors=factors or Factors()), cluster


def true_world(job: Job, site: SimSite, asked: Asked) -> Draw:
    """Tell what the calls that are left will really write, and which the aggregator will have to read."""
    records: dict[CallKey, CallRecord] = dict(asked.records)
    left = draw_records(site.world, asked.batch.calls, site.experts, {})
    records |= {record.key: record for record in left}
    questions = Questions(job.workload, job.graph)
    for record in records.values():
        questions.note(record)
    upper = [call for node in job.graph.upper_nodes for call in questions.calls_of(node.name)]
    merged = draw_records(site.world, [call for call in upper if call.key not in asked.records], site.experts, records)
    return Draw(
        {record.key: Request(record.prompt_tokens, record.output_tokens) for record in left},
        tuple(Request(record.prompt_tokens, record.output_tokens) for record in merged),
    )


def affine_s(job: Job, asked: Asked, plan: Plan, simulator: Simulator, cluster: Cluster) -> float:
    """Price a plan by the affine profile of the pilot's own sessions; an expert of one size is priced by its mean."""
    sizes: defaultdict[str, set[int]] = defaultdict(set)
    for done in asked.result.sessions:
        if done.num_calls and done.node in job.graph.first_nodes:
            sizes[done.expert].add(done.num_calls)
    priced = [expert for expert in job.experts if len(sizes[expert.name]) > 1]
    counts = {name: sum(call.expert == name for call in asked.batch.calls) for name in simulator.experts}
    costs = AffineCosts(profile=profile_of(job, priced, asked.pilot, "pilot"), num_calls_by_expert=counts)
    free_s = [0.0] * plan.num_workers
    for session in plan.sessions:
        expert, workers = simulator.experts[session.expert], [cluster.workers[w] for w in session.workers]
        start_s = max(free_s[worker] for worker in session.workers)
        terms = costs.linear_terms(expert, workers)
        load_s = simulator.loads.load_s(expert, len(workers)) * simulator.factors.load
        for worker in session.workers:
            free_s[worker] = start_s + load_s + terms.fixed_s + terms.per_call_s * len(session.shard)
    return max(free_s)


def measured_row(seed: int, per_expert: int, folder: Path) -> Row:
    """Ask a pilot of the tiny pool on real vLLM, quote two workers, and run the quote's plan there.

    Everything is processor time: what runs beside on the machine would count otherwise.
    """
    overrides = [*TINY, "backend=vllm", f"seed={seed}"]
    job = job_from(compose_config(overrides), folder / "journal").job
    site = simulated([*TINY, f"seed={seed}"])[1]
    with job.site.open():
        asked = ask(job, per_expert, seed=seed)
        plain, _ = _simulator(job, site, job.cluster.num_workers)
        factors = processor_factors(asked, plain, job.cluster)
        simulator, cluster = _simulator(job, site, job.cluster.num_workers, factors)
        central, others = draw_worlds(asked.batch, asked.sample, simulator.experts, seed=seed)
        profile = simulated_profile(asked.sample, central[0], asked.batch, simulator, cluster)
        best = plans_for(job, asked.batch, profile, simulator, job.cluster, central)[0]
        plan = best.planned.plan
        found = plan_time(plan, asked.batch, simulator, job.cluster, central, others)
        result = _run(job, asked, plan, planner_for(job, profile, job.cluster))
    truth_s = processor_makespan_s(result)
    return Row(
        workload=MEASURED,
        seed=seed,
        per_expert=per_expert,
        num_pilot_calls=len(asked.records),
        num_calls=len(job.workload.calls),
        num_gpus=job.cluster.num_workers,
        plan=best.name,
        central_s=found.central_s,
        spread=found.spread,
        truth_s=truth_s,
        affine_s=affine_s(job, asked, plan, simulator, job.cluster),
        truth_experts_s=truth_s,
    )


def _run(job: Job, asked: Asked, plan: Plan, planner: Planner) -> RunResult:
    known = {question.id: question for question in job.workload.questions}
    backend = job.site.backend(known, prompts_of(job.graph, known), after=asked.pilot.names)
    layers = Layers(Questions(job.workload, job.graph), planner, (plan,), pilot=InTurn(asked.pilot.stages))
    result = drive(backend, [layers], num_workers=job.cluster.num_workers, log=job.site.command_log())
    later = [session for session in result.sessions if session.session >= asked.pilot.num_sessions]
    return RunResult(calls=result.calls, sessions=tuple(later), num_workers=result.num_workers)


def processor_makespan_s(result: RunResult) -> float:
    """Give the processor time of the worker that needed most."""
    busy_s = [0.0] * result.num_workers
    for session in result.sessions:
        for worker in session.workers:
            busy_s[worker] += session.cpu_s or 0.0
    return max(busy_s)


def processor_factors(asked: Asked, simulator: Simulator, cluster: Cluster) -> Factors:
    """Fit by how much the pilot's loads and its serving took more processor time than simulated seconds.

    A session's processor time is known as a whole: its two parts are told apart by least squares over sessions.
    """
    requests: defaultdict[int, list[Request]] = defaultdict(list)
    for record in asked.result.calls:
        requests[record.session].append(Request(record.prompt_tokens, record.output_tokens))
    predicted_s, real_s = [], []
    for session in asked.result.sessions:
        if session.num_interruptions or session.cpu_s is None:
            continue
        expert, degree = simulator.experts[session.expert], len(session.workers)
        load_s = simulator.loads.load_s(expert, degree) if session.load_s > 0 else 0.0
        predicted_s.append((load_s, simulator.serve_s(expert, requests[session.session], cluster, degree)))
        real_s.append(session.cpu_s)
    (load, serve), _ = nnls(np.array(predicted_s), np.array(real_s))
    return Factors(load=float(load), serve=float(serve))
