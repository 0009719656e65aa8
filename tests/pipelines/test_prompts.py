"""What experts read in a live run; what aggregators read is in test_call_graph and test_aggregation."""

import pytest

from mosaic.core.workload import AnswerKind, Question, Workload
from mosaic.pipelines.aggregation import FORM
from mosaic.pipelines.prompts import check_texts, expert_prompt
from tests.factories import make_call

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
