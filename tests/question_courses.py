"""Questions whose calls end one after the other, with all that they would say."""

from collections.abc import Sequence
from typing import NamedTuple

from hypothesis import strategies as st
from msgspec.structs import replace

from mosaic.core.results import CallRecord, CallStatus
from mosaic.core.workload import AnswerKind, Call, CallKey, Question
from mosaic.pipelines.call_graph import CallGraph
from mosaic.pipelines.final_answers import End
from mosaic.pipelines.walk import walk
from tests.answered_questions import FAILED, ended, make_question

LETTERS = ["A", "B", "C", None, FAILED]
MATH = ["1/2", "0.5", "75%", "75", "0.75", None, FAILED]


class Course(NamedTuple):
    """A question on its way: what calls would say, in which order they end, and which cannot be stopped in time."""

    question: Question
    first: Sequence[Call]
    says: dict[CallKey, tuple[str | None, float]]
    """Answers, and how sure they are."""
    order: list[CallKey]
    late: set[CallKey]


class Came(NamedTuple):
    """What came of it."""

    end: End
    calls: dict[CallKey, Call]
    num_cancelled: int


@st.composite
def courses(draw, first: Sequence[Call], upper: Sequence[CallKey], kinds: Sequence[AnswerKind] = tuple(AnswerKind)):
    kind = draw(st.sampled_from(kinds))
    keys = [*(call.key for call in first), *upper]
    said = st.sampled_from(MATH if kind is AnswerKind.MATH else LETTERS)
    return Course(
        make_question("q", kind, answer="A"),
        first,
        {key: (draw(said), draw(st.floats(0.05, 1.0))) for key in keys},
        draw(st.permutations(keys)),
        {key for key in keys if draw(st.integers(0, 3)) == 0},
    )


def run(graph: CallGraph, course: Course, order: Sequence[CallKey] | None = None, *, cancels: bool) -> Came:
    """Go through a question, call by call."""
    calls = {call.key: call for call in course.first}
    done: dict[CallKey, CallRecord] = {}
    num_cancelled = 0
    while True:
        state = walk(graph, course.question, course.first, done)
        if graph.rule.is_exit:
            assert not {call.key for call in state.submit} & set(state.cancel)
        calls |= {call.key: call for call in state.submit}
        waiting = [key for key in order or course.order if key in calls and key not in done]
        if not waiting:
            assert state.answer is not None, "it waits for no call"
            return Came(state.end(), calls, num_cancelled)
        stopped = [key for key in state.cancel if cancels and key in calls and key not in course.late]
        for key in stopped:
            done[key] = replace(ended(calls[key], "wasted"), status=CallStatus.CANCELLED)
        num_cancelled += len(stopped)
        if not stopped:
            answer, confidence = course.says[waiting[0]]
            done[waiting[0]] = replace(ended(calls[waiting[0]], answer), confidence=confidence)
