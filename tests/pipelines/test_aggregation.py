from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from mosaic.core.chat import count_text_tokens
from mosaic.core.results import CallRecord, CallStatus
from mosaic.core.workload import AGGREGATE, PROPOSE, AnswerKind, CallKey, Question, Workload
from mosaic.pipelines.aggregation import (
    CUT_MARKER,
    FORM,
    MIN_RESPONSE_TOKENS,
    Response,
    as_counted,
    fits_context,
    lay_out,
    prompt_limit,
    shares,
)
from mosaic.pipelines.node import Node, node_calls
from mosaic.pipelines.prompts import check_texts, expert_prompt
from tests import run_records
from tests.factories import make_call, make_expert

QUESTION = Question(id="q", prompt_tokens=10, text="q" * 40)
INF = make_expert("Agg", context_tokens=10**6)


def make_record(slot=0, *, output_tokens=500, **changes) -> CallRecord:
    return run_records.make_record("q", key=CallKey("q", PROPOSE, slot), output_tokens=output_tokens, **changes)


def make_response(text: str, expert: str = "A") -> Response:
    return Response(expert, count_text_tokens(text), text)


def call_of(question, records, aggregator=INF):
    """Make the only call of a node that reads the records."""
    node = Node(name=AGGREGATE, experts=(aggregator,), after=(PROPOSE,))
    return next(node_calls(node, question, records))


def layout_of(question, records, aggregator=INF):
    return lay_out(question, [Response(one.expert, one.visible_tokens) for one in records], aggregator)


def aggregator_prompt(question, responses, aggregator) -> str:
    return lay_out(question, responses, aggregator).text()


def reading(tokens: int):
    """Make an aggregator that can read so many tokens."""
    return make_expert("Agg", context_tokens=tokens + 100, max_output_tokens=100)


def scaffold_tokens(num_responses: int) -> int:
    """Count the prompt's own tokens: those of a prompt with one-token texts, less the texts."""
    question = Question(id="q", prompt_tokens=1, text="qqqq")
    prompt = aggregator_prompt(question, [make_response("rrrr")] * num_responses, INF)
    return count_text_tokens(prompt) - 2 - num_responses


def test_call_comes_after_all_that_it_may_read_and_pays_for_what_finished():
    read = (make_record(0, visible_tokens=0), make_record(1, status=CallStatus.FAILED), make_record(2))
    call = call_of(QUESTION, read)
    assert (call.key, call.expert) == (CallKey("q", AGGREGATE, 0), "Agg")
    assert call.after == tuple(CallKey("q", PROPOSE, slot) for slot in range(3))
    assert call.prompt_tokens == scaffold_tokens(1) + 20 + 500  # slot 0 wrote nothing but thinking


def test_prompt_leaves_the_smallest_of_reserve_output_limit_and_half_the_context():
    assert prompt_limit(make_expert(context_tokens=32768, max_output_tokens=32768)) == 32768 - 4096
    assert prompt_limit(make_expert(context_tokens=32768, max_output_tokens=1000)) == 32768 - 1000
    assert prompt_limit(make_expert(context_tokens=4096, max_output_tokens=4096)) == 2048
    assert prompt_limit(make_expert(context_tokens=32768), min_output_tokens=1) == 32767


def test_cut_response_keeps_its_end_and_others_stay_whole():
    long, short = "x" * 2999 + "The answer is (B)", "y" * 320
    limit = scaffold_tokens(2) + 20 + count_text_tokens(short) + 100
    prompt = aggregator_prompt(QUESTION, [make_response(long), make_response(short)], reading(limit))
    kept = 4 * 100 - len(CUT_MARKER)
    assert f"Response 1:\n{CUT_MARKER}{long[-kept:]}\n\nResponse 2:\n{short}\n\n" in prompt
    assert count_text_tokens(prompt) == limit


def test_cut_goes_by_the_tokens_that_are_known():
    dense = "z" * 4000  # of a script with a token per character
    prompt = aggregator_prompt(QUESTION, [Response("A", 4000, dense)], reading(scaffold_tokens(1) + 20 + 100))
    assert prompt.count("z") == 100 - count_text_tokens(CUT_MARKER)


