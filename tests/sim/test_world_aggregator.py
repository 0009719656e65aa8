"""The simulated aggregator: its luck is its own, and its answer and length follow what it reads."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic.core.realization import Outcome
from mosaic.core.results import CallRecord, Inputs
from sim.cluster.session import cut_off
from sim.world.world import World
from tests.factories import make_expert
from tests.sim.answer_worlds import (
    FINE,
    aggregate_call,
    ask,
    make_model,
    make_response,
    make_world,
    names,
)

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
    # Two policies: other calls added, cancelled, asked before and listed in another order.
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
    assert other.outcome(replace(call, after=tuple(named)), given_inputs) == expected


def test_unparsable_and_missing_responses_support_nothing() -> None:
    world = make_world(60, answers=EAGER)
    for name in names(60):
        expected = read(world, "A", "B", question=name)
        assert read(world, "A", "B", None, question=name) == expected
        records = [make_response(name, slot, answer) for slot, answer in enumerate("AB")]
        assert world.outcome(aggregate_call(name, 0, 1, 2), by_key(records)) == expected
    alone = [read(world, None, None, None, question=name) for name in names(60)]
    assert alone == [read(world, question=name) for name in names(60)]
    assert alone != [read(world, "A", "A", None, question=name) for name in names(60)]


def test_an_expert_that_aggregates_has_other_luck_than_when_it_answers() -> None:
    world = make_world(40, answers=replace(EAGER, deference=0.0), aggregator_lengths={"A": FINE})
    own = [ask(world, name) for name in names(40)]
    merged = [world.outcome(replace(aggregate_call(name), expert="A"), {}) for name in names(40)]
    assert all(a.output_tokens != b.output_tokens for a, b in zip(own, merged, strict=True))
    assert any(a.answer != b.answer for a, b in zip(own, merged, strict=True))


def test_what_it_reads_does_not_change_how_much_it_writes() -> None:
    world = make_world(60, answers=EAGER)
    for name in names(60):
        assert len({read(world, *seen, question=name).output_tokens for seen in ("BBB", "ABB", "ACD", "")}) == 1


def test_a_length_respects_the_experts_limit() -> None:
    world = make_world(200, answers=EAGER)
    limit = sorted(read(world, *"ABC", question=name).output_tokens for name in names(200))[100]
    expert = make_expert("G", max_output_tokens=limit, context_tokens=100_000)
    num_cut = 0
    for name in names(200):
        outcome = read(world, *"ABC", question=name)
        job = cut_off(aggregate_call(name), expert, outcome)
        assert job.output_tokens == min(limit, outcome.output_tokens)
        assert job.answer == (outcome.answer if outcome.output_tokens < limit else None)
        num_cut += job.answer is None
    assert 0 < num_cut < 200


@pytest.mark.parametrize("answers", [None, EAGER])
def test_an_aggregators_length_from_nowhere_is_refused(answers) -> None:
    world = make_world(answers=answers, lengths={"G": FINE}, aggregator_lengths={"H": FINE})
    message = (
        r"length distribution for aggregator 'G', got \['H'\]: "
        r"add world\.merged_tokens\.G"
    )
    with pytest.raises(ValueError, match=message):
        world.outcome(aggregate_call(), {})
