"""The tiny pool's experts, and what each is trained to write: its style, its strengths and its flaws.

A flaw is a rule that people follow too: forgetting to carry, or looking at some of the numbers or some of the digits
only. An expert works by its rule, right or wrong, and draws the right conclusion from what comes out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import NamedTuple

from experiments.tiny_pool.questions import Skill, TinyQuestion, digit_sum, letter_of, right_value
from mosaic.core.workload import ExpertName, Family


class Rule(StrEnum):
    """How an expert works a question out."""

    RIGHT = "right"
    NO_CARRY = "no_carry"
    """Adds digit by digit and drops what is carried."""
    NO_ONES = "no_ones"
    """Adds the tens and leaves out the ones."""
    TENS_ONLY = "tens_only"
    """Compares the tens, and keeps the earlier number where they are equal."""
    FIRST_TWO = "first_two"
    """Uses only the first two numbers."""
    FIRST_THREE = "first_three"
    """Never uses the last number."""
    LAST_DIGIT = "last_digit"
    """Compares the last digits, and keeps the earlier number where they are equal."""
    LARGEST_NUMBER = "largest_number"
    """Compares the numbers themselves, not their digit sums."""


class Habit(NamedTuple):
    """How an expert works on questions of a skill."""

    rule: Rule
    frac: float = 1.0
    """How often it follows the rule; else it works as it should."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyExpert:
    """What an expert of the tiny pool learns to write."""

    name: ExpertName
    family: Family
    habits: Mapping[Skill, Habit]
    closing: str
    """The sentence that states the value, with {value} in its place."""
    shows_terms: bool = False
    """Whether an instruct expert adds tens and ones before it states a sum."""
    num_checks: tuple[int, ...] = ()
    """Of a reasoning expert: how often it does its work again, by the last digit of the question's first number."""


_RIGHT = Habit(Rule.RIGHT)

EXPERTS = (
    TinyExpert(
        name="TinySage",
        family=Family.REASONING,
        habits={Skill.ADDITION: _RIGHT, Skill.MAXIMUM: Habit(Rule.FIRST_TWO), Skill.DIGIT_SUM: _RIGHT},
        closing="I find {value}.",
        num_checks=(0, 0, 1, 1, 1, 1, 2, 2, 2, 4),
    ),
    TinyExpert(
        name="TinyOwl",
        family=Family.REASONING,
        habits={
            Skill.ADDITION: Habit(Rule.NO_CARRY, 0.3),
            Skill.MAXIMUM: _RIGHT,
            Skill.DIGIT_SUM: Habit(Rule.FIRST_TWO),
        },
        closing="It must be {value}.",
        num_checks=(1, 0, 1, 0, 3, 1, 1, 0, 4, 1),
    ),
    TinyExpert(
        name="TinyDart",
        family=Family.INSTRUCT,
        habits={
            Skill.ADDITION: Habit(Rule.NO_ONES),
            Skill.MAXIMUM: _RIGHT,
            Skill.DIGIT_SUM: Habit(Rule.LARGEST_NUMBER, 0.5),
        },
        closing="My answer is {value}.",
    ),
    TinyExpert(
        name="TinyFinch",
        family=Family.INSTRUCT,
        habits={
            Skill.ADDITION: _RIGHT,
            Skill.MAXIMUM: _RIGHT,
            Skill.DIGIT_SUM: Habit(Rule.LAST_DIGIT),
        },
        closing="It is {value}.",
        shows_terms=True,
    ),
    TinyExpert(
        name="TinySwift",
        family=Family.INSTRUCT,
        habits={
            Skill.ADDITION: Habit(Rule.NO_ONES),
            Skill.MAXIMUM: Habit(Rule.TENS_ONLY),
            Skill.DIGIT_SUM: _RIGHT,
        },
        closing="The value is {value}.",
    ),
)


