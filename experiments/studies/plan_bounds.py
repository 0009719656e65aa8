"""True lower bounds beside what policies reach, on the same luck."""

from dataclasses import replace

from experiments.studies.paper_points import BENCHMARKS, TITLES
from experiments.studies.plan_runs import CERTAIN, PAPER, PEER, ROUND_ROBIN, expert_stage, planned, profile_of
from experiments.studies.rows import Table
from mosaic.comparison.estimate import estimate
from mosaic.config.job import simulated
from mosaic.runtime.run import run
from mosaic.runtime.static_plan import execute
from sim.cluster.expert_on_gpu import ExpertsOnGpus
from sim.cluster.tight_bound import run_bounds
from sim.hardware.iteration_time import iteration_time

NUM_CHAINED_SEEDS = 1
"""Of runs of both layers."""
POLICIES = (ROUND_ROBIN, PAPER, PEER, CERTAIN)


def bounds_table(num_seeds: int) -> Table:
    """Run every policy's one plan in the same worlds: means, and the paired ratio to the paper's program."""
    rows = []
    for benchmark in BENCHMARKS:
        job, site = expert_stage(f"workload={benchmark}")
        profile = profile_of(job)
        hardware = {site.hardware.gpu.name: site.hardware}
        models = ExpertsOnGpus(job.experts, hardware, job.cluster, site.settings, iteration_time)
        plans = {policy.name: planned(job, site, policy, profile) for policy in POLICIES}
        times: dict[str, list[float]] = {"bound: tokens": [], "bound: tokens, steps and memory": []}
        for seed in range(num_seeds):
            world = replace(site.world, root_seed=seed)
            for name, plan in plans.items():
                result = execute(plan, job.graph.first_calls(job.workload), site.backend_in(world))
                times.setdefault(name, []).append(max(session.end_ts for session in result.sessions))
            found = run_bounds(result, models, job.cluster.num_workers)
            times["bound: tokens"].append(found.plain_s)
            times["bound: tokens, steps and memory"].append(found.expert_s)
        for name, seconds in times.items():
            ratio = estimate([mine / other for mine, other in zip(seconds, times[PAPER.name], strict=True)])
            interval = "" if ratio.low is None or ratio.high is None else f"{ratio.low:.3f} to {ratio.high:.3f}"
            mean_s = sum(seconds) / len(seconds)
            rows.append((TITLES[benchmark], name, f"{mean_s:.1f}", f"{ratio.mean:.3f}", interval))
    return [("benchmark", "plan", "expert stage s", "against ilp", "95% interval"), *rows]


def chains_table() -> Table:
    """Set runs of both layers, with the barrier and without, beside the bound of chains and work."""
    rows = []
    for benchmark in BENCHMARKS:
        for barrier in ("true", "false"):
            ends: list[float] = []
            bounds: list[float] = []
            for seed in range(NUM_CHAINED_SEEDS):
                job, site = simulated([f"workload={benchmark}", f"seed={seed}", f"pipeline.barrier={barrier}"])
                outcome = run(job)
                (aggregator,) = {expert for node in job.graph.upper_nodes for expert in node.experts}
                models = ExpertsOnGpus(
                    job.experts, {site.hardware.gpu.name: site.hardware}, job.cluster, site.settings, iteration_time
                )
                widest = max(len(s.workers) for s in outcome.result.sessions if s.node not in job.graph.first_nodes)
                found = run_bounds(
                    outcome.result, models, job.cluster.num_workers, replace(aggregator, tp_degree=widest)
                )
                ends.append(max(session.end_ts for session in outcome.result.sessions))
                bounds.append(found.end_to_end_s or 0.0)
            mean_s, bound_s = (sum(values) / len(values) for values in (ends, bounds))
            rows.append((TITLES[benchmark], barrier, f"{mean_s:.1f}", f"{bound_s:.1f}", f"{mean_s / bound_s:.3f}"))
    return [("benchmark", "barrier", "end to end s", "bound s", "ratio"), *rows]
