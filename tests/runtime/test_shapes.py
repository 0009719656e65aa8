"""What is measured of experts with several degrees and on several kinds of GPU."""

from collections.abc import Sequence
from dataclasses import replace

from mosaic.core.cluster import Worker
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
