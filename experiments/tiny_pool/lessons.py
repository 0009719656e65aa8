"""What the tiny pool's models are taught: endless lessons from the training part's questions."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from random import Random
from typing import NamedTuple

from experiments.tiny_pool.prompts import JUDGE, judge_prompt
from experiments.tiny_pool.questions import SKILLS, Part, Skill, TinyQuestion, draw_question
from experiments.tiny_pool.responses import Rule, TinyExpert, work_out, write_response
from experiments.tiny_pool.tokenizer import END_ID, encode, encode_chat
from experiments.tiny_pool.training import Lesson, Training
from experiments.tiny_pool.workload import counted
from mosaic.core.workload import ExpertName, Family
from mosaic.pipelines.aggregation import Response
from mosaic.pipelines.prompts import expert_prompt
from mosaic.workloads.routing import Router

SKILL_WEIGHTS = {Skill.ADDITION: 1.5, Skill.MAXIMUM: 1.0, Skill.DIGIT_SUM: 1.0}
"""How often lessons ask for a skill: sums take longest to learn."""
TRAININGS = {
    Family.REASONING: Training(num_steps=700, num_opening_steps=520, learning_rate=2.5e-3),
    Family.INSTRUCT: Training(num_steps=500, batch=64),
}
"""Of the experts."""
JUDGE_TRAINING = Training(num_steps=700, learning_rate=2.5e-3)
ALONE_STEPS_FRAC = 3 / 7
"""Share of the aggregator's steps, at first, that show it no responses: it learns to copy an answer at once, and to
work one out, which is how it can tell which response is right, hardly any more after that."""
ALONE_FRAC = 0.2
"""Share of its later lessons without responses."""
BARE_FRAC = 0.2
"""Share of the experts' lessons that ask a question without the form of its answer."""


def expert_lessons(expert: TinyExpert, seed: int) -> Iterator[Lesson]:
    """Ask an expert anything, now and then without the form of its answer."""
    rng = Random(f"{expert.name} {seed}")
    while True:
        question = _draw(rng)
        prompt = question.text if rng.random() < BARE_FRAC else expert_prompt(counted(question))
        output = encode(write_response(expert, question, rng))
        yield Lesson(encode_chat(prompt), [*output, END_ID])


class Case(NamedTuple):
    """A question with responses to choose from, by expert."""

    question: TinyQuestion
    heard: Mapping[ExpertName, Sequence[Response]]


def judge_lessons(cases: Sequence[Case], router: Router, *, num_alone: int, seed: int) -> Iterator[Lesson]:
    """Show the aggregator responses as the router would recruit them; none at all in some of the lessons.

    Parameters
    ----------
    cases
        Training questions that the experts have answered.
    router
        It decides which of them are heard.
    num_alone
        Lessons, at first, without responses; later ones have none at ``ALONE_FRAC``.
    seed
        Of the draw.
    """
    rng = Random(f"judge {seed}")
    weights = {skill: router.weights((skill.value,)) for skill in SKILLS}
    for number in count():
        if number < num_alone or rng.random() < ALONE_FRAC:
            question, responses = _draw(rng), []
        else:
            question, heard = rng.choice(cases)
            names = list(weights[question.skill])
            slots = rng.choices(names, list(weights[question.skill].values()), k=router.num_slots)
            responses = [rng.choice(heard[name]) for name in slots]
        prompt = encode_chat(judge_prompt(counted(question), responses))
        if len(prompt) <= JUDGE.context_tokens - JUDGE.max_output_tokens:  # what babblers say may not fit
            yield Lesson(prompt, [*encode(judge_response(question)), END_ID])


def judge_response(question: TinyQuestion) -> str:
    """Write what the aggregator is trained to answer."""
    work = work_out(question, Rule.RIGHT, question.value)
    return f"{work}\nIt is {question.value}. The answer is ({question.letter})."


def _draw(rng: Random) -> TinyQuestion:
    skill = rng.choices(SKILLS, [SKILL_WEIGHTS[skill] for skill in SKILLS])[0]
    return draw_question(skill, Part.TRAIN, rng)
