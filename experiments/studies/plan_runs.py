"""Static plans of the expert stage, run in worlds of one's own making."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil

from mosaic.config.job import simulated
from mosaic.core.plan import Plan
from mosaic.core.realization import question_uniforms
from mosaic.core.workload import ExpertName
from mosaic.planning import Flexible, Ilp, PaperCosts, RoundRobin, SampledGreedy, Scheduler
from mosaic.planning.profiles import Profile
from mosaic.runtime.job import Job
from mosaic.runtime.planner import CostFactory
from mosaic.runtime.run import measure
from mosaic.runtime.run import plan as make_plan
from mosaic.runtime.static_plan import execute
from sim.site import SimSite
from sim.world.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A scheduler with its prices."""

    name: str
    scheduler: Scheduler
    costs: type = PaperCosts
    knowing: Scheduler | None = None
    """The same policy where mean lengths are certain; None: it takes them for certain anyhow."""

    @property
    def with_perfect_lengths(self) -> "Policy":
        """The policy to measure regret against."""
        return self if self.knowing is None else replace(self, scheduler=self.knowing)


ROUND_ROBIN = Policy(name="round_robin", scheduler=RoundRobin())
PAPER = Policy(name="ilp", scheduler=Ilp())
PEER = Policy(name="sampled_greedy", scheduler=SampledGreedy())
CERTAIN = Policy(name="flexible, prices by iterations", scheduler=Flexible(prices="iterations", time_limit_s=600.0))
ROBUST = Policy(
    name="robust",
    scheduler=Flexible(
        name="robust",
        num_scenarios=28,
        length_error=2.0,
        quantile=0.8,
        prices="iterations",
        gap_frac=0.005,
        time_limit_s=600.0,
    ),
    knowing=CERTAIN.scheduler,
)
"""As conf/scheduler/robust.yaml has it, with a time limit that no busy machine reaches: the plan is the same."""


def expert_stage(*overrides: str) -> tuple[Job, SimSite]:
    """Compose a job of experts alone."""
    return simulated([*overrides, "aggregator=none"])


def profile_of(job: Job) -> Profile:
    """Measure the experts where the job's site says, or read what was measured before."""
    return measure(job)[job.graph.first_nodes[0]]


def planned(job: Job, site: SimSite, policy: Policy, profile: Profile) -> Plan:
    """Plan the expert stage by a profile."""
    costs: CostFactory = partial(policy.costs, options=site.settings)
    return make_plan(replace(job, scheduler=policy.scheduler, costs=costs, profile=profile)).plan


def makespan_s(job: Job, site: SimSite, plan: Plan, world: World) -> float:
    """Run a plan in a world, and tell when its last session ended."""
    result = execute(plan, job.graph.first_calls(job.workload), site.backend_in(world))
    return max(session.end_ts for session in result.sessions)


def wrong_world(world: World, error: float, draw: int) -> World:
    """Give a world with luck of its own, where each expert's mean is off by a factor between 1/error and error.

    Factors are independent and log-uniform; they follow from the draw, the expert and the error alone.
    """
    lengths = {name: entry.scaled(factor(name, error, draw)) for name, entry in world.lengths.items()}
    return replace(world, lengths=lengths, root_seed=draw)


def factor(name: ExpertName, error: float, draw: int) -> float:
    """Draw the factor on an expert's mean length."""
    (u,) = question_uniforms(draw, "true means", name, 1)
    return float(error ** (2 * u - 1))


def quantile(values: Sequence[float], share: float) -> float:
    """Take the smallest value that at least this share of them do not exceed."""
    return sorted(values)[max(0, ceil(share * len(values) - 1e-9) - 1)]
