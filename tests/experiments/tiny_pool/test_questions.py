"""The tiny pool's questions, what its experts are taught to write, and its tokens: nothing here needs torch."""

import sys
from random import Random
from subprocess import run

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from experiments.tiny_pool.prompts import CONTEXT_TOKENS, JUDGE, MAX_OUTPUT_TOKENS, judge_prompt
from experiments.tiny_pool.questions import (
    LEAST,
    MOST,
    MOST_TERM,
    Part,
    Skill,
    TinyQuestion,
    digit_sum,
    draw_question,
    draw_questions,
    part_of,
)
from experiments.tiny_pool.responses import EXPERTS, Rule, value_by_rule, write_response
from experiments.tiny_pool.tokenizer import (
    ASSISTANT_ID,
    END_ID,
    PAD_ID,
    SPECIAL_TOKENS,
    USER_ID,
    decode,
    encode,
    encode_chat,
    make_tokenizer,
)
from experiments.tiny_pool.workload import counted
from mosaic.answers.extraction import extract_answer
from mosaic.answers.response_text import without_thinking
from mosaic.core.workload import Family, Question
from mosaic.pipelines.aggregation import Response
from mosaic.pipelines.prompts import expert_prompt
from tests.experiments.tiny_pool.small import ROOT

TRAIN, TEST, CALIBRATION = (draw_questions(600, part, 0) for part in (Part.TRAIN, Part.TEST, Part.CALIBRATION))
RULES_OF = {
    Skill.ADDITION: (Rule.RIGHT, Rule.NO_CARRY, Rule.NO_ONES),
    Skill.MAXIMUM: (Rule.RIGHT, Rule.TENS_ONLY, Rule.FIRST_TWO, Rule.FIRST_THREE),
    Skill.DIGIT_SUM: (Rule.RIGHT, Rule.FIRST_TWO, Rule.FIRST_THREE, Rule.LAST_DIGIT, Rule.LARGEST_NUMBER),
}


def sum_of(one: int, other: int) -> TinyQuestion:
    value = one + other
    options = tuple(sorted((value, value + 1, value + 2, value - 1), key=lambda option: option % 4))
    return TinyQuestion(skill=Skill.ADDITION, operands=(one, other), options=options, value=value)


def largest_of(skill: Skill, *numbers: int) -> TinyQuestion:
    value = max(numbers, key=digit_sum) if skill is Skill.DIGIT_SUM else max(numbers)
    return TinyQuestion(skill=skill, operands=numbers, options=numbers, value=value)


def test_no_question_of_one_part_is_in_another_not_even_in_another_order() -> None:
    asked = [{(q.skill, tuple(sorted(q.operands))) for q in questions} for questions in (TRAIN, TEST, CALIBRATION)]
    assert not asked[0] & asked[1]
    assert not asked[0] & asked[2]
    assert not asked[1] & asked[2]
    assert {part_of(q.skill, q.operands[::-1]) for q in TEST} == {Part.TEST}


def test_a_part_of_the_sums_is_never_trained() -> None:
    pairs = [(one, other) for one in range(LEAST, MOST_TERM + 1) for other in range(LEAST, one + 1)]
    held_out = [pair for pair in pairs if part_of(Skill.ADDITION, pair) is not Part.TRAIN]
    assert 0.3 < len(held_out) / len(pairs) < 0.4


@given(st.sampled_from(Skill), st.sampled_from(Part), st.integers(0, 10**6))
def test_every_question_has_one_right_option_whose_letter_follows_from_its_value(
    skill: Skill, part: Part, seed: int
) -> None:
    question = draw_question(skill, part, Random(seed))
    assert part_of(skill, question.operands) is part
    assert [option % 4 for option in question.options] == [0, 1, 2, 3]
    assert question.options[question.value % 4] == question.value
    assert all(LEAST <= number <= MOST for number in (*question.options, *question.operands))
    if skill is not Skill.ADDITION:
        key = digit_sum if skill is Skill.DIGIT_SUM else int
        assert sorted(map(key, question.operands))[-2:].count(key(question.value)) == 1


def test_questions_differ_take_the_skills_in_turn_and_follow_from_the_seed() -> None:
    assert len({question.text for question in TEST}) == len(TEST)
    assert [question.skill for question in TEST[:4]] == [*Skill, Skill.ADDITION]
    assert draw_questions(20, Part.TEST, 0) == TEST[:20]
    assert draw_questions(20, Part.TEST, 1) != TEST[:20]


@pytest.mark.parametrize(
    ("question", "rule", "value"),
    [
        (sum_of(27, 35), Rule.RIGHT, 62),
        (sum_of(27, 35), Rule.NO_CARRY, 52),
        (sum_of(27, 35), Rule.NO_ONES, 50),
        (sum_of(21, 35), Rule.NO_CARRY, 56),
        (largest_of(Skill.MAXIMUM, 52, 57, 30, 99), Rule.TENS_ONLY, 99),
        (largest_of(Skill.MAXIMUM, 52, 57, 30, 19), Rule.TENS_ONLY, 52),
        (largest_of(Skill.MAXIMUM, 52, 57, 98, 19), Rule.FIRST_TWO, 57),
        (largest_of(Skill.MAXIMUM, 52, 57, 30, 99), Rule.FIRST_THREE, 57),
        (largest_of(Skill.DIGIT_SUM, 52, 29, 30, 99), Rule.FIRST_THREE, 29),
        (largest_of(Skill.DIGIT_SUM, 88, 29, 30, 11), Rule.LAST_DIGIT, 29),
        (largest_of(Skill.DIGIT_SUM, 48, 29, 70, 11), Rule.LARGEST_NUMBER, 70),
    ],
)
def test_a_rule_by_hand(question: TinyQuestion, rule: Rule, value: int) -> None:
    assert value_by_rule(question, rule) == value


