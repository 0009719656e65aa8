"""Invariants of routing and of slot tables over random inputs."""

from collections import Counter

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from mosaic.core.workload import Question
from mosaic.workloads.routing import Router, SkillProfiles, replace_rare_experts
from mosaic.workloads.slot_table import slot_table_workload

EXPERTS = ["A", "B", "C", "D", "E"]
SKILLS = ["algebra", "optics", "ethics", "organic chemistry"]

profiles = st.dictionaries(
    st.sampled_from(EXPERTS), st.dictionaries(st.sampled_from(SKILLS), st.integers(-50, 50)), min_size=1
).map(lambda scores: SkillProfiles(scores=scores))
questions = st.lists(st.lists(st.one_of(st.sampled_from(SKILLS), st.text(max_size=8)), max_size=4), max_size=20).map(
    lambda skills: [
        Question(id=f"q{i}", prompt_tokens=1, skills=tuple(of_question)) for i, of_question in enumerate(skills)
    ]
)
batches = st.lists(st.lists(st.sampled_from(EXPERTS), min_size=1, max_size=4), max_size=60)


@given(profiles=profiles, questions=questions, num_slots=st.integers(1, 5), seed=st.integers(0, 2**32))
def test_every_question_gets_its_slots_from_the_pool(
    profiles: SkillProfiles, questions: list[Question], num_slots: int, seed: int
) -> None:
    router = Router(profiles=profiles, num_slots=num_slots)
    slots = router.recruit_batch(questions, seed=seed)
    assert [len(of_question) for of_question in slots] == [num_slots] * len(questions)
    assert {expert for of_question in slots for expert in of_question} <= set(profiles.experts)
    assert slots == router.recruit_batch(questions, seed=seed)


@given(profiles=profiles, skills=st.lists(st.sampled_from(SKILLS)), seed=st.integers(0, 2**32))
def test_only_experts_with_a_positive_score_are_recruited_where_there_is_one(
    profiles: SkillProfiles, skills: list[str], seed: int
) -> None:
    known = {skill for skill in skills if skill in profiles.skills}
    scores = {name: sum(profiles.scores[name].get(skill, 0) for skill in known) for name in profiles.experts}
    assume(len(known) == len(set(skills)) and max(scores.values()) > 0)
    question = Question(id="q", prompt_tokens=1, skills=tuple(skills))
    recruited = Router(profiles=profiles).recruit(question, np.random.default_rng(seed))
    assert all(scores[name] > 0 for name in recruited)


@given(slots=batches, min_share_frac=st.floats(0, 0.5), seed=st.integers(0, 2**32))
def test_replacing_leaves_no_rare_expert_and_touches_no_other_slot(
    slots: list[list[str]], min_share_frac: float, seed: int
) -> None:
    replaced = replace_rare_experts(slots, min_share_frac, np.random.default_rng(seed))
    counts = Counter(expert for of_question in slots for expert in of_question)
    frequent = {expert for expert, count in counts.items() if count >= min_share_frac * counts.total()}
    assert [len(of_question) for of_question in replaced] == [len(of_question) for of_question in slots]
    for before, after in zip(slots, replaced, strict=True):
        for old, new in zip(before, after, strict=True):
            assert new == old if old in frequent or not frequent else new in frequent


@given(counts=st.lists(st.integers(0, 12), min_size=1, max_size=5), seed=st.integers(0, 2**32), data=st.data())
def test_a_slot_table_is_met_exactly_and_named_in_its_first_seen_order(
    counts: list[int], seed: int, data: st.DataObject
) -> None:
    counts[0] += -sum(counts) % 3 or 3 * (not any(counts))
    slots = dict(zip(EXPERTS, counts, strict=False))
    holders = [name for name, count in slots.items() if count]
    order = data.draw(st.permutations(holders))
    workload = slot_table_workload(
        name="t",
        num_questions=sum(counts) // 3,
        slots=slots,
        first_seen=order,
        prompt_token_quantiles=[10, 50, 400],
        seed=seed,
    )
    assert list(workload.num_calls_by_expert) == order
    assert workload.num_calls_by_expert == {name: slots[name] for name in holders}
    assert all(160 <= call.prompt_tokens <= 550 for call in workload.calls)
