"""What the tiny pool is worth: answers graded by skill, the vote of routed experts, the aggregator; as a table."""

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import polars as pl
from scipy.stats import binomtest

from experiments.lab.tables import markdown
from experiments.tiny_pool.questions import SKILLS, TinyQuestion
from experiments.tiny_pool.tokenizer import encode
from experiments.tiny_pool.training import Case
from experiments.tiny_pool.workload import counted
from mosaic.answers.extraction import comparison, extract_answer
from mosaic.answers.response_text import without_thinking
from mosaic.core.workload import AnswerKind, CalibrationRecord, ExpertName
from mosaic.pipelines.aggregation import Response
from mosaic.pipelines.rules.ballot import Ballot, Vote, make_ballot, plurality
from mosaic.workloads.routing import Router, SkillProfiles, profiles_from_calibration

NUM_SLOTS = 3
"""Experts recruited for a question."""


class Answered(NamedTuple):
    """What a model wrote."""

    num_tokens: int
    """The end token included."""
    text: str


class Slot(NamedTuple):
    """One of a question's routed responses."""

    expert: ExpertName
    answered: Answered


def is_right(question: TinyQuestion, text: str) -> bool:
    """Grade a response as a run does."""
    return extract_answer(text, counted(question)) == question.letter


def heard(expert: ExpertName, answered: Answered) -> Response:
    """Return what the aggregator sees of a response."""
    text = without_thinking(answered.text).strip()
    return Response(expert, len(encode(text)), text)


def shares_right(questions: Sequence[TinyQuestion], texts: Sequence[str]) -> dict[str, float]:
    """Return the share of right answers by skill, and of all."""
    right = [is_right(question, text) for question, text in zip(questions, texts, strict=True)]
    return _shares([question.skill.value for question in questions], right)


def measure_profiles(
    questions: Sequence[TinyQuestion], answered_by_expert: Mapping[ExpertName, Sequence[Answered]]
) -> SkillProfiles:
    """Score the experts on calibration questions that they really answered."""
    return profiles_from_calibration(
        CalibrationRecord((question.skill.value,), expert, is_right(question, answer.text))
        for expert, answered in answered_by_expert.items()
        for question, answer in zip(questions, answered, strict=True)
    )


def make_cases(
    questions: Sequence[TinyQuestion], answered_by_expert: Mapping[ExpertName, Sequence[Sequence[Answered]]]
) -> tuple[Case, ...]:
    """Collect what experts, by several draws each, said about questions."""
    heard_by_expert = {
        name: [[heard(name, answer) for answer in answered] for answered in draws]
        for name, draws in answered_by_expert.items()
    }
    return tuple(
        Case(question, {name: [draw[number] for draw in draws] for name, draws in heard_by_expert.items()})
        for number, question in enumerate(questions)
    )


def recruit(questions: Sequence[TinyQuestion], profiles: SkillProfiles, seed: int) -> list[tuple[ExpertName, ...]]:
    """Recruit for each question as a run does."""
    router = Router(profiles=profiles, num_slots=NUM_SLOTS)
    return list(router.recruit_batch([counted(q, str(i)) for i, q in enumerate(questions)], seed=seed))


def vote(question: TinyQuestion, slots: Sequence[Slot]) -> tuple[str | None, str]:
    """Return the answer of most slots, and how the slots divide: 3:0, 2:1, 1:1:1, with unparsable ones left out."""
    item = counted(question)
    votes = [Vote(slot.expert, extract_answer(slot.answered.text, item)) for slot in slots]
    ballot: Ballot = make_ballot(item, votes, comparison(AnswerKind.CHOICE))
    counts = sorted(Counter(cast.answer for cast in ballot.votes if cast.answer is not None).values(), reverse=True)
    division = ":".join(map(str, counts if len(counts) > 1 else [*counts, 0])) if counts else "none"
    return plurality(ballot).answer, division


def compare_routed(
    questions: Sequence[TinyQuestion], slots_of: Sequence[Sequence[Slot]], judged: Sequence[Answered]
) -> dict[str, Any]:
    """Compare the aggregator with the majority, question by question.

    Parameters
    ----------
    questions
        The test's.
    slots_of
        The routed responses of each.
    judged
        The aggregator's response to each.
    """
    votes = [vote(question, slots) for question, slots in zip(questions, slots_of, strict=True)]
    skills = [question.skill.value for question in questions]
    by_vote = [answer == question.letter for question, (answer, _) in zip(questions, votes, strict=True)]
    by_judge = [is_right(question, answered.text) for question, answered in zip(questions, judged, strict=True)]
    graded = pl.DataFrame(
        {"division": [division for _, division in votes], "majority": by_vote, "aggregator": by_judge}
    )
    divisions = graded.group_by("division").agg(pl.len() / len(graded), pl.col("majority", "aggregator").mean())
    better = int((graded["aggregator"] & ~graded["majority"]).sum())
    worse = int((graded["majority"] & ~graded["aggregator"]).sum())
    return {
        "majority": _shares(skills, by_vote),
        "aggregator": _shares(skills, by_judge),
        "divisions": divisions.sort("division", descending=True).to_dicts(),
        "aggregator_only_right": better,
        "majority_only_right": worse,
        "p_value": round(float(binomtest(better, better + worse).pvalue), 6) if better + worse else 1.0,
    }


def best_routed(
    questions: Sequence[TinyQuestion], profiles: SkillProfiles, texts_by_expert: Mapping[ExpertName, Sequence[str]]
) -> dict[str, float]:
    """Grade one answer a question, by the expert that calibration found best at its skill."""
    best = {skill: max(profiles.experts, key=lambda name: profiles.scores[name][skill.value]) for skill in SKILLS}
    return shares_right(questions, [texts_by_expert[best[question.skill]][i] for i, question in enumerate(questions)])


def _shares(groups: Sequence[str], right: Sequence[bool]) -> dict[str, float]:
    by_group = pl.DataFrame({"group": groups, "right": right}).group_by("group").mean().sort("group")
    shares = {group: round(share, 4) for group, share in by_group.rows()}
    return shares | {"all": round(fmean(right), 4)}


def describe_pool(manifest: Mapping[str, Any]) -> str:
    """Write a pool's results as a table.

    Parameters
    ----------
    manifest
        Of the pool, as ``experiments/make_pool.py`` writes it.
    """
    results = manifest["results"]
    routed = results["routed"]
    rows = [(name, expert["right"], f"{expert['mean_tokens']:.0f}") for name, expert in results["experts"].items()]
    rows += [
        ("best expert of skill", results["best_routed_expert"], ""),
        ("majority of three", routed["majority"], ""),
        ("aggregator", routed["aggregator"], ""),
        ("aggregator alone", results["aggregator_alone"], ""),
    ]
    cells = [
        {"": name, **{group.replace("_", " "): f"{share:.1%}" for group, share in right.items()}, "tokens": tokens}
        for name, right, tokens in rows
    ]
    divisions = "; ".join(
        "{division} on {len:.0%}, {majority:.0%} right by majority and {aggregator:.0%} by aggregator".format(**row)
        for row in routed["divisions"]
    )
    gain = routed["aggregator"]["all"] - routed["majority"]["all"]
    return "\n".join(
        [
            f"right answers, {results['num_test']} held-out questions",
            markdown(cells),
            f"answers divide {divisions}",
            f"aggregator against majority: {100 * gain:+.1f} points, right alone on {routed['aggregator_only_right']} "
            f"questions against {routed['majority_only_right']} (p = {routed['p_value']:.2g}, McNemar's exact test)",
        ]
    )