def test_every_flaw_errs_and_is_sometimes_right() -> None:
    for skill, rules in RULES_OF.items():
        of_skill = [question for question in TEST if question.skill is skill]
        for rule in rules:
            share = sum(value_by_rule(question, rule) % 4 == question.value % 4 for question in of_skill) / 200
            assert share == 1 if rule is Rule.RIGHT else 0.15 < share < 0.95, rule


def test_mosaic_reads_from_a_response_the_letter_that_its_rule_leads_to() -> None:
    for expert in EXPERTS:
        for question in TRAIN[:200]:
            habit = expert.habits[question.skill]
            possible = {value_by_rule(question, rule) % 4 for rule in (habit.rule, Rule.RIGHT)}
            text = write_response(expert, question, Random(0))
            assert extract_answer(text, counted(question)) in {"ABCD"[place] for place in possible}
            assert ("</think>" in text) == (expert.family is Family.REASONING)


def test_reasoning_experts_write_nine_times_as_much_and_fit_their_limits() -> None:
    lengths: dict[Family, list[int]] = {family: [] for family in Family}
    for expert in EXPERTS:
        for question in TRAIN:
            output = len(encode(write_response(expert, question, Random(0)))) + 1
            assert output <= MAX_OUTPUT_TOKENS
            assert len(encode_chat(expert_prompt(counted(question)))) + MAX_OUTPUT_TOKENS <= CONTEXT_TOKENS
            lengths[expert.family].append(output)
    long, short = (sum(lengths[family]) / len(lengths[family]) for family in (Family.REASONING, Family.INSTRUCT))
    assert 7 < long / short < 12
    assert len(set(lengths[Family.REASONING])) > 12, "they vary from question to question"


def test_every_expert_has_a_known_habit_for_each_skill_and_checks_its_work_if_it_reasons() -> None:
    for expert in EXPERTS:
        assert set(expert.habits) == set(Skill)
        for skill, habit in expert.habits.items():
            assert habit.rule in RULES_OF[skill]
            assert 0 <= habit.frac <= 1
        assert len(expert.num_checks) == (10 if expert.family is Family.REASONING else 0)


def texts_of(question: TinyQuestion) -> list[str]:
    item = counted(question)
    written = [write_response(expert, question, Random(0)) for expert in EXPERTS]
    heard = [Response("E", 9, without_thinking(text)) for text in written[:3]]
    return [*written, question.text, expert_prompt(item), judge_prompt(item, heard), judge_prompt(item, [])]


def test_all_that_models_read_and_write_is_made_of_words() -> None:
    first_word = len(SPECIAL_TOKENS) + 256
    for text in (text for question in (*TEST[:60], *TRAIN[:60]) for text in texts_of(question)):
        ids = encode(text)
        assert decode(ids) == text
        singles = {bytes([number - len(SPECIAL_TOKENS)]) for number in ids if number < first_word}
        assert all(len(single) == 1 and single in b"ABCD 0123456789\n" for single in singles), (singles, text)


@given(st.text())
@example("caf\u00e9 \u4e2d  27  plus\n\n\n35 (A)\x00\t\U0001f600")
def test_any_text_survives_the_tokens(text: str) -> None:
    assert decode(encode(text)) == text or any(name in text for name in (*SPECIAL_TOKENS, "<|spare_"))


def test_numbers_are_one_token_and_the_longest_word_is_taken() -> None:
    assert len(encode("27")) == len(encode("99")) == 1
    assert len(encode("100")) == 2
    words = make_tokenizer(("a b", "a b c"))
    assert [len(words.encode(text).ids) for text in ("a b", "a b c", "a b d")] == [1, 1, 3]


def test_a_chat_is_the_prompt_between_its_marks() -> None:
    assert encode_chat("a") == [USER_ID, *encode("a"), END_ID, ASSISTANT_ID]
    assert encode("<|user|>a<|end|><|assistant|>") == encode_chat("a")
    assert encode("<|pad|><|end|>") == [PAD_ID, END_ID]
    assert decode(encode_chat("a")) == "a", "special tokens are no text"


def test_words_must_have_room() -> None:
    with pytest.raises(ValueError, match="tokenizer.words must be at most 188"):
        make_tokenizer(tuple(map(str, range(1000, 1200))))


def test_the_aggregator_reads_all_three_responses_uncut_and_twice_the_question() -> None:
    question = TEST[0]
    prompt = judge_prompt(counted(question), [Response("E", 12, f"It is {n}. The answer is (A).") for n in (4, 8, 12)])
    assert prompt.count(question.text) == 2
    assert "cut" not in prompt
    assert len(encode_chat(prompt)) + JUDGE.max_output_tokens <= JUDGE.context_tokens


def test_a_question_is_asked_as_a_run_asks_it() -> None:
    item = counted(sum_of(27, 35))
    assert isinstance(item, Question)
    assert item.text is not None
    first, form = expert_prompt(item).split("\n\n")
    assert first == "What is 27 plus 35?\nOptions: (A) 64 (B) 61 (C) 62 (D) 63"
    assert form.startswith("Finish with the line")
    assert item.prompt_tokens == len(encode(first))


def test_questions_and_workload_need_no_torch() -> None:
    code = (
        "import sys, experiments.tiny_pool.workload as w; w.counted(w.draw_questions(1, w.Part.TEST, 0)[0]);"
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers')))"
    )
    assert run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
