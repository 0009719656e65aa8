"""New plans in mid-run: what scale lengths have, when it is no chance, and what a new plan earns in a simulation."""

import random
from dataclasses import replace
from statistics import NormalDist, fmean, stdev

import pytest

import mosaic
from mosaic.config.job import simulated_job
from mosaic.planning.length_forecast import MIN_ENDED, length_scale
from mosaic.planning.profiles import scaled_profile
from mosaic.runtime.job import Job
from mosaic.runtime.run import measure

WORKLOAD = ("workload=gpqa", "aggregator=none", "costs=affine", "profile.store=null", "pipeline.replan=true")
WRITES_MORE = "QwenR1"


def seen_so_far(lengths: list[int], batch: int, until: float) -> tuple[list[int], list[int]]:
    """Serve calls in a batch that is full, a token an instant each, up to some instant."""
    ended, running, free = [], [], [0.0] * batch
    for tokens in lengths:
        start = min(free)
        free[free.index(start)] = start + tokens
        if start + tokens <= until:
            ended.append(tokens)
        elif start < until:
            running.append(int(until - start))
    return ended, running


@pytest.mark.parametrize("scale", [0.4, 1.0, 3.0])
def test_the_scale_is_found_while_most_calls_still_write(scale: float) -> None:
    draw = random.Random(0)
    sample = [round(draw.lognormvariate(6, 0.7)) for _ in range(200)]
    found, wrong = [], 0
    for seed in range(60):
        other = random.Random(seed)
        lengths = [round(scale * other.lognormvariate(6, 0.7)) for _ in range(400)]
        ended, running = seen_so_far(lengths, 100, 400 * scale)
        assert len(ended) < len(running)
        found.append(length_scale(sample, ended, running))
        wrong += fmean(ended) < 0.75 * scale * 517  # what a mean of those that have ended would say
    assert wrong == 60
    if scale == 1.0:
        assert found == [1.0] * 60, "chance explains all of it"
    else:
        assert fmean(found) == pytest.approx(scale, rel=0.12)


def test_few_calls_say_nothing() -> None:
    sample = list(range(10, 110, 10))
    assert length_scale(sample, [1000] * (MIN_ENDED - 1), [5000] * 90) == 1.0
    assert length_scale((), [1000] * 50, ()) == 1.0


def planned_wrongly(seed: int, scale: float) -> Job:
    """A job whose profile has an expert write so many times what it does."""
    job, _ = simulated_job([*WORKLOAD, f"seed={seed}"])
    profile = measure(job)[job.graph.first_nodes[0]]
    return replace(job, profile=scaled_profile(profile, {WRITES_MORE: scale}))


def ends(seed: int, scale: float) -> tuple[float, float, int]:
    """Give when a batch ends as it was planned, and with new plans, and how many of these there were."""
    job = planned_wrongly(seed, scale)
    before = mosaic.run(replace(job, reactions=frozenset())).result
    plans = []
    after = mosaic.run(job, on_replan=lambda plan, lost: plans.append(plan)).result
    said = [sorted((r.key, r.output_tokens, r.answer) for r in result.calls) for result in (before, after)]
    assert said[0] == said[1], "the same answers, each once"
    last = [max(session.end_ts for session in result.sessions) for result in (before, after)]
    return last[0], last[1], len(plans)


def test_a_plan_that_is_right_is_left_alone() -> None:
    before_s, after_s, num_plans = ends(0, 1.0)
    assert (after_s, num_plans) == (pytest.approx(before_s), 0)


def test_a_plan_for_an_expert_that_writes_three_times_as_much_is_replaced() -> None:
    before_s, after_s, num_plans = ends(0, 1 / 3)
    assert num_plans >= 1
    assert after_s < 0.85 * before_s


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 1 / 3])
def test_what_new_plans_earn_over_twenty_seeds(scale: float) -> None:
    """Printed in docs/how-to/reactions.md."""
    pairs = [ends(seed, scale) for seed in range(20)]
    gains = [before_s / after_s for before_s, after_s, _ in pairs]
    half = NormalDist().inv_cdf(0.975) * stdev(gains) / len(gains) ** 0.5
    print(f"\nscale {scale:.2f}: {fmean(gains):.3f} +- {half:.3f} times as fast, least {min(gains):.3f}")
    if scale == 1.0:
        assert [(after_s, num) for _, after_s, num in pairs] == [
            (pytest.approx(before_s), 0) for before_s, _, _ in pairs
        ]
    else:
        assert fmean(gains) - half > 1.2
