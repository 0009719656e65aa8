"""Synthetic multiple-choice questions of three skills, which models of a few hundred thousand parameters can learn.

A number's option letter is its remainder modulo 4. Such small models learn to compute a value, but not to search a list
for its letter. So every question lists four values with four different remainders, in order.

Questions come in three parts. A hash of a question's operands, in any order, decides its part. So no expert is measured
on a question of its training, not even with exchanged operands or other options.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from itertools import count, islice
from random import Random

from mosaic.core.checks import require_count
from mosaic.core.workload import OPTION_LETTERS, AnswerKind, Question

LEAST, MOST = 10, 99
"""All numbers have two digits."""
MOST_TERM = 49
"""Of a sum."""
NUM_OPTIONS = 4


class Skill(StrEnum):
    """What a question asks for."""

    ADDITION = "addition"
    MAXIMUM = "maximum"
    DIGIT_SUM = "digit_sum"


class Part(StrEnum):
    """What a question may be used for."""

    TRAIN = "train"
    CALIBRATION = "calibration"
    """To measure the experts' skills, which the router then knows."""
    TEST = "test"


SKILLS = tuple(Skill)
_PERCENT_TEST, _PERCENT_CALIBRATION = 20, 15


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyQuestion:
    """A question as the generator knows it: operands, options and the right value."""

    skill: Skill
    operands: tuple[int, ...]
    """The two terms, or the four numbers to choose from, which are the options then."""
    options: tuple[int, ...]
    """Values by letter: the one at place i leaves a remainder of i modulo 4."""
    value: int
    """The right one of the options."""

    @property
    def letter(self) -> str:
        """The right option's letter."""
        return letter_of(self.value)

    @property
    def text(self) -> str:
        """The prompt of an expert."""
        listed = " ".join(f"({letter_of(option)}) {option}" for option in self.options)
        return f"{_ASK[self.skill](self.operands)}\nOptions: {listed}"


_ASK: dict[Skill, Callable[[tuple[int, ...]], str]] = {
    Skill.ADDITION: lambda terms: f"What is {terms[0]} plus {terms[1]}?",
    Skill.MAXIMUM: lambda numbers: "Which number is the largest?",
    Skill.DIGIT_SUM: lambda numbers: "Which number has the largest digit sum?",
}


def letter_of(value: int) -> str:
    """Return the letter of a value's option.

    Examples
    --------
    >>> letter_of(62)
    'C'
    """
    return OPTION_LETTERS[value % NUM_OPTIONS]


def part_of(skill: Skill, operands: tuple[int, ...]) -> Part:
    """Return the part that a question belongs to, whatever the order of its operands.

    Examples
    --------
    >>> part_of(Skill.ADDITION, (27, 35)) is part_of(Skill.ADDITION, (35, 27))
    True
    """
    name = f"{skill}:{','.join(map(str, sorted(operands)))}"
    percent = int.from_bytes(sha256(name.encode()).digest()[:8], "big") % 100
    if percent < _PERCENT_TEST:
        return Part.TEST
    return Part.CALIBRATION if percent < _PERCENT_TEST + _PERCENT_CALIBRATION else Part.TRAIN


def digit_sum(number: int) -> int:
    """Add the two digits of a number."""
    return number // 10 + number % 10


def right_value(skill: Skill, operands: tuple[int, ...]) -> int:
    """Work out what a question asks for."""
    if skill is Skill.ADDITION:
        return sum(operands)
    return max(operands, key=digit_sum if skill is Skill.DIGIT_SUM else None)


def draw_question(skill: Skill, part: Part, rng: Random) -> TinyQuestion:
    """Draw one question of a skill and a part."""
    while True:
        operands = _draw_terms(rng) if skill is Skill.ADDITION else _draw_numbers(rng)
        if part_of(skill, operands) is part and (skill is not Skill.DIGIT_SUM or _has_one_largest(operands)):
            value = right_value(skill, operands)
            options = _options(value, rng) if skill is Skill.ADDITION else operands
            return TinyQuestion(skill=skill, operands=operands, options=options, value=value)


def draw_questions(num: int, part: Part, seed: int) -> tuple[TinyQuestion, ...]:
    """Draw different questions, the skills in turn; a longer draw begins with the shorter one's questions.

    Parameters
    ----------
    num
        Questions to draw.
    part
        Where they belong.
    seed
        Of the draw; parts draw independently.
    """
    require_count(num, "num_questions", at_least=1)
    require_count(seed, "seed")
    return tuple(islice(_different(Part(part), Random(f"{Part(part)} {seed}")), num))


def _different(part: Part, rng: Random) -> Iterator[TinyQuestion]:
    seen: set[str] = set()
    for number in count():
        skill = SKILLS[number % len(SKILLS)]
        question = draw_question(skill, part, rng)
        while question.text in seen:
            question = draw_question(skill, part, rng)
        seen.add(question.text)
        yield question


def as_question(question: TinyQuestion, *, id: str, prompt_tokens: int) -> Question:
    """Turn a tiny question into an item of a workload."""
    return Question(
        id=id,
        prompt_tokens=prompt_tokens,
        text=question.text,
        answer=question.letter,
        category="arithmetic",
        skills=(question.skill.value,),
        answer_kind=AnswerKind.CHOICE,
        num_options=NUM_OPTIONS,
    )


def _draw_terms(rng: Random) -> tuple[int, ...]:
    return rng.randint(LEAST, MOST_TERM), rng.randint(LEAST, MOST_TERM)


def _draw_numbers(rng: Random) -> tuple[int, ...]:
    """Draw four numbers, one of each remainder, in order."""
    firsts = (next(number for number in range(LEAST, MOST) if number % NUM_OPTIONS == i) for i in range(NUM_OPTIONS))
    return tuple(rng.randrange(first, MOST + 1, NUM_OPTIONS) for first in firsts)


def _has_one_largest(numbers: tuple[int, ...]) -> bool:
    sums = sorted(map(digit_sum, numbers))
    return sums[-1] > sums[-2]


_NEAR_MISSES = (-11, -10, -9, -3, -2, -1, 1, 2, 3, 9, 10, 11)
"""How far the wrong options lie: what a lost carry, or a slip in one digit, makes of a value."""


def _options(value: int, rng: Random) -> tuple[int, ...]:
    by_remainder = {value % NUM_OPTIONS: value}
    for miss in rng.sample(_NEAR_MISSES, len(_NEAR_MISSES)):
        if LEAST <= value + miss <= MOST:
            by_remainder.setdefault((value + miss) % NUM_OPTIONS, value + miss)
    return tuple(by_remainder[remainder] for remainder in range(NUM_OPTIONS))
