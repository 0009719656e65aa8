"""Budgets: who has one, who is late, and what a question that is aggregated without a response reads."""

import pytest

from mosaic.core.results import CallStatus
from mosaic.core.workload import AGGREGATE, PROPOSE, AnswerKind, CallKey
from mosaic.pipelines.budgets import Budgets, cut_at, cut_record
from mosaic.pipelines.node import node_calls
from mosaic.pipelines.rules.rule import Never
from mosaic.pipelines.walk import walk
from tests.answered_questions import answered, make_moa, make_question
from tests.factories import make_call, make_expert
from tests.run_records import make_record

HEDGED = Budgets(hedge_tokens={"A": 10, "B": 10})


def records(*tokens: int | None, status: CallStatus = CallStatus.FINISHED) -> dict[CallKey, object]:
    """Calls by slot, experts in turn; None: it has not ended."""
    keys = [CallKey("q", PROPOSE, slot) for slot in range(len(tokens))]
    return {
        key: make_record(key=key, expert="ABC"[key.slot % 3], output_tokens=count, status=status)
        for key, count in zip(keys, tokens, strict=True)
        if count is not None
    }


def late_slot(done: dict[CallKey, object], num_slots: int = 3, budgets: Budgets = HEDGED) -> int | None:
    keys = [CallKey("q", PROPOSE, slot) for slot in range(num_slots)]
    found = budgets.late_candidate({key: "ABC"[key.slot % 3] for key in keys}, done)
    return None if found is None else found.slot


@pytest.mark.parametrize(
    ("tokens", "late"),
    [((10, None, 99), 1), ((11, 10, 99), 0), ((None, None, 5), None), ((10, 10, 99), None), ((10, 10, None), None)],
)
def test_only_one_call_can_be_late_and_only_one_that_has_a_hedge(tokens, late):
    assert late_slot(records(*tokens)) == late
    assert late_slot(records(*tokens), budgets=Budgets()) is None


def test_of_two_calls_none_is_late():
    assert late_slot(records(10, None), num_slots=2) is None


def test_a_call_that_was_cut_has_not_ended_in_time():
    done = records(5, 5, 5) | records(5, status=CallStatus.CUT)
    assert late_slot(done) == 0


def test_experts_get_a_budget_where_they_may_write_more():
    assert cut_at([make_expert("A", max_output_tokens=100), make_expert("B", max_output_tokens=101)], 100) == {"B": 100}


def test_a_budget_must_be_a_token_at_least():
    with pytest.raises(ValueError, match="budgets: cut_tokens.propose.A must be at least 1, got 0"):
        Budgets(cut_tokens={PROPOSE: {"A": 0}})


def test_a_whole_call_is_cut_in_thought():
    budgets = Budgets(cut_tokens={PROPOSE: {"A": 10}})
    assert budgets.limit_of(make_call("q", expert="B")) is None
    short, long = make_record(output_tokens=10, answer="B"), make_record(output_tokens=11, answer="B")
    assert cut_record(short, budgets) == short
    cut = cut_record(long, budgets)
    assert (cut.status, cut.output_tokens, cut.answer, cut.visible_tokens) == (CallStatus.CUT, 10, None, 0)


def test_an_aggregator_that_teaches_also_answers_without_each_response():
    question, calls, done = answered(make_question("q"), ["A", "B", "A"])
    node = make_moa(Never()).nodes[1]
    alone = list(node_calls(node, question, list(done.values())))
    assert [call.key for call in alone] == [CallKey("q", AGGREGATE, 0)]
    taught = type(node)(name=AGGREGATE, experts=node.experts, after=(PROPOSE,), when="unsettled", leaves_one_out=True)
    made = list(node_calls(taught, question, list(done.values())))
    assert made[0] == alone[0]
    keys = [call.key for call in calls]
    assert [set(keys) - set(call.after) for call in made] == [set(), {keys[0]}, {keys[1]}, {keys[2]}]
    assert [call.key.slot for call in made] == [0, 1, 2, 3]


@pytest.mark.parametrize(("kind", "said"), [(AnswerKind.TEXT, "an essay"), (AnswerKind.CHOICE, "B")])
@pytest.mark.parametrize("slot", [0, 1, 2])
def test_what_budgets_leave_alone_is_the_answer_also_of_free_text(kind, said, slot):
    question, calls, done = answered(make_question("q", kind), [said] * 3)
    cut = {key: record._replace(status=CallStatus.CUT, answer=None) for key, record in done.items()}
    state = walk(make_moa(Never()), question, calls, cut | {calls[slot].key: done[calls[slot].key]})
    assert state.submit == ()
    assert state.is_over
    assert state.end().answer.answer == said
