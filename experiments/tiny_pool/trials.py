"""What the tiny pool is worth: answers graded by skill, the vote of routed experts, the aggregator; as a table."""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import comb
from statistics import fmean
from typing import Any, NamedTuple

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
NUM_SAMPLED = 40
"""Lengths that stand for all: the middles of as many equal shares of them."""


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
    graded = [(question.skill.value, is_right(question, text)) for question, text in zip(questions, texts, strict=True)]
    return _shares(graded)


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
    by_vote = [answer == question.letter for question, (answer, _) in zip(questions, votes, strict=True)]
    by_judge = [is_right(question, answered.text) for question, answered in zip(questions, judged, strict=True)]
    skills = [question.skill.value for question in questions]
    divisions = [division for _, division in votes]
    better = sum(judge and not voted for voted, judge in zip(by_vote, by_judge, strict=True))
    worse = sum(voted and not judge for voted, judge in zip(by_vote, by_judge, strict=True))
    answered_by: dict[ExpertName, list[Answered]] = {}
    by_slot: list[tuple[ExpertName, bool]] = []
    for question, slots in zip(questions, slots_of, strict=True):
        for slot in slots:
            answered_by.setdefault(slot.expert, []).append(slot.answered)
            by_slot.append((slot.expert, is_right(question, slot.answered.text)))
    return {
        "num_questions": len(questions),
        "slot_share": {name: round(len(answered_by[name]) / len(by_slot), 4) for name in sorted(answered_by)},
        "slots_right": _shares(by_slot),
        "output_tokens": {name: length_summary(answered_by[name]) for name in sorted(answered_by)},
        "aggregator_output_tokens": length_summary(judged),
        "majority": _shares(zip(skills, by_vote, strict=True)),
        "aggregator": _shares(zip(skills, by_judge, strict=True)),
        "division_share": {key: round(n / len(questions), 4) for key, n in sorted(Counter(divisions).items())},
        "majority_by_division": _shares(zip(divisions, by_vote, strict=True)),
        "aggregator_by_division": _shares(zip(divisions, by_judge, strict=True)),
        "aggregator_only_right": better,
        "majority_only_right": worse,
        "p_value": round(sign_test(better, worse), 6),
    }


def best_routed(
    questions: Sequence[TinyQuestion], profiles: SkillProfiles, texts_by_expert: Mapping[ExpertName, Sequence[str]]
) -> dict[str, float]:
    """Grade one answer a question, by the expert that calibration found best at its skill."""
    best = {skill: max(profiles.experts, key=lambda name: profiles.scores[name][skill.value]) for skill in SKILLS}
    return shares_right(questions, [texts_by_expert[best[question.skill]][i] for i, question in enumerate(questions)])


def sign_test(better: int, worse: int) -> float:
    """Return the two-sided p-value of a paired comparison: McNemar's test in its exact form.

    Examples
    --------
    >>> sign_test(5, 5), round(sign_test(10, 1), 4)
    (1.0, 0.0117)
    """
    total = better + worse
    tail: float = sum(comb(total, k) for k in range(max(better, worse), total + 1)) / 2**total
    return min(1.0, 2 * tail)


def length_summary(answered: Sequence[Answered]) -> dict[str, Any]:
    """Return mean, extremes and an even sample of the tokens written, prompt left out."""
    tokens = sorted(answer.num_tokens for answer in answered)
    sample = [tokens[int(len(tokens) * (i + 0.5) / NUM_SAMPLED)] for i in range(NUM_SAMPLED)]
    return {"mean": round(fmean(tokens), 2), "min": tokens[0], "max": tokens[-1], "sample": sample}


def _shares(graded: Any) -> dict[str, float]:
    by_group: dict[str, list[bool]] = {}
    for group, right in graded:
        by_group.setdefault(group, []).append(right)
    all_of_them = [right for group in by_group.values() for right in group]
    return {group: round(fmean(by_group[group]), 4) for group in sorted(by_group)} | {
        "all": round(fmean(all_of_them), 4)
    }


_GROUPS = (*(skill.value for skill in SKILLS), "all")


def describe_pool(manifest: Mapping[str, Any]) -> str:
    """Write a pool's results as a table.

    Parameters
    ----------
    manifest
        Of the pool, as ``experiments/make_pool.py`` writes it.
    """
    results = manifest["results"]
    routed = results["routed"]
    lines = [
        f"right answers, {results['num_test']} held-out questions",
        _row("", [group.replace("_", " ") for group in _GROUPS], "tokens"),
    ]
    for name, expert in results["experts"].items():
        tokens = f"{expert['output_tokens']['mean']:.0f}"
        lines.append(_row(name, _percentages(expert["right"]), tokens))
    lines += [
        _row("best expert of skill", _percentages(results["best_routed_expert"])),
        _row("majority of three", _percentages(routed["majority"])),
        _row("aggregator", _percentages(routed["aggregator"])),
        _row("aggregator alone", _percentages(results["aggregator_alone"])),
        _divisions(routed),
        _verdict(routed),
    ]
    return "\n".join(lines)


def _row(label: str, cells: list[str], last: str = "") -> str:
    return f"{label:<22}{''.join(f'{cell:>12}' for cell in cells)}{last:>9}".rstrip()


def _percentages(right: Mapping[str, float]) -> list[str]:
    return [f"{right[group]:.1%}" for group in _GROUPS]


def _divisions(routed: Mapping[str, Any]) -> str:
    parts = [
        f"{division} on {share:.0%}, {routed['majority_by_division'][division]:.0%} right by majority and "
        f"{routed['aggregator_by_division'][division]:.0%} by aggregator"
        for division, share in sorted(routed["division_share"].items(), reverse=True)
    ]
    return "answers divide " + "; ".join(parts)


def _verdict(routed: Mapping[str, Any]) -> str:
    gain = routed["aggregator"]["all"] - routed["majority"]["all"]
    return (
        f"aggregator against majority: {100 * gain:+.1f} points, right alone on {routed['aggregator_only_right']} "
        f"questions against {routed['majority_only_right']} (p = {routed['p_value']:.2g})"
    )
