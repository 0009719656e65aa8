"""The last calls of an expert go to a session over several free workers where that ends earlier, load included."""

from dataclasses import replace

import pytest

from mosaic.core.commands import Open
from mosaic.core.plan import Session
from mosaic.core.results import CallStatus, RunResult
from mosaic.core.workload import PROPOSE
from mosaic.planning.speeds import Speed
from mosaic.runtime.keeping import Keeping
from mosaic.runtime.loop import drive
from mosaic.runtime.moves import Moves
from mosaic.runtime.prospects import Measured, Prospects
from tests.factories import make_call, make_cluster, make_entry, make_expert, make_profile
from tests.runtime.test_overlap import Unclosed
from tests.sim.cluster_runs import LinearHardware, by_key, make_backend, make_plan, make_session
from tests.sim.oracle import LinearTime

STEP_S = 0.03


def step(seconds: float) -> LinearTime:
    return LinearTime(base_s=seconds, per_seq_s=0, per_kv_token_s=0, per_prefill_token_s=0, per_prefill_pair_s=0)


def times(hardware, shape, tp_degree) -> LinearTime:
    """Two workers together are three times as fast as one."""
    return step(STEP_S if tp_degree == 1 else STEP_S / 3)


def run_tail(*, spans: bool, gang_load_s: float = 1.0, num_workers: int = 4) -> RunResult:
    """One long call beside a short one on worker 0, the others being free."""
    calls = [make_call("short"), make_call("long")]
    lengths = {calls[0].key: 10, calls[1].key: 2000}
    sample = (10, 2000)
    entries = [
        replace(
            make_entry("A", tp_degree=degree, load_s=2.0 if degree == 1 else gang_load_s),
            output_tokens=sample,
            speed=Speed(base_s=STEP_S if degree == 1 else STEP_S / 3, per_seq_s=0.0, per_kv_s=0.0, read_s=0.0),
        )
        for degree in (1, 2)
    ]
    cluster = make_cluster(num_workers)
    prospects = Prospects(Measured({PROPOSE: make_profile(*entries)}, cluster))
    backend = make_backend(
        by_key(lengths),
        experts=[replace(make_expert("A"), tp_degrees=(2,))],
        cluster=cluster,
        hardware=LinearHardware(2.0),
        iteration_times=times,
    )
    plan = make_plan(make_session(0, calls), num_workers=num_workers)
    controllers = [prospects, Unclosed(plan, calls), Moves(prospects, spans_workers=spans), Keeping()]
    return drive(backend, controllers, num_workers=num_workers, tick_s=1.0)


def opened(result: RunResult) -> list[Session]:
    return [action.command.session for action in result.actions if isinstance(action.command, Open)]


def test_the_last_call_goes_on_over_two_workers_with_what_it_has_written() -> None:
    alone, spanned = run_tail(spans=False), run_tail(spans=True)
    assert [session.workers for session in opened(spanned)[1:]] == [(2, 3)]
    long = next(record for record in spanned.calls if record.key.question == "long")
    assert (long.status, long.output_tokens, long.attempt) == (CallStatus.FINISHED, 2000, 1)
    before = max(record.finished_ts for record in alone.calls)
    assert long.finished_ts == pytest.approx(2.0 + 2.0 + (2000 * STEP_S - 2.0) / 3, rel=0.15)
    assert long.finished_ts < 0.6 * before


def test_over_several_workers_a_load_that_takes_longer_than_it_saves_is_not_begun() -> None:
    assert all(len(session.workers) == 1 for session in opened(run_tail(spans=True, gang_load_s=50.0)))


def test_without_two_free_workers_that_lie_together_nothing_spans_them() -> None:
    assert all(len(session.workers) == 1 for session in opened(run_tail(spans=True, num_workers=3)))
