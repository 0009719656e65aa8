"""The simulated world: all policies meet the same draws; answers and lengths follow one difficulty; some are lost."""

import random
from collections.abc import Sequence
from dataclasses import replace
from math import exp, sqrt
from statistics import NormalDist, correlation, fmean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from scipy.stats import chi2_contingency, kstest

from mosaic.core.engine_options import EngineOptions
from mosaic.core.realization import Outcome
from mosaic.core.results import CallRecord, Inputs
from mosaic.core.workload import PAGE_TOKENS, PROPOSE, Call, CallKey, SparseKv
from mosaic.runtime.static_plan import execute
from sim.world.lengths import ClippedLognormal, Empirical
from sim.world.world import World
from tests.factories import make_call, make_calls, make_expert, make_plan, make_problem, make_session, some_calls
from tests.sim.answer_worlds import (
    FINE,
    aggregate_call,
    ask,
    item_of,
    make_choice,
    make_model,
    make_response,
    make_world,
    names,
)  # fmt: skip
from tests.sim.cluster_runs import LinearHardware, make_backend
from tests.sim.oracle import LinearTime
from tests.sim.test_answer_model import GRID, items

LENGTHS = {
    "A": ClippedLognormal(mean=300, sigma=0.8, clip_tokens=4096),
    "B": Empirical(sample=tuple(range(10, 500, 7))),
}
WORLD = World(lengths=LENGTHS, root_seed=0)
PROBLEM = make_problem({"A": 40, "B": 25})


def length(call: Call, world: World = WORLD) -> int:
    return world.outcome(call, {}).output_tokens


@given(question=st.text(min_size=1, max_size=5), slot=st.integers(0, 3))
def test_another_expert_meets_the_same_quantile(question: str, slot: int) -> None:
    # Re-routed, a call that was long for its expert is long for the other one.
    world = World(lengths={"A": Empirical(sample=tuple(range(1, 101))), "B": LENGTHS["A"]}, root_seed=7)
    percent = length(make_call(question, expert="A", slot=slot), world)
    other = length(make_call(question, expert="B", slot=slot), world)
    low, high = max(percent - 1, 1e-9), min(percent, 100 - 1e-9)
    assert LENGTHS["A"].quantile(low / 100) <= other <= LENGTHS["A"].quantile(high / 100)


def test_an_expert_that_answers_twice_has_a_draw_for_each_answer() -> None:
    slots = [[length(make_call(f"q{i}", slot=slot)) for slot in range(3)] for i in range(20)]
    assert sum(len(set(lengths)) == 3 for lengths in slots) > 15


@pytest.mark.parametrize("change", [{"root_seed": 1}, {"stream": "calibration"}])
def test_seeds_and_streams_are_different_worlds(change: dict[str, object]) -> None:
    other = replace(WORLD, **change)  # type: ignore[arg-type]
    changed = sum(other.outcome(call, {}) != WORLD.outcome(call, {}) for call in PROBLEM.calls)
    assert changed > 0.9 * len(PROBLEM.calls)


def test_recorded_lengths_take_precedence() -> None:
    call, other = PROBLEM.calls[:2]
    world = replace(WORLD, recorded={call.key: 7, CallKey("elsewhere", PROPOSE, 0): 8})
    assert world.outcome(call, {}) == Outcome(7)
    assert world.outcome(other, {}) == WORLD.outcome(other, {})
    assert World(lengths={}, root_seed=0, recorded={call.key: 7}).outcome(call, {}) == Outcome(7)
    answering = make_world(answers=make_model(length_loading=0.9))
    recorded = replace(answering, recorded={call.key: 7}).outcome(call, {})
    assert (recorded.output_tokens, recorded.answer) == (7, answering.outcome(call, {}).answer)


# Calls that answer

NORMAL = NormalDist()
NUM_QUESTIONS = 3000
NAMES = names(NUM_QUESTIONS)


def score(outcome: Outcome) -> float:
    """The normal score of a length drawn from FINE."""
    return NORMAL.inv_cdf((outcome.output_tokens - 0.5) / len(FINE.sample))


def probabilities(world: World, question: str, expert: str) -> dict[str, float]:
    """The model's formula, written out once more."""
    model, item = world.answers, item_of(world, question)
    assert model is not None
    right = exp(model.mean_ability + model.ability_by_expert[expert] - model.discrimination * item.difficulty)
    weights = (right, *item.attractions)
    return {answer: weight / sum(weights) for answer, weight in zip(item.answers, weights, strict=True)}


# Lengths


