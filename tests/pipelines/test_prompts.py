"""What models read in a live run."""

import pytest

from mosaic.core.results import CallStatus
from mosaic.core.workload import AGGREGATE, AnswerKind, Question, Workload
from mosaic.pipelines.aggregation import FORM, Response, aggregator_prompt
from mosaic.pipelines.prompts import aggregator_prompts, check_texts, expert_prompt, expert_prompts
from tests.factories import make_call, make_expert
from tests.run_records import make_key, make_record

CHOICE = Question(id="q0", prompt_tokens=9, text="A or B?", answer_kind=AnswerKind.CHOICE, num_options=2)
FREE = Question(id="q1", prompt_tokens=9, text="Why?")


def test_an_expert_reads_the_question_and_how_to_state_an_answer_that_is_extracted():
    assert expert_prompt(CHOICE) == f"{CHOICE.text}\n\n{FORM[AnswerKind.CHOICE]}"
    assert expert_prompt(FREE) == FREE.text


def test_each_call_asks_its_own_question():
    prompts = expert_prompts([CHOICE, FREE])
    assert prompts(make_call("q1", slot=2)) == expert_prompt(FREE)
    assert prompts(make_call("q0")) == expert_prompt(CHOICE)


def test_a_question_without_a_text_cannot_be_asked():
    silent = Question(id="q7", prompt_tokens=9)
    workload = Workload(name="mute", questions=(CHOICE, silent), calls=(make_call("q7"),))
    with pytest.raises(ValueError, match=r"workload mute: question q7 must have a text .*, got None: backend.mode"):
        check_texts(workload)
    with pytest.raises(ValueError, match="question q7: text must be there"):
        expert_prompt(silent)
    check_texts(Workload(name="fine", questions=(CHOICE,), calls=(make_call("q0"),)))


def test_an_aggregator_reads_the_finished_responses_in_the_order_of_their_slots():
    aggregator = make_expert("J", context_tokens=8192)
    records = [
        make_record(key=make_key("q0", slot=2), expert="C", output_tokens=50, visible_tokens=3),
        make_record(key=make_key("q0", slot=0), expert="A", output_tokens=4),
        make_record(key=make_key("q0", slot=1), expert="B", status=CallStatus.FAILED),
        make_record(key=make_key("q1", slot=0), expert="A", output_tokens=4),
    ]
    texts = {
        make_key("q0", slot=2): "It is B.",
        make_key("q0", slot=0): "Surely A.",
        make_key("q1", slot=0): "Because.",
    }
    prompts = aggregator_prompts([CHOICE, FREE], records, texts, aggregator)
    read = [Response("A", 4, "Surely A."), Response("C", 3, "It is B.")]
    call = make_call("q0", node=AGGREGATE, expert="J")
    assert prompts(call) == aggregator_prompt(CHOICE, read, aggregator)
    assert prompts(call).index("Surely A.") < prompts(call).index("It is B.")
    assert "Because." in prompts(make_call("q1", node=AGGREGATE, expert="J"))
