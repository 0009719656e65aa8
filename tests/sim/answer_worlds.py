"""Worlds whose calls answer, small enough to read."""

from typing import Any

from mosaic.core.realization import Outcome
from mosaic.core.results import CallRecord
from mosaic.core.workload import AGGREGATE, PROPOSE, AnswerKind, Call, CallKey, Question
from sim.world.answer_model import AnswerModel, Item, possible_answers
from sim.world.lengths import Empirical
from sim.world.world import World
from tests.factories import make_call
from tests.run_records import make_key, make_record

FINE = Empirical(sample=tuple(range(1, 100_001)))
"""As many tokens as the uniform number has hundred-thousandths."""


def make_model(**changes: Any) -> AnswerModel:
    """Two experts of unlike ability on questions that differ; nothing of an aggregator's own."""
    parameters: dict[str, Any] = {
        "mean_ability": 2.0,
        "discrimination": 1.5,
        "distractor_std": 1.0,
        "length_loading": 0.0,
        "aggregator_gain": 0.0,
        "deference": 0.0,
        "aggregator_length_loading": 0.0,
        "ability_by_expert": {"A": 0.5, "B": -0.5},
    }
    return AnswerModel(**{**parameters, **changes})


def make_choice(
    name: str = "q0", *, num_options: int = 4, answer: str | None = "B", prompt_tokens: int = 50
) -> Question:
    return Question(
        id=name, prompt_tokens=prompt_tokens, answer=answer, answer_kind=AnswerKind.CHOICE, num_options=num_options
    )


def make_world(num_questions: int = 1, *, num_options: int = 4, **changes: Any) -> World:
    """A world of choices q0, q1 and so on, all with B as the right option."""
    questions = [make_choice(f"q{i}", num_options=num_options) for i in range(num_questions)]
    given: dict[str, Any] = {
        "lengths": dict.fromkeys("ABC", FINE),
        "aggregator_lengths": {"G": FINE},
        "root_seed": 0,
        "answers": make_model(),
        "questions": {question.id: question for question in questions},
    }
    return World(**{**given, **changes})


def item_of(world: World, question: str) -> Item:
    """A question as the models of a world meet it."""
    assert world.answers is not None
    possible = possible_answers(world.questions[question])
    return world.answers.item(question, possible, world.root_seed, world.stream)


def names(number: int) -> list[str]:
    """The first questions of a world."""
    return [f"q{i}" for i in range(number)]


def ask(world: World, question: str, *, expert: str = "A", slot: int = 0) -> Outcome:
    """What becomes of an expert's call."""
    return world.outcome(make_call(question, expert=expert, slot=slot), {})


def aggregate_call(question: str = "q0", *slots: int) -> Call:
    """The aggregator G's call after the responses of some slots, of the first one by default."""
    after = tuple(CallKey(question, PROPOSE, slot) for slot in slots or (0,))
    return make_call(question, expert="G", node=AGGREGATE, after=after)


def make_response(question: str, slot: int, answer: str | None, *, expert: str = "A") -> CallRecord:
    """A finished call of the expert stage."""
    return make_record(key=make_key(question, slot=slot), expert=expert, answer=answer)
