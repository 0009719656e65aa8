"""What may be measured before a batch: a share of it, and the few calls that a fit needs."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic.runtime.measuring import sweep_first_layer
from mosaic.runtime.payback import MIN_CALLS, first_questions, paid_back, sweep_within, sweeps_within
from mosaic.runtime.run import measure, plan
from mosaic.runtime.sweep import Sweep
from tests.factories import make_call, make_cluster, make_expert
from tests.runtime.jobs import make_job
from tests.runtime.scripted import Scripted
from tests.runtime.test_measuring import Shaky

DEFAULT = Sweep(shard_sizes=(128, 384, 768), num_repeats=2)


@given(
    sizes=st.lists(st.integers(1, 900), min_size=2, max_size=5, unique=True),
    num_repeats=st.integers(1, 4),
    num_calls=st.integers(0, 50_000),
    frac=st.floats(0.01, 2.0),
)
def test_no_sweep_is_larger_than_its_share_and_every_one_can_be_fitted(sizes, num_repeats, num_calls, frac) -> None:
    sweep = Sweep(shard_sizes=tuple(sizes), num_repeats=num_repeats)
    most = paid_back(num_calls, frac)
    shrunk = sweep_within(sweep, most)
    assert shrunk.num_calls <= min(sweep.num_calls, max(MIN_CALLS, frac * num_calls))
    assert len(shrunk.shard_sizes) >= 2
    assert sweep_within(sweep, None) == sweep


@pytest.mark.parametrize(
    ("num_calls", "sizes", "num_repeats"),
    [
        (20, (1, 2, 5), 1),
        (300, (4, 8, 18), 1),
        (12_799, (182, 365, 732), 1),
        (12_800, (128, 384, 768), 1),
        (25_600, (128, 384, 768), 2),
    ],
)
def test_an_experts_sweep_goes_by_its_calls_in_the_batch(num_calls, sizes, num_repeats) -> None:
    calls = [make_call(f"q{i}", expert="A") for i in range(num_calls)]
    assert sweeps_within(DEFAULT, calls, 0.1) == {"A": Sweep(shard_sizes=sizes, num_repeats=num_repeats)}
    assert sweeps_within(DEFAULT, calls, None) == {"A": DEFAULT}


def test_experts_with_few_calls_are_measured_less_than_others_and_told_of_before() -> None:
    calls = [make_call(f"q{i}", expert="A" if i % 10 else "B") for i in range(200)]
    experts, site, told, backends = [make_expert("A"), make_expert("B")], Shaky(0), [], []

    def sweep(name, swept):
        backends.append(Scripted())
        return backends[-1], lambda number: 100

    def show(name, predicted):
        assert len(told) == 1, "before anything is sent"
        return nullcontext(())

    site.sweep = sweep  # type: ignore[method-assign]
    sweep_first_layer(
        Sweep(shard_sizes=(2, 4, 9)), calls, experts, make_cluster(2), site, "here",  # type: ignore[arg-type]
        show, max_batch_frac=0.1, tell=told.append,
    )  # fmt: skip
    (backend,) = backends
    assert [(session.expert, len(session.shard)) for session in backend.sessions] == [
        ("A", 2), ("B", 1), ("A", 4), ("B", 2), ("A", 9), ("B", 5),
    ]  # fmt: skip
    assert told == [
        "profiling: 23 calls that are not the batch (A 15, B 8), to price sessions; profile.path=FILE spares them"
    ]


def test_simulations_measure_what_the_sweep_says_and_so_does_who_asks_for_a_profile() -> None:
    job = make_job()
    assert job.site.way == "simulated"
    assert plan(replace(job, max_batch_frac=0.01)) == plan(job)
    assert measure(replace(job, max_batch_frac=0.01)) == measure(job)


def test_a_workload_is_cut_down_to_its_first_questions() -> None:
    workload = make_job().workload
    cut = first_questions(workload, 2)
    assert cut.questions == workload.questions[:2]
    assert {call.key.question for call in cut.calls} == {question.id for question in cut.questions}
    assert first_questions(workload, None) is first_questions(workload, 99) is workload