@pytest.mark.parametrize("root_seed", [0, 3])
def test_answers_without_loading_leave_every_length_as_it_was(root_seed: int) -> None:
    calls = make_calls({"A": 40, "B": 25})
    bare = World(lengths=LENGTHS, root_seed=root_seed)
    answering = replace(bare, answers=make_model(), questions={f"q{i}": make_choice(f"q{i}") for i in range(30)})
    outcomes = [answering.outcome(call, {}) for call in calls]
    # Without an answer model there are lengths and nothing else.
    assert [Outcome(outcome.output_tokens, None, None) for outcome in outcomes] == [bare.outcome(c, {}) for c in calls]
    assert [outcome.answer is not None for outcome in outcomes] == [i < 30 for i in range(65)]


@pytest.mark.parametrize("loading", [0.4, 0.8319, 1.0])
@pytest.mark.parametrize("expert", ["A", "B"])
def test_the_loading_leaves_each_experts_length_distribution_as_it_is(loading: float, expert: str) -> None:
    world = make_world(lengths=LENGTHS, answers=make_model(length_loading=loading))
    lengths = [ask(world, name, expert=expert).output_tokens for name in NAMES]
    assert lengths != [ask(replace(world, answers=None), name, expert=expert).output_tokens for name in NAMES]
    grid = [LENGTHS[expert].quantile((i + 0.5) / NUM_QUESTIONS) for i in range(NUM_QUESTIONS)]
    assert kstest(lengths, grid).pvalue > 1e-3
    assert abs(fmean(lengths) - LENGTHS[expert].mean) < 4 * pstdev(grid) / sqrt(NUM_QUESTIONS)


@pytest.mark.parametrize("loading", [0.0, 0.5, 0.8319])
def test_lengths_of_a_questions_slots_correlate_as_the_square_of_the_loading(loading: float) -> None:
    world = make_world(NUM_QUESTIONS, answers=make_model(length_loading=loading))
    first, again, other = (
        [score(ask(world, name, expert=expert, slot=slot)) for name in NAMES]
        for expert, slot in (("A", 0), ("A", 1), ("B", 2))
    )
    for slots in ((first, again), (first, other)):
        assert abs(correlation(*slots) - loading**2) < 4 * (1 - loading**4) / sqrt(NUM_QUESTIONS)
    with_difficulty = correlation([item_of(world, name).difficulty for name in NAMES], first)
    assert abs(with_difficulty - loading) < 4 * (1 - loading**2) / sqrt(NUM_QUESTIONS)


@pytest.mark.parametrize("loading", [0.0, 0.7])
def test_the_aggregators_lengths_lean_by_their_own_loading(loading: float) -> None:
    answers = make_model(length_loading=0.3, aggregator_length_loading=loading)
    world = make_world(NUM_QUESTIONS, answers=answers)
    scores = [score(world.outcome(aggregate_call(name), {})) for name in NAMES]
    found = correlation([item_of(world, name).difficulty for name in NAMES], scores)
    assert abs(found - loading) < 4 * (1 - loading**2) / sqrt(NUM_QUESTIONS)


def test_experts_that_think_show_no_more_than_their_visible_tokens() -> None:
    world = make_world(20, thinking={"A": 40_000})
    lengths = [ask(world, name).output_tokens for name in names(20)]
    assert min(lengths) < 40_000 < max(lengths)
    assert [ask(world, name).visible_tokens for name in names(20)] == [min(tokens, 40_000) for tokens in lengths]
    assert ask(world, "q0", expert="B").visible_tokens is None


# Answers


@pytest.mark.parametrize("question", ["q0", "q1", "q2", "q3"])
def test_slots_of_one_expert_are_independent_given_the_question(question: str) -> None:
    number = 4000
    world = make_world(4, answers=make_model(length_loading=0.8, mean_ability=1.0))
    expected = probabilities(world, question, "A")
    outcomes = [ask(world, question, slot=slot) for slot in range(2 * number)]
    said = [outcome.answer for outcome in outcomes]
    for answer, share in expected.items():
        assert abs(said.count(answer) / len(said) - share) < 4 * sqrt(share * (1 - share) / len(said)), answer
    pairs = list(zip(said[::2], said[1::2], strict=True))
    agree = sum(share**2 for share in expected.values())
    assert abs(sum(a == b for a, b in pairs) / number - agree) < 4 * sqrt(agree * (1 - agree) / number)
    common = [answer for answer, share in expected.items() if share > 0.05]
    assert chi2_contingency([[pairs.count((a, b)) for b in common] for a in common]).pvalue > 1e-3
    # Nor do a call's answer and its length tell of each other, once the question is known.
    right = [float(answer == "B") for answer in said]
    assert abs(correlation(right, [score(outcome) for outcome in outcomes])) < 4 / sqrt(len(said))