def test_second_copy_of_the_question_goes_first_then_the_question_is_refused():
    question = Question(id="q", prompt_tokens=500, text="q" * 2000)
    responses, records = [make_response("r" * 4000)], [make_record(visible_tokens=1000)]
    twice = scaffold_tokens(1) + 2 * 500 + MIN_RESPONSE_TOKENS
    assert aggregator_prompt(question, responses, reading(twice)).count("q" * 2000) == 2
    single = aggregator_prompt(question, responses, reading(twice - 1))
    assert single.count("q" * 2000) == 1
    assert "question again" not in single
    assert single.count("r" * MIN_RESPONSE_TOKENS) > 0
    assert call_of(question, records, reading(twice - 1)).prompt_tokens <= twice - 1
    sizes = [limit for limit in range(600, 800) if fits_context(question, reading(limit), 1)]
    least = sizes[0]
    assert sizes == list(range(least, 800))
    assert call_of(question, records, reading(least)).prompt_tokens == least
    rule = f"question q: .*1 responses .*must be at most the {least - 1} tokens .*, got {least}"
    with pytest.raises(ValueError, match=rule):
        layout_of(question, records, reading(least - 1))
    with pytest.raises(ValueError, match=rule):
        aggregator_prompt(question, responses, reading(least - 1))


def test_fewer_responses_fit_where_more_do():
    limits = [min(x for x in range(10, 3000) if fits_context(QUESTION, reading(x + 100), n)) for n in range(4)]
    assert limits == sorted(limits)
    assert limits[3] - limits[2] > MIN_RESPONSE_TOKENS  # and its header


def test_without_any_response_the_aggregator_answers_alone():
    alone = aggregator_prompt(QUESTION, [], INF)
    assert aggregator_prompt(QUESTION, [Response("A", 0, ""), make_response(" \n")], INF) == alone
    assert alone.count(QUESTION.text) == 1
    assert "Response" not in alone
    assert call_of(QUESTION, [make_record(visible_tokens=0)]).prompt_tokens == count_text_tokens(alone)
    assert call_of(QUESTION, []).after == ()


def test_responses_are_numbered_without_gap_and_name_no_model():
    responses = [make_response("first", "Llama"), make_response(" ", "Qwen"), make_response("\n\nthird\n", "Gemma")]
    prompt = aggregator_prompt(QUESTION, responses, INF)
    assert "Response 1:\nfirst\n\nResponse 2:\nthird\n\n" in prompt
    assert "Response 3" not in prompt
    assert not any(name in prompt for name in ("Llama", "Qwen", "Gemma", "Agg"))


def test_question_stands_before_and_after_the_responses():
    prompt = aggregator_prompt(QUESTION, [make_response("mine")], INF)
    first, last = prompt.index(QUESTION.text), prompt.rindex(QUESTION.text)
    assert first < prompt.index("mine") < last


@pytest.mark.parametrize(
    ("kind", "form"), [(AnswerKind.CHOICE, "The answer is (X)"), (AnswerKind.MATH, "\\boxed{"), (AnswerKind.TEXT, None)]
)
def test_instruction_asks_for_the_form_of_the_answer_last(kind, form):
    question = replace(QUESTION, answer_kind=kind, num_options=4 if kind is AnswerKind.CHOICE else None)
    for responses in ([], [make_response("mine")]):
        prompt = aggregator_prompt(question, responses, INF)
        tail = prompt[prompt.rindex(QUESTION.text) :]
        assert tail.splitlines()[-1].startswith("Finish with")
        assert [form_ for form_ in ("The answer is (X)", "\\boxed{") if form_ in prompt] == [form] * (form is not None)


def test_absent_texts_are_named():
    with pytest.raises(ValueError, match="question q: text must be there to write a prompt from, got None"):
        aggregator_prompt(Question(id="q", prompt_tokens=10), [], INF)
    with pytest.raises(ValueError, match="question q: text of response 1 must be there, got None"):
        aggregator_prompt(QUESTION, [make_response("here"), Response("A", 10)], INF)


@given(st.lists(st.integers(1, 900), max_size=6), st.integers(1, 200), st.integers(400, 5000))
def test_call_counts_the_tokens_of_the_prompt(lengths, question_tokens, limit):
    question = Question(id="q", prompt_tokens=question_tokens, text="q" * 4 * question_tokens)
    responses = [make_response("r" * 4 * tokens) for tokens in lengths]
    records = [make_record(slot, visible_tokens=tokens) for slot, tokens in enumerate(lengths)]
    aggregator = reading(limit)
    if not fits_context(question, aggregator, len(lengths)):
        with pytest.raises(ValueError, match="tokens that the aggregator can read"):
            layout_of(question, records, aggregator)
        return
    call = call_of(question, records, aggregator)
    assert abs(count_text_tokens(aggregator_prompt(question, responses, aggregator)) - call.prompt_tokens) <= 1
    assert call.prompt_tokens <= prompt_limit(aggregator)
    assert aggregator.output_limit(call.prompt_tokens) >= 100