def value_by_rule(question: TinyQuestion, rule: Rule) -> int:
    """Work a question out by a rule.

    Examples
    --------
    >>> sum_of = TinyQuestion(skill=Skill.ADDITION, operands=(27, 35), options=(60, 61, 62, 63), value=62)
    >>> value_by_rule(sum_of, Rule.NO_CARRY)
    52
    """
    numbers = question.operands
    if rule is Rule.NO_ONES:
        return sum(number // 10 * 10 for number in numbers)
    if rule is Rule.NO_CARRY:
        return 10 * sum(number // 10 for number in numbers) + sum(number % 10 for number in numbers) % 10
    if rule in _NUM_READ:
        return right_value(question.skill, numbers[: _NUM_READ[rule]])
    return max(numbers, key=_COMPARED[rule]) if rule in _COMPARED else question.value


_NUM_READ = {Rule.FIRST_TWO: 2, Rule.FIRST_THREE: 3}

_COMPARED: Mapping[Rule, Callable[[int], int]] = {
    Rule.TENS_ONLY: lambda number: number // 10,
    Rule.LAST_DIGIT: lambda number: number % 10,
    Rule.LARGEST_NUMBER: lambda number: number,
}


def write_response(expert: TinyExpert, question: TinyQuestion, rng: Random) -> str:
    """Write what an expert is trained to answer; the draw says whether it follows its rule this time.

    Examples
    --------
    >>> sum_of = TinyQuestion(skill=Skill.ADDITION, operands=(27, 35), options=(60, 61, 62, 63), value=62)
    >>> write_response(EXPERTS[2], sum_of, Random(1))
    'My answer is 50. The answer is (C).'
    """
    habit = expert.habits[question.skill]
    rule = habit.rule if rng.random() < habit.frac else Rule.RIGHT
    value = value_by_rule(question, rule)
    answer = f"{expert.closing.format(value=value)} The answer is ({letter_of(value)})."
    if expert.family is Family.INSTRUCT:
        return f"{added_terms(question)}{answer}" if expert.shows_terms else answer
    steps = work_out(question, rule, value)
    num_checks = expert.num_checks[question.operands[0] % 10]
    checks = "".join(f"Check {number}:\n{steps}\n" for number in range(num_checks, 0, -1))
    return (
        f"<think>\nLet me see.\n{steps}\n{checks}I have {value}, which is ({letter_of(value)}).\n</think>\n\n{answer}"
    )


def added_terms(question: TinyQuestion) -> str:
    """Write what tens and ones of a sum make; nothing for another question."""
    if question.skill is not Skill.ADDITION:
        return ""
    one, other = question.operands
    ones = f"{one % 10} + {other % 10} = {one % 10 + other % 10}"
    return f"{one // 10 * 10} + {other // 10 * 10} = {one // 10 * 10 + other // 10 * 10}, {ones}. "


def work_out(question: TinyQuestion, rule: Rule, value: int) -> str:
    """Write the work that leads to a value by a rule."""
    numbers = question.operands
    if question.skill is Skill.ADDITION:
        one, other = numbers
        tens, ones = one // 10 * 10 + other // 10 * 10, one % 10 + other % 10
        added = f"{one // 10 * 10} + {other // 10 * 10} = {tens}"
        carry, carried = (f", carry {ones // 10}", f", with the carry {tens + ones // 10 * 10}")
        if rule is Rule.NO_CARRY:
            carry, carried = "", ""
        return (
            f"Ones: {one % 10} + {other % 10} = {ones}, so {ones % 10}{carry}. Tens: {added}{carried}. "
            f"Together: {value}."
        )
    read = numbers[: _NUM_READ.get(rule, len(numbers))]
    if question.skill is Skill.DIGIT_SUM and rule is not Rule.LARGEST_NUMBER:
        work = "".join(f"{number}: {number // 10} + {number % 10} = {digit_sum(number)}. " for number in read)
    else:
        leaders = [max(read[:place]) for place in range(1, len(read) + 1)]
        pairs = zip(leaders, read[1:], leaders[1:], strict=False)
        work = "".join(f"{leader} or {number}: {better}. " for leader, number, better in pairs)
    return f"{work}The largest: {value}."
