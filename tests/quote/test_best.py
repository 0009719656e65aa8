"""The best plan: of the scheduler's own and the baselines', by one forecast, in quotes and in batches."""

from dataclasses import replace

import pytest

import mosaic
from mosaic.commands.quote import quote_batch
from mosaic.config.job import simulated_job
from mosaic.core.errors import InfeasibleError
from mosaic.planning import Ilp
from mosaic.planning.baselines import RoundRobin
from mosaic.planning.costs import PaperCosts
from mosaic.quote.forecast import best_plan
from mosaic.quote.quotation import Quotation, describe
from mosaic.runtime.planner import Planner
from mosaic.runtime.stages import Pilot
from tests.factories import (
    SlottedSessions,
    make_calls,
    make_cluster,
    make_entry,
    make_expert,
    make_gpu,
    make_mixed_cluster,
    make_profile,
)
from tests.run_records import make_record, make_session

CALLS = make_calls({"A": 30, "B": 10})
GPQA = ("workload=gpqa", "profile.store=null")


def make_planner(**changes: object) -> Planner:
    """Two experts whose every session lasts 100 s, however few its calls are: a share of it is no price of a shard."""
    entries = [
        replace(make_entry(name, load_s=1.0, fixed_s=fixed_s, per_call_s=0.0), output_tokens=(100,) * 20)
        for name, fixed_s in (("A", 100.0), ("B", 10.0))
    ]
    given = {
        "experts": (make_expert("A"), make_expert("B")),
        "cluster": make_cluster(2),
        "scheduler": Ilp(),
        "costs": PaperCosts,
        "profiles": {"propose": make_profile(*entries)},
        "session_model": SlottedSessions(num_slots=1000, token_s=1.0),
    }
    return Planner(**(given | changes))  # type: ignore[arg-type]


def test_the_plan_that_ends_first_by_the_forecast_is_taken_and_named() -> None:
    lines: list[str] = []
    planner = make_planner()
    own = planner.plan(CALLS).plan
    assert len(own.sessions) > 2, "the constant price cuts A, and the worker of both takes twice as long"
    best = best_plan(planner, CALLS, Pilot(), lines.append).plan
    assert [len(session.shard) for session in best.sessions] == [30, 10]
    assert len({session.workers for session in best.sessions}) == 2
    [line] = lines
    assert line == best.notes[-1]
    assert line.startswith("plan: ilp (piecewise), predicted 1:41 min; round_robin 1:41 min, ")
    assert "ilp (paper) 3:22 min" in line
    assert "data_parallel 3:22 min" in line


def test_a_baseline_is_taken_where_it_is_faster_than_the_own_scheduler() -> None:
    planner = make_planner(scheduler=RoundRobin(), experts=(make_expert("A"),))
    entry = replace(make_entry("A", load_s=1.0), output_tokens=(100,) * 20)
    planner = replace(
        planner,
        profiles={"propose": make_profile(entry)},
        session_model=SlottedSessions(num_slots=1, token_s=1.0),
    )
    best = best_plan(planner, make_calls({"A": 8}), Pilot(), lambda line: None).plan
    assert best.scheduler == "data_parallel"


def test_the_forecast_runs_at_the_speed_of_the_pilots_sessions() -> None:
    lines: list[str] = []
    session = make_session(load=(0.0, 1.0), end_ts=201.0)
    record = make_record(CALLS[0].key.question, output_tokens=100)
    best_plan(make_planner(), CALLS[1:], Pilot(records={record.key: record}, sessions=(session,)), lines.append)
    assert "round_robin 3:21 min" in lines[0], "200 s where the model says 100"


@pytest.mark.parametrize(
    "changes",
    [
        {"session_model": None},
        {"cluster": make_mixed_cluster(make_gpu("gpu"), make_gpu("other"))},
        {"profiles": {"propose": make_profile(*(replace(make_entry(name), output_tokens=()) for name in "AB"))}},
    ],
)
def test_where_nothing_can_be_forecast_the_scheduler_decides(changes: dict[str, object]) -> None:
    planner = make_planner(**changes)
    if "cluster" in changes:
        entries = [make_entry(name, gpu=gpu) for name in "AB" for gpu in ("gpu", "other")]
        planner = replace(planner, profiles={"propose": make_profile(*entries)})
    best = best_plan(planner, CALLS, Pilot(), lambda line: pytest.fail(line))
    assert best.plan.sessions == planner.plan(CALLS).plan.sessions


def test_no_plan_in_any_way_is_said() -> None:
    planner = make_planner(cluster=make_cluster(2, gpu=make_gpu(memory_gib=1.0)))
    with pytest.raises(InfeasibleError):
        best_plan(planner, CALLS, Pilot(), lambda line: None)


@pytest.fixture(scope="module")
def gpqa() -> Quotation:
    return quote_batch(GPQA, sizes=(2, 3, 4))


def test_a_quote_takes_no_plan_that_is_slower_than_a_baseline_beside_it(gpqa: Quotation) -> None:
    for offer in gpqa.offers:
        assert offer.p50_s == pytest.approx(min(offer.p50_s_by_plan.values()))
        assert {"round_robin", "data_parallel"} <= offer.p50_s_by_plan.keys()
        assert f"min  {offer.plan}" in describe(gpqa)


def test_half_of_a_batch_is_not_quoted_longer_than_all_of_it_takes(gpqa: Quotation) -> None:
    job, _ = simulated_job(GPQA)
    whole = mosaic.run(job).result
    assert gpqa.offers[-1].p50_s < max(session.end_ts for session in whole.sessions)
