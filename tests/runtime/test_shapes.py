"""What is measured of experts with several degrees and on several kinds of GPU."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from mosaic.core.cluster import Worker
from mosaic.core.engine_options import EngineOptions
from mosaic.core.workload import Expert
from mosaic.planning import Flexible
from mosaic.runtime.preparing import prepare
from mosaic.runtime.run import plan, run
from mosaic.runtime.shapes import is_plain, shapes
from tests.factories import make_cluster, make_expert, make_gpu, make_mixed_cluster
from tests.runtime.jobs import make_job

OLD, NEW = make_gpu("old"), make_gpu("new")


def fits(expert: Expert, workers: Sequence[Worker]) -> bool:
    """B has no room on one old GPU."""
    return expert.name != "B" or len(workers) > 1 or workers[0].gpu == NEW


def test_each_degree_is_measured_on_each_kind_that_holds_it() -> None:
    wide, narrow = replace(make_expert("A"), tp_degrees=(2,)), make_expert("B")
    cluster = make_mixed_cluster(OLD, OLD, NEW, OLD, NEW, NEW)
    found = {
        (tuple(worker.id for worker in shape.gang), tuple((e.name, e.tp_degree) for e in shape.experts))
        for shape in shapes([wide, narrow], cluster, fits)
    }
    assert found == {
        ((0,), (("A", 1),)),
        ((2,), (("A", 1), ("B", 1))),
        ((0, 1), (("A", 2),)),
        ((4, 5), (("A", 2),)),
    }


def test_one_degree_on_one_kind_is_plain() -> None:
    assert is_plain([make_expert("A")], make_cluster(2))
    assert not is_plain([replace(make_expert("A"), tp_degrees=(2,))], make_cluster(2))
    assert not is_plain([make_expert("A")], make_mixed_cluster(OLD, NEW))


COST = {"accuracy_cost_frac": 0.01, "low_frac": 0.0, "high_frac": 0.05}


def test_each_cache_is_measured_at_each_degree() -> None:
    choosing = replace(make_expert("A"), kv_variants={64: COST, 1024: COST}, tp_degrees=(2,))
    other = replace(make_expert("B"), kv_variants={64: COST})
    found = {
        (len(shape.gang), shape.kv_budget_tokens, tuple((e.name, e.kv_budget_tokens) for e in shape.experts))
        for shape in shapes([choosing, other], make_cluster(2), lambda expert, workers: True)
    }
    assert found == {
        (1, None, (("A", None), ("B", None))),
        (1, 1024, (("A", 1024),)),
        (1, 64, (("A", 64), ("B", 64))),
        (2, None, (("A", None),)),
        (2, 1024, (("A", 1024),)),
        (2, 64, (("A", 64),)),
    }
    assert not is_plain([other], make_cluster(2))


def test_a_job_is_planned_and_run_with_the_caches_that_the_program_chose() -> None:
    job = make_job(scheduler=Flexible(accepted_kv_loss_frac=0.01))
    experts = tuple(replace(expert, kv_variants={64: COST}) for expert in job.experts)
    site = replace(job.site, experts=(*experts, *job.site.experts[len(experts) :]))
    job = replace(job, experts=experts, site=replace(site, settings=EngineOptions(enable_prefix_caching=False)))
    begun = prepare(job, lambda *_: _Nothing(), lambda _: _Nothing(), lambda _: None)
    entries = begun.planner.profiles["propose"].entries
    assert {(entry.expert, entry.kv_budget_tokens) for entry in entries} == {(n, b) for n in "ABC" for b in (None, 64)}
    by_kv = {entry.kv_budget_tokens: entry for entry in entries if entry.expert == "A"}
    assert by_kv[None].output_tokens == by_kv[64].output_tokens, "the same calls"
    assert by_kv[None].fit != by_kv[64].fit
    outcome = run(job)
    assert len(outcome.result.calls) > len(job.workload.calls), "the aggregator ran too, with its own cache"
    assert [session.kv_budget_tokens for made in outcome.planned[1:] for session in made.plan.sessions] == [None]


def test_calls_that_change_sessions_and_caches_are_refused() -> None:
    job = make_job()
    choosing = tuple(replace(expert, kv_variants={64: COST}) for expert in job.experts)
    for reaction in ("overlap", "moves"):
        with pytest.raises(ValueError, match=f"pipeline.{reaction} must be false with kv_variants, which A, B, C have"):
            replace(job, experts=choosing, **{f"has_{reaction}": True})


def test_a_job_is_planned_and_run_at_a_degree_that_the_program_chose() -> None:
    job = make_job(scheduler=Flexible(max_replicas=1))
    job = replace(
        job,
        experts=tuple(replace(expert, tp_degrees=(2,)) for expert in job.experts),
        workload=job.workload,
    )
    begun = prepare(job, lambda *_: _Nothing(), lambda _: _Nothing(), lambda _: None)
    entries = begun.planner.profiles["propose"].entries
    assert {(entry.expert, entry.tp_degree) for entry in entries} == {(name, n) for name in "ABC" for n in (1, 2)}
    by_degree = {n: next(e for e in entries if e.expert == "A" and e.tp_degree == n) for n in (1, 2)}
    assert by_degree[1].output_tokens == by_degree[2].output_tokens, "the same calls"
    chosen = plan(job)
    outcome = run(job)
    widths = [session.workers for session in outcome.result.sessions if session.node == "propose"]
    assert sorted(widths) == sorted(session.workers for session in chosen.plan.sessions)


class _Nothing:
    def __enter__(self) -> tuple[()]:
        return ()

    def __exit__(self, *_: object) -> None:
        return None
