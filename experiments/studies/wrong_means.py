"""What plans are worth when every expert's true mean length is off by an independent factor."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

from experiments.studies.paper_points import BENCHMARKS, TITLES
from experiments.studies.plan_runs import (
    CERTAIN,
    PAPER,
    PEER,
    ROBUST,
    expert_stage,
    makespan_s,
    planned,
    profile_of,
    quantile,
    wrong_world,
)
from experiments.studies.rows import Table
from mosaic.runtime.job import Job
from sim.site import SimSite
from sim.world.world import World

POLICIES = (PAPER, PEER, CERTAIN, ROBUST)
REGRETTED = (PAPER, ROBUST)
"""Policies that are planned again for each of the first draws, with its means known."""
NUM_REGRETTED_DRAWS = 10
FIRST_DRAW = 1000
"""Draws 0 to 19 were looked at when the quantile was chosen."""
NUM_RESAMPLES = 2000
TAIL = 0.95
HEAD = (
    "benchmark", "policy", "mean s", "p95 s", "mean / ilp", "p95 / ilp", "95% interval", "mean regret", "p95 regret",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Draw:
    """A policy's expert stage in one world of wrong means."""

    benchmark: str
    policy: str
    draw: int
    makespan_s: float
    perfect_lengths_s: float | None
    """The policy's, had it been planned with the world's means; None: not looked at."""


def run_draws(num_draws: int, error: float, benchmarks: Sequence[str] = BENCHMARKS) -> Iterator[Draw]:
    """Run every policy's one plan in each of the worlds, and plans that know a world's means in it."""
    for benchmark in benchmarks:
        job, site = expert_stage(f"workload={benchmark}")
        profile = profile_of(job)
        plans = {policy.name: planned(job, site, policy, profile) for policy in POLICIES}
        for draw in range(FIRST_DRAW, FIRST_DRAW + num_draws):
            world = wrong_world(site.world, error, draw)
            known_s = _with_perfect_lengths(job, site, world) if draw < FIRST_DRAW + NUM_REGRETTED_DRAWS else {}
            for policy in POLICIES:
                seconds = makespan_s(job, site, plans[policy.name], world)
                yield Draw(benchmark, policy.name, draw, seconds, known_s.get(policy.name))


def _with_perfect_lengths(job: Job, site: SimSite, world: World) -> dict[str, float]:
    """Plan again by a profile that was measured with the world's own means and other luck."""
    calibration = replace(site.calibration_world, lengths=world.lengths)
    right = replace(site, world=world, calibration_world=calibration)
    profile = profile_of(replace(job, site=right, store=None))
    plans = {policy.name: planned(job, right, policy.with_perfect_lengths, profile) for policy in REGRETTED}
    return {name: makespan_s(job, right, plan, world) for name, plan in plans.items()}


def draws_table(draws: Sequence[Draw]) -> Table:
    """List all draws."""
    head = ("benchmark", "policy", "draw", "makespan_s", "perfect_lengths_s")
    rows = [
        (d.benchmark, d.policy, str(d.draw), f"{d.makespan_s:.2f}", _show(d.perfect_lengths_s, ".2f")) for d in draws
    ]
    return [head, *rows]


def wrong_means_table(draws: Sequence[Draw]) -> Table:
    """Summarise: mean and 95th percentile, both against the paper's program, with 95% bootstrap intervals."""
    rows: list[tuple[str, ...]] = []
    for benchmark in dict.fromkeys(draw.benchmark for draw in draws):
        mine = [draw for draw in draws if draw.benchmark == benchmark]
        base = [draw.makespan_s for draw in mine if draw.policy == PAPER.name]
        for name in dict.fromkeys(draw.policy for draw in mine):
            of_policy = [draw for draw in mine if draw.policy == name]
            seconds = [draw.makespan_s for draw in of_policy]
            low, high = _interval(seconds, base)
            regrets = [d.makespan_s / d.perfect_lengths_s - 1 for d in of_policy if d.perfect_lengths_s is not None]
            rows.append(
                (
                    TITLES[benchmark],
                    name,
                    f"{sum(seconds) / len(seconds):.0f}",
                    f"{quantile(seconds, TAIL):.0f}",
                    f"{sum(seconds) / sum(base):.3f}",
                    f"{quantile(seconds, TAIL) / quantile(base, TAIL):.3f}",
                    f"{low:.3f} to {high:.3f}",
                    _show(sum(regrets) / len(regrets) if regrets else None, ".1%"),
                    _show(quantile(regrets, TAIL) if regrets else None, ".1%"),
                )
            )
    return [HEAD, *rows]


def _show(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _interval(seconds: Sequence[float], base: Sequence[float]) -> tuple[float, float]:
    """Resample the draws, the same ones for both policies."""
    rng, ratios = Random(0), []
    for _ in range(NUM_RESAMPLES):
        chosen = rng.choices(range(len(seconds)), k=len(seconds))
        ratios.append(quantile([seconds[i] for i in chosen], TAIL) / quantile([base[i] for i in chosen], TAIL))
    return quantile(ratios, 0.025), quantile(ratios, 0.975)
