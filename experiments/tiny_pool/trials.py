"""Answers of the tiny pool's models: graded by skill, and as training examples of the aggregator."""

from collections.abc import Mapping, Sequence
from statistics import fmean

import polars as pl

from experiments.tiny_pool.questions import TinyQuestion
from experiments.tiny_pool.tokenizer import encode
from experiments.tiny_pool.training import Case
from experiments.tiny_pool.workload import counted
from mosaic.answers.extraction import extract_answer
from mosaic.answers.response_text import without_thinking
from mosaic.core.workload import CalibrationRecord, ExpertName
from mosaic.pipelines.aggregation import Response
from mosaic.workloads.routing import SkillProfiles, profiles_from_calibration

NUM_SLOTS = 3
"""Experts recruited for a question."""


def is_right(question: TinyQuestion, text: str) -> bool:
    """Grade a response as a run does."""
    return extract_answer(text, counted(question)) == question.letter


def heard(expert: ExpertName, text: str) -> Response:
    """Return what the aggregator sees of a response."""
    seen = without_thinking(text).strip()
    return Response(expert, len(encode(seen)), seen)


def shares_right(questions: Sequence[TinyQuestion], texts: Sequence[str]) -> dict[str, float]:
    """Return the share of right answers by skill, and of all."""
    right = [is_right(question, text) for question, text in zip(questions, texts, strict=True)]
    groups = [question.skill.value for question in questions]
    by_group = pl.DataFrame({"group": groups, "right": right}).group_by("group").mean().sort("group")
    shares = {group: round(share, 4) for group, share in by_group.rows()}
    return shares | {"all": round(fmean(right), 4)}


def measure_profiles(
    questions: Sequence[TinyQuestion], texts_by_expert: Mapping[ExpertName, list[str]]
) -> SkillProfiles:
    """Score the experts on calibration questions that they really answered."""
    return profiles_from_calibration(
        CalibrationRecord((question.skill.value,), expert, is_right(question, text))
        for expert, texts in texts_by_expert.items()
        for question, text in zip(questions, texts, strict=True)
    )


def make_cases(
    questions: Sequence[TinyQuestion], texts_by_expert: Mapping[ExpertName, Sequence[list[str]]]
) -> tuple[Case, ...]:
    """Collect what experts, by several draws each, said about questions."""
    heard_by_expert = {
        name: [[heard(name, text) for text in texts] for texts in draws] for name, draws in texts_by_expert.items()
    }
    return tuple(
        Case(question, {name: [draw[number] for draw in draws] for name, draws in heard_by_expert.items()})
        for number, question in enumerate(questions)
    )