def test_a_question_that_is_not_known_has_a_difficulty_and_no_answer() -> None:
    world = make_world(1, answers=make_model(length_loading=1.0, aggregator_length_loading=1.0, deference=1.0))
    outcome = ask(world, "elsewhere")
    assert outcome.answer is None
    assert ask(world, "elsewhere", slot=1) == outcome, "nothing but the difficulty makes the length"
    assert world.outcome(aggregate_call("elsewhere"), {}) == outcome


@pytest.mark.parametrize(
    ("change", "same_questions"),
    [({"root_seed": 1}, True), ({"question_seed": 1}, False), ({"stream": "calibration"}, False)],
)
def test_another_seed_meets_the_same_questions_and_another_stream_others(change, same_questions) -> None:
    world = make_world(50, answers=make_model(mean_ability=0.0, length_loading=0.5))
    other = replace(world, **change)
    assert [ask(world, name).answer for name in names(50)] != [ask(other, name).answer for name in names(50)]
    # A length at full loading is the difficulty and nothing else.
    full = make_model(length_loading=1.0)
    lengths = [[ask(replace(each, answers=full), name) for name in names(50)] for each in (world, other)]
    assert all((a.output_tokens == b.output_tokens) is same_questions for a, b in zip(*lengths, strict=True))


# The aggregator: its draws are its own, and its answer and length follow what it reads

EAGER = make_model(mean_ability=0.0, deference=1.5, aggregator_length_loading=0.5)


def by_key(records: Sequence[CallRecord]) -> Inputs:
    return {record.key: record for record in records}


def read(world: World, *answers: str | None, question: str = "q0") -> Outcome:
    """What the aggregator makes of these responses."""
    records = [make_response(question, slot, answer) for slot, answer in enumerate(answers)]
    return world.outcome(aggregate_call(question, *range(len(answers))), by_key(records))


@given(order=st.randoms(), strangers=st.lists(st.sampled_from([*"ABCD", None]), max_size=4), others=st.integers(0, 3))
def test_its_outcome_depends_on_nothing_but_seed_key_and_inputs(
    order: random.Random, strangers: list[str | None], others: int
) -> None:
    # Two policies: other calls added, cancelled, drawn before and listed in another order.
    world, call = make_world(8, answers=EAGER), aggregate_call("q3", 0, 1, 2)
    inputs = [make_response("q3", slot, answer) for slot, answer in enumerate("BAB")]
    expected = world.outcome(call, by_key(inputs))
    added = [make_response("q4", slot, answer) for slot, answer in enumerate(strangers)]
    # A fourth response of the question that the call does not name, as one that was cancelled.
    added.append(make_response("q3", 3, "A", expert="B"))
    records = [*inputs, *added]
    order.shuffle(records)
    other, given_inputs = make_world(8, answers=EAGER), by_key(records)
    for i in range(others):
        other.outcome(aggregate_call(f"q{i}", 0), given_inputs)
    assert other.outcome(call, given_inputs) == expected
    named = list(call.after)
    order.shuffle(named)
    assert other.outcome(structs.replace(call, after=tuple(named)), given_inputs) == expected


def test_an_expert_that_aggregates_has_other_draws_than_when_it_answers() -> None:
    world = make_world(40, answers=replace(EAGER, deference=0.0), aggregator_lengths={"A": FINE})
    own = [ask(world, name) for name in names(40)]
    merged = [world.outcome(structs.replace(aggregate_call(name), expert="A"), {}) for name in names(40)]
    assert all(a.output_tokens != b.output_tokens for a, b in zip(own, merged, strict=True))
    assert any(a.answer != b.answer for a, b in zip(own, merged, strict=True))


def test_what_it_reads_does_not_change_how_much_it_writes() -> None:
    world = make_world(60, answers=EAGER)
    for name in names(60):
        assert len({read(world, *seen, question=name).output_tokens for seen in ("BBB", "ABB", "ACD", "")}) == 1


@pytest.mark.parametrize("answers", [None, EAGER])
def test_a_length_from_nowhere_is_refused(answers) -> None:
    world = make_world(answers=answers, lengths={"G": FINE}, aggregator_lengths={"H": FINE})
    for call, message in (
        (make_call(expert="C"), r"length distribution for expert 'C', got \['G'\]: add world.output_tokens.C"),
        (aggregate_call(), r"length distribution for aggregator 'G', got \['H'\]: add world\.merged_tokens\.G"),
    ):
        with pytest.raises(ValueError, match=message):
            world.outcome(call, {})


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
        assert structs.replace(sparse, sparse_answers=None) == full
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
