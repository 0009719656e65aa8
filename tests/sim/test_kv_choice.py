"""KV caches chosen by session: the simulator runs them, and its world says what they cost in answers."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaic.core.commands import Close, Open, Submit
from mosaic.core.engine_options import EngineOptions
from mosaic.core.errors import BackendError
from mosaic.core.events import Finished
from mosaic.core.realization import Outcome
from mosaic.runtime.static_plan import execute
from tests.factories import make_cluster, make_expert
from tests.sim.answer_worlds import ask, item_of, make_model, make_world, names
from tests.sim.cluster_runs import LinearHardware, make_backend, make_plan, make_session, some_calls
from tests.sim.oracle import LinearTime
from tests.sim.random_runs import runs
from tests.sim.test_answer_model import GRID, items
from tests.sim.test_makespan_bound import bound_and_makespan

COST = {"accuracy_cost_frac": 0.01, "low_frac": 0.0, "high_frac": 0.05}
UNCACHED = EngineOptions(enable_prefix_caching=False)
CHOOSING = replace(make_expert("A"), kv_variants={64: COST, 1024: COST})
"""An expert of 8k context."""


def outcome(call, inputs):
    return Outcome(2000, "right", sparse_answers={64: "wrong"})


def backend(**changes):
    return make_backend(outcome, experts=[CHOOSING], settings=UNCACHED, **changes)


@given(items(), st.floats(0, 1))
def test_each_right_answer_of_a_long_sequence_is_lost_with_the_same_probability(item, lost_frac) -> None:
    model = make_model(kv_loss_frac={64: lost_frac})
    full = [model.propose(item, "A", u) for u in GRID]
    changed = [model.propose_sparse(item, "A", u, 65).get(64) for u in GRID]
    for said, instead in zip(full, changed, strict=True):
        assert instead is None or (said == item.answers[0] and instead in item.answers[1:])
    num_right, num_lost = full.count(item.answers[0]), sum(answer is not None for answer in changed)
    assert num_lost == pytest.approx(lost_frac * num_right, abs=2.001)
    assert not any(model.propose_sparse(item, "A", u, 64) for u in GRID), "it fits into the budget"


def test_what_is_lost_goes_to_wrong_answers_by_their_attraction() -> None:
    model = make_model(kv_loss_frac={64: 1.0})
    item = item_of(make_world(num_options=4), "q0")
    right = [u for u in GRID if model.propose(item, "A", u) == item.answers[0]]
    instead = [model.propose_sparse(item, "A", u, 1000)[64] for u in right]
    for answer, attraction in zip(item.answers[1:], item.attractions, strict=True):
        share = attraction / sum(item.attractions)
        assert instead.count(answer) == pytest.approx(share * len(right), abs=2.001)


def test_a_world_keeps_what_it_says_of_the_full_cache() -> None:
    plain = make_world(300)
    lossy = make_world(300, answers=make_model(kv_loss_frac={20_000: 0.5}))
    num_lost = num_right = 0
    for question in names(300):
        full, sparse = ask(plain, question), ask(lossy, question)
        assert sparse._replace(sparse_answers=None) == full
        changed = sparse.with_kv_budget(20_000) != sparse.with_kv_budget(None)
        is_long = full.output_tokens + 100 > 20_000
        num_right += full.answer == "B" and is_long
        num_lost += changed
        assert not changed or (full.answer == "B" and is_long)
        assert sparse.with_kv_budget(1024) is sparse, "another budget, which costs nothing"
    assert num_lost == pytest.approx(num_right / 2, abs=4 * (num_right / 4) ** 0.5)
    assert num_lost > 50


def test_a_session_answers_with_the_cache_that_it_chose() -> None:
    calls = some_calls("A", 6)
    plan = make_plan(
        replace(make_session(0, calls[:2]), kv_budget_tokens=64),
        replace(make_session(1, calls[2:4], workers=(1,)), kv_budget_tokens=1024),
        make_session(2, calls[4:], workers=(1,)),
    )
    result = execute(plan, calls, backend())
    assert [record.answer for record in result.calls] == ["wrong"] * 2 + ["right"] * 4


def test_an_expert_whose_own_cache_is_sparse_answers_with_it() -> None:
    calls = some_calls("A", 1)
    own = make_backend(outcome, experts=[CHOOSING.with_kv_budget(64)], settings=UNCACHED)
    assert execute(make_plan(make_session(0, calls)), calls, own).calls[0].answer == "wrong"


def test_calls_of_an_experts_queue_are_those_of_its_own_cache() -> None:
    (call,) = some_calls("A", 1)
    session = replace(make_session(0, [call]), shard=())
    one = backend()
    told = one.events(reacts=True)
    next(told)
    one.apply(Open(session))
    one.apply(Submit(call, "A"))
    answers = []
    for event in told:
        if isinstance(event, Finished):
            answers.append(event.record.answer)
            one.apply(Close(0))
    assert answers == ["right"]


def test_a_change_of_cache_is_a_load_and_the_same_cache_is_none() -> None:
    calls = some_calls("A", 6)
    sessions = [make_session(number, calls[2 * number : 2 * number + 2]) for number in range(3)]
    for budgets, loads in (((None, 64, 64), [True, True, False]), ((64, None, 1024), [True, True, True])):
        chosen = [replace(one, kv_budget_tokens=b) for one, b in zip(sessions, budgets, strict=True)]
        result = execute(make_plan(*chosen), calls, backend())
        assert [session.load_s > 0 for session in result.sessions] == loads


def test_where_reading_is_dear_a_smaller_budget_is_faster() -> None:
    calls = some_calls("A", 8)
    hardware = LinearHardware(0.0, LinearTime(per_kv_token_s=1e-4), host_link_bytes_per_s=1e15)
    seconds = []
    for budget in (None, 1024, 64):
        plan = make_plan(replace(make_session(0, calls), kv_budget_tokens=budget))
        result = execute(plan, calls, backend(hardware=hardware))
        seconds.append(result.sessions[0].end_ts)
    assert seconds[0] > seconds[1] > seconds[2]


def test_a_cache_that_the_expert_does_not_have_is_refused() -> None:
    calls = some_calls("A", 1)
    plan = make_plan(replace(make_session(0, calls), kv_budget_tokens=512))
    with pytest.raises(BackendError, match=r"kv_budget_tokens must be one of its kv_variants \[1024, 64\], got 512"):
        execute(plan, calls, backend())


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_choice_of_caches_beats_the_bound(data) -> None:
    make, plan, calls = data.draw(runs(kv=CHOOSING.kv_variants[1].kv))
    made = make()
    names = {session.expert for session in plan.sessions}
    experts = [replace(made._models.expert(name), kv=None, kv_variants={64: COST}) for name in sorted(names)]
    free = make_backend(
        made._outcomes, experts=experts, cluster=make_cluster(plan.num_workers), settings=made._models.settings,
        hardware=next(iter(made._models._hardware.values())),
    )  # fmt: skip
    budgets = data.draw(st.lists(st.sampled_from([None, 64]), min_size=len(plan.sessions), max_size=len(plan.sessions)))
    sessions = [replace(one, kv_budget_tokens=b) for one, b in zip(plan.sessions, budgets, strict=True)]
    bound_s, makespan_s = bound_and_makespan(free, *sessions, calls=calls, num_workers=plan.num_workers)
    assert 0 < bound_s <= makespan_s * (1 + 1e-9)