@given(st.lists(st.integers(1, 3000), max_size=5), st.integers(1, 300))
def test_call_never_counts_less_than_the_prompt_has(characters, question_characters):
    text = "q" * question_characters
    question = Question(id="q", prompt_tokens=count_text_tokens(text), text=text)
    responses = [make_response("r" * number) for number in characters]
    records = [make_record(slot, visible_tokens=r.visible_tokens) for slot, r in enumerate(responses)]
    aggregator = reading(2000)
    spare = call_of(question, records, aggregator).prompt_tokens - count_text_tokens(
        aggregator_prompt(question, responses, aggregator)
    )
    assert 0 <= spare <= 2 + len(responses)


@given(st.lists(st.integers(0, 500), max_size=8), st.integers(0, 1500))
def test_shares_are_fair_and_use_what_there_is(tokens, budget):
    given_ = shares(tokens, budget)
    assert sum(given_) <= budget
    assert all(share <= length for share, length in zip(given_, tokens, strict=True))
    cut = [share for share, length in zip(given_, tokens, strict=True) if share < length]
    assert len(set(cut)) <= 1
    assert all(share <= cut[0] for share in given_ if cut)
    assert sum(tokens) <= budget if not cut else budget - sum(given_) < len(cut)  # one more for each would be too much


@pytest.mark.parametrize("question_characters", [40, 300, 900, 1500])
@pytest.mark.parametrize("lengths", [(200, 200, 200), (3000, 100, 100), (2000, 2000, 2000)])
def test_what_engines_counted_makes_a_prompt_fit_where_every_character_is_a_token(question_characters, lengths):
    text = "q" * question_characters
    question = Question(id="q", prompt_tokens=count_text_tokens(text), text=text)
    experts = [
        run_records.make_record(
            "q",
            expert=name,
            key=CallKey("q", PROPOSE, slot),
            prompt_tokens=question_characters + 20,
            visible_tokens=length,
        )
        for slot, (name, length) in enumerate(zip("ABC", lengths, strict=True))
    ]
    aggregator = make_expert("Agg", context_tokens=4000, max_output_tokens=100)
    counted = as_counted(question, experts, aggregator, text_rate=4)
    responses = [Response(record.expert, record.visible_tokens, "r" * record.visible_tokens) for record in experts]
    assert len(aggregator_prompt(counted, responses, aggregator)) < 4000
    cut = layout_of(counted, experts, aggregator).cut_experts
    assert set(cut) <= {name for name, length in zip("ABC", lengths, strict=True) if length == max(lengths)}


def test_counts_change_nothing_where_estimates_suffice_and_never_keep_out_what_fits():
    record = make_record(0, visible_tokens=50, prompt_tokens=10)
    assert as_counted(QUESTION, [record], INF, text_rate=0.9) == QUESTION
    narrow = reading(scaffold_tokens(1) + 10 + MIN_RESPONSE_TOKENS)
    assert fits_context(QUESTION, narrow, 1)
    huge = as_counted(QUESTION, [structs.replace(record, prompt_tokens=10**6)], narrow, text_rate=1)
    assert fits_context(huge, narrow, 1)
    assert call_of(huge, [record], narrow).prompt_tokens <= prompt_limit(narrow)


CHOICE = Question(id="q0", prompt_tokens=9, text="A or B?", answer_kind=AnswerKind.CHOICE, num_options=2)
FREE = Question(id="q1", prompt_tokens=9, text="Why?")


def test_an_expert_reads_the_question_and_how_to_state_an_answer_that_is_extracted():
    assert expert_prompt(CHOICE) == f"{CHOICE.text}\n\n{FORM[AnswerKind.CHOICE]}"
    assert expert_prompt(FREE) == FREE.text


def test_a_question_without_a_text_cannot_be_asked():
    silent = Question(id="q7", prompt_tokens=9)
    workload = Workload(name="mute", questions=(CHOICE, silent), calls=(make_call("q7"),))
    with pytest.raises(ValueError, match=r"workload mute: question q7 must have a text .*, got None: backend.mode"):
        check_texts(workload)
    with pytest.raises(ValueError, match="question q7: text must be there"):
        expert_prompt(silent)
    check_texts(Workload(name="fine", questions=(CHOICE,), calls=(make_call("q0"),)))
