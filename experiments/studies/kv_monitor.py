"""The gate as quality monitor: what it shows of right answers that sparse KV caches lose.

No schedule changes an answer, so these are drawn and not run: what each expert says with the KV cache that a plan gives
its call, then the gate, then the aggregator on what the gate leaves.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from math import sqrt
from typing import NamedTuple

from experiments.config.job import simulated
from experiments.lab.estimate import estimate
from mosaic.core.plan import Plan
from mosaic.core.results import CallRecord
from mosaic.core.workload import CallKey
from mosaic.pipelines.final_answers import accuracy_frac
from mosaic.runtime.job import Job
from mosaic.runtime.layers import Questions
from sim.site import draw_records
from sim.world.world import World

LOSSES = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5)
"""Shares of right answers that calls lose which outgrow their budget: what is assumed, its bounds and beyond."""
ALARM_Z, POWER_Z = 1.645, 0.842
"""Of a one-sided test that cries wolf in 5% of batches and sees what it should in 80%."""


class Seen(NamedTuple):
    """A batch whose sparse calls lose a share of their right answers."""

    loss_frac: float
    seed: int
    skip_frac: float
    unanimous_frac: float
    """Share of the questions on which all experts agree."""
    accuracy_frac: float
    expert_accuracy_frac: float
    """Of single answers, over all experts."""


def watch(plan: Plan, num_seeds: int, losses: Sequence[float] = LOSSES, workload: str = "mmlu_pro") -> Iterator[Seen]:
    """Draw batches under a plan, every budget losing the same share of right answers."""
    budgets = {key: session.kv_budget_tokens for session in plan.sessions for key in session.shard}
    used = {budget for budget in budgets.values() if budget is not None}
    job, site = simulated([f"workload={workload}", "+policy=kv_plans"])
    assert site.world.answers is not None
    for loss in losses:
        answers = replace(site.world.answers, kv_loss_frac=dict.fromkeys(used, loss))
        for seed in range(num_seeds):
            yield _see(job, replace(site.world, answers=answers, root_seed=seed), budgets, loss, seed)


def _see(job: Job, world: World, budgets: dict[CallKey, int | None], loss: float, seed: int) -> Seen:
    questions = Questions(job.workload, job.graph)
    said: dict[CallKey, CallRecord] = {}
    for budget in dict.fromkeys(budgets.values()):
        calls = [call for call in questions.first_calls if budgets[call.key] == budget]
        asked = {call.expert for call in calls}
        experts = [expert.with_kv_budget(budget) for expert in job.experts if expert.name in asked]
        said |= {record.key: record for record in draw_records(world, calls, experts, earlier={})}
    right = {question.id: question.answer for question in job.workload.questions}
    num_right = sum(record.answer == right[key.question] for key, record in said.items())
    for record in said.values():
        questions.note(record)
    node = job.graph.upper_nodes[0]
    for record in draw_records(world, questions.calls_of(node.name), node.experts, earlier=said):
        questions.note(record)
    ends = questions.ends()
    accuracy = accuracy_frac([end.answer for end in ends])
    assert accuracy is not None, "the questions have gold answers"
    votes = [{said[call.key].answer for call in questions.of(question.id)[1]} for question in questions]
    return Seen(
        loss_frac=loss,
        seed=seed,
        skip_frac=sum(end.decision.skip for end in ends) / len(ends),
        unanimous_frac=sum(len(answers) == 1 for answers in votes) / len(ends),
        accuracy_frac=accuracy,
        expert_accuracy_frac=num_right / len(said),
    )


class Sight(NamedTuple):
    """The least loss that a monitor sees in one batch."""

    watched: str
    """Which share is watched."""
    compared: str
    """What with."""
    std_frac: float
    """Of the difference, without any loss."""
    least_fall_frac: float
    """Of the share: what the test needs."""
    loss_frac: float | None
    """Of the sparse calls' right answers, at which the share falls so far; None: above all that were tried."""
    accuracy_fall_frac: float | None
    """What accuracy has lost by then."""


def sights(seen: Sequence[Seen], num_questions: int) -> list[Sight]:
    """Say how small a loss the shares of skipped and of unanimous questions show.

    A batch of new questions is compared with the long-run share of the full cache, whose own error is left out: then
    the noise is that of so many questions. Or the same questions are asked twice, with the full cache and without:
    then it is the luck of two runs.
    """
    found = []
    for watched in ("skip_frac", "unanimous_frac"):
        full = [getattr(one, watched) for one in seen if one.loss_frac == 0]
        mean, num = sum(full) / len(full), len(full)
        luck = sqrt(sum((share - mean) ** 2 for share in full) / (num - 1))
        fresh = sqrt(mean * (1 - mean) / num_questions)
        for compared, std in (("the long-run share, new questions", fresh), ("the same questions", sqrt(2) * luck)):
            least = (ALARM_Z + POWER_Z) * std
            loss = _at([(fallen, loss) for loss, fallen in _curve(seen, watched)], least)
            falls = None if loss is None else _at(_curve(seen, "accuracy_frac"), loss)
            found.append(Sight(watched, compared, std, least, loss, falls))
    return found


def fall(seen: Sequence[Seen], measured: str, loss: float) -> list[float]:
    """Give by how much a share falls at a loss, seed by seed."""
    full = {one.seed: getattr(one, measured) for one in seen if one.loss_frac == 0}
    return [full[one.seed] - getattr(one, measured) for one in seen if one.loss_frac == loss]


def _curve(seen: Sequence[Seen], measured: str) -> list[tuple[float, float]]:
    return [(loss, estimate(fall(seen, measured, loss)).mean) for loss in sorted({one.loss_frac for one in seen})]


def _at(points: Sequence[tuple[float, float]], x: float) -> float | None:
    """Interpolate between points in their order; None where none spans x."""
    for (low, before), (high, after) in pairwise(points):
        if low <= x <= high:
            return before + (after - before) * (x - low) / (high - low)
    return None
