"""Budgets: who has one and who is late, what leaving a response out loses, and which setting is promised."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from mosaic.core.results import CallStatus
from mosaic.core.workload import AGGREGATE, PROPOSE, AnswerKind, CallKey
from mosaic.pipelines.budget_choice import (
    LEVELS,
    Batch,
    Calibration,
    Kinds,
    choose_budgets,
    families_of,
    is_any_safe,
    path_of,
    steps,
)
from mosaic.pipelines.budgets import Budgets, cut_at, cut_record
from mosaic.pipelines.loss_table import BudgetSetting, LossTable, loss_table
from mosaic.pipelines.node import node_calls
from mosaic.pipelines.rules.ballot import decide_at, plurality
from mosaic.pipelines.rules.calibration_answers import CalibrationQuestion, Observed
from mosaic.pipelines.rules.rule import Never, Promised
from mosaic.pipelines.walk import walk
from tests.answered_questions import answered, make_moa, make_question
from tests.calibration_questions import make_ballot_of
from tests.calibration_questions import make_question as calibrated
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


def late_slot(done: dict[CallKey, object], num_slots: int, budgets: Budgets = HEDGED) -> int | None:
    keys = [CallKey("q", PROPOSE, slot) for slot in range(num_slots)]
    found = budgets.straggler({key: "ABC"[key.slot % 3] for key in keys}, done)
    return None if found is None else found.slot


@pytest.mark.parametrize(
    ("tokens", "late"),
    [
        ((10, None, 99), 1), ((11, 10, 99), 0), ((None, None, 5), None), ((10, 10, 99), None), ((10, 10, None), None),
        ((10, None), None),
    ],
)  # fmt: skip
def test_of_three_calls_one_can_be_late_if_it_has_a_hedge(tokens, late):
    assert late_slot(records(*tokens), len(tokens)) == late
    assert late_slot(records(*tokens), len(tokens), Budgets()) is None


def test_a_call_that_was_cut_has_not_ended_in_time():
    assert late_slot(records(5, 5, 5) | records(5, status=CallStatus.CUT), 3) == 0


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
    cut = {key: replace(record, status=CallStatus.CUT, answer=None) for key, record in done.items()}
    state = walk(make_moa(Never()), question, calls, cut | {calls[slot].key: done[calls[slot].key]})
    assert state.submit == ()
    assert state.is_over
    assert state.end().answer.answer == said


BATCH = Batch(1000, 400)
BOTH = Kinds(cuts=True, hedges=True)


def make_table(num: int, seed: int = 0, *, long_is_right_frac: float = 0.5) -> LossTable:
    """Three calls a question, of which the aggregator makes the best; votes are right at random, long ones as told."""
    rng = np.random.default_rng(seed)
    tokens = rng.lognormal(6, 1, (num, 3)).astype(int) + 1
    is_long = (tokens > 2000).any(axis=1)[:, None]
    right = rng.random((num, 4)) < np.where(is_long, long_is_right_frac, 0.5)
    return LossTable(
        tokens=tokens, num_slots=np.full(num, 3), confidence=rng.choice([1 / 3, 2 / 3, 1.0], (num, 4)),
        vote_right=rng.random((num, 4)) < 0.5, slot_right=np.zeros((num, 3), dtype=bool), read_right=right,
        read_tokens=rng.lognormal(5, 1, (num, 4)).astype(int) + 1,
    )  # fmt: skip


def path(fit: LossTable, thresholds, kinds: Kinds = BOTH, accepted: float = 0.02, *, is_gate_chosen: bool = True):
    families = families_of(thresholds, kinds, is_gate_chosen=is_gate_chosen)
    return path_of(fit, families, BATCH, accepted, adds_hedges=kinds == (True, True))


def test_settings_without_budgets_are_those_of_a_gate_whose_threshold_is_chosen() -> None:
    fixed = [setting for family in families_of([0.5], BOTH, is_gate_chosen=False) for setting in family]
    assert all(any(setting[1:]) for setting in fixed)
    chosen = [setting for family in families_of([None, 0.5], BOTH, is_gate_chosen=True) for setting in family]
    assert [setting for setting in chosen if not any(setting[1:])] == [BudgetSetting(0.5)]
    (hedges,) = families_of([None], Kinds(cuts=False, hedges=True), is_gate_chosen=False)
    assert [setting[1:] for setting in hedges] == [(None, None, level) for level in LEVELS]


def test_a_path_goes_from_safe_to_fast_and_only_through_what_loses_less_than_is_accepted() -> None:
    fit = make_table(2000)
    settings = path(fit, [None, 0.9])
    numbers = [steps(fit, setting, BATCH) for setting in settings]
    assert len(settings) > 2
    assert numbers == sorted(numbers, reverse=True)
    assert numbers[0] < steps(fit, BudgetSetting(None), BATCH)
    assert all(fit.losses(setting).mean() < 0.02 for setting in settings)


def make_silent_table(num: int, tokens: list[int]) -> LossTable:
    """No votes, and an aggregator that is right whatever it reads: only what it does not read can lose."""
    return LossTable(
        tokens=np.tile(tokens, (num, 1)), num_slots=np.full(num, 3), confidence=np.full((num, 4), -1.0),
        vote_right=np.zeros((num, 4), dtype=bool), slot_right=np.zeros((num, 3), dtype=bool),
        read_right=np.ones((num, 4), dtype=bool), read_tokens=np.full((num, 4), 10),
    )  # fmt: skip


def test_a_hedge_that_earns_no_time_is_not_tried_however_safe_it_looks() -> None:
    fit = make_table(2000)
    fit.read_right[:, 1:] = True
    hedged = [setting for setting in path(fit, [None]) if setting.hedge_tokens is not None]
    same = [setting._replace(hedge_tokens=None) for setting in hedged]
    assert hedged, "some earn time"
    for hedge, none in zip(hedged, same, strict=True):
        assert steps(fit, hedge, BATCH) < 0.98 * steps(fit, none, BATCH)


def test_where_every_faster_setting_loses_too_much_the_path_is_empty() -> None:
    table = make_silent_table(500, [30_000, 30_000, 30_000])
    assert path(table, [None]) == ()
    (note,) = choose(table, ()).notes()
    assert note.startswith("budgets: the questions cannot promise a loss of at most 2 pp")
    assert note.endswith("no setting that loses less is 2% faster on those that lay out the path: there are none")


def make_lossless_table(num: int, seed: int) -> LossTable:
    """Nothing is lost unless all three responses are cut."""
    table = make_table(num, seed)
    table.read_right[:] = table.slot_right[:] = True
    table.confidence[:] = -1
    return table


@pytest.mark.parametrize("num", [60, 99])
def test_few_questions_that_lose_nothing_lay_out_a_path_from_slow_to_fast(num) -> None:
    fit, certify = make_lossless_table(num, 1), make_lossless_table(900, 2)
    settings = path(fit, [None], Kinds(cuts=True, hedges=False), 0.01, is_gate_chosen=False)
    numbers = [steps(fit, setting, BATCH) for setting in settings]
    assert len(settings) > 2
    assert numbers == sorted(numbers, reverse=True)
    assert not any(fit.losses(setting).any() for setting in settings)
    chosen = choose_budgets(fit, certify, settings, Promised("answers.parquet", 0.01, 0.05, 0.1)).setting
    assert chosen is not None, "they can be promised"


def test_where_every_setting_loses_as_much_as_is_accepted_the_screen_says_so() -> None:
    table = make_silent_table(500, [40_000, 40_000, 40_000])
    cuts = Kinds(cuts=True, hedges=False)
    assert path(table, [None], cuts) == ()
    families = tuple(families_of([None], cuts, is_gate_chosen=False))
    is_safe = is_any_safe(table, families, 0.02)
    assert not is_safe
    assert is_any_safe(make_silent_table(500, [30_000] * 3), families, 0.02)
    (note,) = choose(table, ())._replace(is_any_safe=is_safe).notes()
    assert note.endswith("every setting loses as much on those that lay out the path: there are none")


def choose(certify: LossTable, settings, accepted: float = 0.02) -> Calibration:
    return choose_budgets(make_table(1500, 1), certify, settings, Promised("answers.parquet", accepted, 0.05, 0.3))


def test_a_path_is_walked_up_to_the_first_setting_that_fails() -> None:
    safe, bad = BudgetSetting(None, 30_000, 15_000), BudgetSetting(None, 50, 25)
    choice = choose(make_table(3000), [safe, bad, safe])
    assert choice.setting == safe
    assert [test.setting for test in choice.tests] == [safe, bad]
    assert choice.promise_frac is not None
    assert choice.promise_frac <= 0.02
    assert choice.tests[1].p_value > 0.05
    (note,) = choice.notes()
    assert note.startswith("budgets: proposals 30,000 tokens, aggregations 15,000 tokens; nothing is skipped; 3000")


def test_too_few_questions_promise_nothing_and_say_what_they_could() -> None:
    choice = choose(make_table(60), [BudgetSetting(None, 30_000, 15_000)])
    assert choice.setting is None
    assert choice.promise_frac is not None
    assert choice.promise_frac > 0.02
    assert "60 questions cannot promise a loss of at most 2 pp" in choice.notes()[0]
    assert choice.report()["propose_tokens"] is None


@pytest.mark.parametrize("long_is_right_frac", [0.1, 0.9])
def test_a_promise_is_rarely_broken_where_long_answers_are_worse_and_where_they_are_better(long_is_right_frac) -> None:
    population = make_table(20_000, long_is_right_frac=long_is_right_frac)
    rng = np.random.default_rng(1)
    fit = population.take(rng.integers(20_000, size=500))
    settings = path(fit, [None], Kinds(cuts=True, hedges=False), is_gate_chosen=False)
    truth = {setting: population.losses(setting).mean() for setting in settings}
    broken = taken = 0
    for _ in range(200):
        choice = choose(population.take(rng.integers(20_000, size=1500)), settings)
        taken += choice.setting is not None
        broken += choice.setting is not None and truth[choice.setting] > 0.02
    assert broken <= 20, "the 99% limit of the binomial at a risk of 5%"
    assert taken > 100, "else nothing is tested"


TOKENS = st.integers(1, 20)


@st.composite
def known(draw: st.DrawFn) -> CalibrationQuestion:
    votes = draw(st.text("ABC-", min_size=2, max_size=4))
    graded = calibrated("q", votes, experts="WXYZ", aggregator=draw(st.sampled_from(["A", "B", None])))
    said, whole_tokens = [draw(st.sampled_from(["A", "B", None])) for _ in votes], draw(TOKENS)
    seen = tuple(Observed(draw(TOKENS), whole_tokens, answer, answer == "A", draw(TOKENS)) for answer in said)
    return CalibrationQuestion(
        ballot=graded.ballot, vote_correct=graded.vote_correct, aggregator_answer=graded.aggregator_answer,
        aggregator_correct=graded.aggregator_correct, observed=seen,
    )  # fmt: skip


def ways(question: CalibrationQuestion, setting: BudgetSetting) -> list[bool]:
    """List whether a question is right, for each way in which it may come out."""
    threshold, propose, aggregate, hedge = setting
    seen = question.observed
    votes = "".join(vote.answer or "-" for vote in question.ballot.votes)

    def decided(without: Sequence[int]):
        ballot = make_ballot_of("".join("-" if i in without else v for i, v in enumerate(votes)), experts="WXYZ")
        return decide_at(ballot, plurality(ballot), threshold)

    def read(without: int | None) -> bool:
        right, tokens = question.aggregator_correct, seen[0].aggregator_tokens
        if without is not None:
            right, tokens = seen[without].left_out_correct, seen[without].left_out_tokens
        vote = decided([] if without is None else [without]).answer == "A"
        return vote if aggregate is not None and tokens > aggregate else right

    written = [one.output_tokens for one in seen]
    cut = [i for i, tokens in enumerate(written) if propose is not None and tokens > propose]
    over = [i for i, tokens in enumerate(written) if hedge is not None and (tokens > hedge or i in cut)]
    if len(votes) >= 3 and len(over) == 1 and not decided(over).skip:
        in_time = [decided([]).answer == "A"] if not cut and decided([]).skip else []
        return [*in_time, read(over[0])]
    if cut and len(cut) == len(votes) - 1:
        return [next(vote for i, vote in enumerate(votes) if i not in cut) == "A"]
    if len(cut) > 1:
        return [False]
    return [decided(cut).answer == "A"] if decided(cut).skip else [read(cut[0] if cut else None)]


LIMITS = st.none() | st.integers(1, 20)
SETTINGS = st.builds(BudgetSetting, st.sampled_from([None, 0.3, 0.5, 0.66, 1.0]), LIMITS, LIMITS, LIMITS)


@settings(max_examples=75, deadline=None)
@given(st.lists(known(), min_size=1, max_size=8), SETTINGS)
def test_losses_are_those_of_the_worst_way(questions: list[CalibrationQuestion], setting: BudgetSetting) -> None:
    expected = [int(question.aggregator_correct) - int(all(ways(question, setting))) for question in questions]
    assert loss_table(questions, plurality).losses(setting).tolist() == expected


@settings(max_examples=100, deadline=None)
@given(st.lists(known(), min_size=1, max_size=8), SETTINGS)
def test_budgets_never_make_a_question_write_more(questions: list[CalibrationQuestion], setting: BudgetSetting) -> None:
    table = loss_table(questions, plurality)
    total, chain = table.written_tokens(setting._replace(hedge_tokens=None))
    whole, _ = table.written_tokens(BudgetSetting(None))
    assert (chain <= total).all()
    assert (total <= whole + table.read_tokens.max(axis=1)).all()
    assert table.losses(BudgetSetting(None)).tolist() == [0] * len(questions), "always aggregating whole responses"


def test_what_a_question_writes_one_call_after_the_other() -> None:
    question = calibrated("q", "ABB")
    seen = tuple(Observed(tokens, 7, "A", True, 4) for tokens in (5, 9, 30))
    question = CalibrationQuestion(
        ballot=question.ballot, vote_correct=question.vote_correct, aggregator_answer="A", aggregator_correct=True,
        observed=seen,
    )  # fmt: skip
    table = loss_table([question], plurality)
    assert [of.tolist() for of in table.written_tokens(BudgetSetting(None))] == [[51], [37]]
    assert [of.tolist() for of in table.written_tokens(BudgetSetting(None, 20, 6))] == [[5 + 9 + 20 + 4], [24]]
    assert [of.tolist() for of in table.written_tokens(BudgetSetting(1.0, hedge_tokens=10))] == [[5 + 9 + 10 + 4], [14]]
    assert [of.tolist() for of in table.written_tokens(BudgetSetting(0.6))] == [[44], [30]], (
        "the longest one settles it"
    )
    table.confidence[:, 3] = 0.7
    assert [of.tolist() for of in table.written_tokens(BudgetSetting(0.6))] == [[23], [9]], "it is not waited for"


def test_taking_questions_takes_all_that_is_known_of_them() -> None:
    table = LossTable(
        tokens=np.array([[1], [2]]), num_slots=np.array([1, 1]), confidence=np.ones((2, 2)),
        vote_right=np.array([[True, True], [False, False]]), slot_right=np.ones((2, 1), dtype=bool),
        read_right=np.ones((2, 2), dtype=bool),
        read_tokens=np.ones((2, 2), dtype=int),
    )  # fmt: skip
    taken = table.take(np.array([1, 1, 0]))
    assert len(taken) == 3
    assert taken.losses(BudgetSetting(1.0)).tolist() == [1, 1, 0]
