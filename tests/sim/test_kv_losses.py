"""Sparse KV caches: what the world says that they cost in answers, and what a smaller budget saves."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic.core.engine_options import EngineOptions
from mosaic.core.realization import Outcome
from mosaic.core.workload import PAGE_TOKENS, SparseKv
from mosaic.runtime.static_plan import execute
from tests.factories import make_expert, make_plan, make_session, some_calls
from tests.sim.answer_worlds import ask, item_of, make_model, make_world, names
from tests.sim.cluster_runs import LinearHardware, make_backend
from tests.sim.oracle import LinearTime
from tests.sim.test_answer_model import GRID, items

UNCACHED = EngineOptions(enable_prefix_caching=False)


def outcome(call, inputs):
    return Outcome(2000, "right", sparse_answers={64: "wrong"})


def backend(budget_tokens, **changes):
    """Serve an expert of 8k context whose heads read so many tokens; None: all."""
    kv = None if budget_tokens is None else SparseKv(budget_pages=budget_tokens // PAGE_TOKENS)
    return make_backend(outcome, experts=[replace(make_expert("A"), kv=kv)], settings=UNCACHED, **changes)


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


def test_an_expert_whose_own_cache_is_sparse_answers_with_it() -> None:
    calls = some_calls("A", 1)
    answers = [
        execute(make_plan(make_session(0, calls)), calls, backend(budget)).calls[0].answer
        for budget in (None, 1024, 64)
    ]
    assert answers == ["right", "right", "wrong"]


def test_where_reading_is_dear_a_smaller_budget_is_faster() -> None:
    calls = some_calls("A", 8)
    hardware = LinearHardware(0.0, LinearTime(per_kv_token_s=1e-4), host_link_bytes_per_s=1e15)
    seconds = []
    for budget in (None, 1024, 64):
        result = execute(make_plan(make_session(0, calls)), calls, backend(budget, hardware=hardware))
        seconds.append(result.sessions[0].end_ts)
    assert seconds[0] > seconds[1] > seconds[2]
