"""Recruits experts for a question from what each of them is good at: Symbolic-MoE's rule.

A skill profile gives each expert a score per skill. For a question the scores of its skills are summed, weighted by the
expert's strength over all skills. The question's slots are drawn with replacement, so one expert may hold several.
Afterwards the experts that were hardly ever drawn give their slots away, because a load for a handful of calls does not
pay.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import sqrt
from pathlib import Path
from typing import Annotated

import numpy as np

from mosaic.core.addition import add_in_order
from mosaic.core.checks import AtLeast1, Limit, checked, require, require_count, require_name
from mosaic.core.json_file import read_json
from mosaic.core.workload import CalibrationRecord, ExpertName, Question

_STRENGTH_EXPONENT = 2.0
"""1 / temperature, with Symbolic-MoE's temperature of 0.5."""

_MAX_SCORE = 10**9
"""Keeps squares and products of scores within floating point."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SkillProfiles:
    """Score of every expert on every skill it was seen with: right answers minus wrong ones, so whole numbers."""

    scores: Mapping[ExpertName, Mapping[str, int]]

    def __post_init__(self) -> None:
        require(len(self.scores) > 0, "skill profiles", "a mapping with at least one expert", dict(self.scores))
        for expert, by_skill in self.scores.items():
            require_name(expert, "skill profiles: expert")
            for skill, score in by_skill.items():
                require_name(skill, f"skill profiles: {expert}: skill")
                require_count(score, f"skill profiles: {expert}.{skill}", at_least=-_MAX_SCORE, at_most=_MAX_SCORE)

    @property
    def experts(self) -> tuple[ExpertName, ...]:
        return tuple(self.scores)

    @property
    def skills(self) -> tuple[str, ...]:
        """All skills of all experts, sorted."""
        return tuple(sorted({skill for by_skill in self.scores.values() for skill in by_skill}))


def profiles_from_calibration(records: Iterable[CalibrationRecord]) -> SkillProfiles:
    """Score experts on calibration questions: +1 per skill of a question answered right, -1 of one answered wrong.

    Raises
    ------
    ValueError
        If there is no record.

    Examples
    --------
    >>> records = [CalibrationRecord(("algebra", "limits"), "A", True), CalibrationRecord(("algebra",), "A", False)]
    >>> profiles_from_calibration(records).scores
    {'A': {'algebra': 0, 'limits': 1}}
    """
    scores: dict[ExpertName, dict[str, int]] = {}
    for record in records:
        by_skill = scores.setdefault(record.expert, {})
        for skill in dict.fromkeys(record.skills):
            by_skill[skill] = by_skill.get(skill, 0) + (1 if record.right else -1)
    return SkillProfiles(scores=scores)


def load_skill_profiles(path: str | Path) -> SkillProfiles:
    """Read skill profiles from JSON: ``{"EXPERT": {"skill": score, ...}, ...}``.

    Raises
    ------
    ValueError
        Naming the file, the field and the rule.
    """
    scores = read_json(path, dict[str, dict[str, int]], "skill profiles", ValueError)
    try:
        return SkillProfiles(scores=scores)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


class NearestSkill:
    """Cosine similarity of character trigrams, with an index from trigrams to the known skills.

    A deterministic stand-in for text embeddings: it needs no model and finds spelling variants and
    shared words, not synonyms. Answers are cached, since a batch asks for the same skills again and again.

    Examples
    --------
    >>> nearest = NearestSkill(["linear algebra", "organic chemistry"])
    >>> nearest.find("Algebra (linear)"), nearest.find("organic chemistry"), nearest.find("xyz")
    ('linear algebra', 'organic chemistry', None)
    """

    def __init__(self, known: Iterable[str]) -> None:
        self._answers: dict[str, str | None] = {skill: skill for skill in sorted(known)}
        self._norms: dict[str, float] = {}
        self._index: dict[str, list[tuple[str, int]]] = {}
        for skill in tuple(self._answers):
            trigrams = _trigrams(skill)
            self._norms[skill] = _norm(trigrams)
            for trigram, count in trigrams.items():
                self._index.setdefault(trigram, []).append((skill, count))

    def find(self, skill: str) -> str | None:
        """Return the nearest known skill: itself where known, the first in order on a tie.

        None where no known skill shares a trigram: then there is no evidence to prefer any of them.
        """
        if skill not in self._answers:
            self._answers[skill] = self._search(skill)
        return self._answers[skill]

    def _search(self, skill: str) -> str | None:
        overlaps: dict[str, float] = {}
        for trigram, count in _trigrams(skill).items():
            for known, known_count in self._index.get(trigram, ()):
                overlaps[known] = overlaps.get(known, 0.0) + count * known_count
        if not overlaps:
            return None
        return min(overlaps, key=lambda known: (-overlaps[known] / self._norms[known], known))


def _trigrams(text: str) -> Counter[str]:
    words = "".join(letter if letter.isalnum() else " " for letter in text.casefold()).split()
    # A word's ends count as letters, so that short words have trigrams and beginnings weigh more.
    return Counter(padded[i : i + 3] for word in words for padded in (f" {word} ",) for i in range(len(padded) - 2))


def _norm(trigrams: Counter[str]) -> float:
    return sqrt(sum(count * count for count in trigrams.values()))


@dataclass(frozen=True, kw_only=True)
@checked("router.")
class Router:
    """Draws the slots of a question in proportion to skill and strength.

    References
    ----------
    Symbolic-MoE, arXiv 2503.05641; MOSAIC, arXiv 2606.03014, uses its assignment.
    """

    profiles: SkillProfiles
    num_slots: AtLeast1 = 3
    """Experts recruited for a question (k)."""
    min_share_frac: Annotated[float, Limit(at_least=0, below=1)] = 0.05
    """Experts with a smaller share of a batch's slots are replaced."""

    @cached_property
    def strengths(self) -> Mapping[ExpertName, float]:
        """Share of every expert in the strength of the pool; sums to 1."""
        return global_strengths(self.profiles)

    @cached_property
    def _nearest(self) -> NearestSkill:
        return NearestSkill(self.profiles.skills)

    def weights(self, skills: Sequence[str]) -> dict[ExpertName, float]:
        """Weigh the experts for a question with these skills; never all zero.

        A skill that the profiles do not know counts as the nearest one that they do.
        """
        known = [skill for skill in map(self._nearest.find, dict.fromkeys(skills)) if skill is not None]
        scores = {
            expert: sum(by_skill.get(skill, 0) for skill in known) for expert, by_skill in self.profiles.scores.items()
        }
        if max(scores.values()) <= 0:
            scores = _shifted_to_positive(scores)
        return {expert: max(0.0, score) * self.strengths[expert] for expert, score in scores.items()}

    def recruit(self, question: Question, rng: np.random.Generator) -> tuple[ExpertName, ...]:
        """Draw the question's slots, with replacement."""
        return _draw(self.weights(question.skills), self.num_slots, rng)

    def recruit_batch(self, questions: Sequence[Question], *, seed: int) -> tuple[tuple[ExpertName, ...], ...]:
        """Recruit for every question, then replace the experts that hold too small a share of the batch."""
        draws, replacements = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2))
        slots = tuple(self.recruit(question, draws) for question in questions)
        return replace_rare_experts(slots, self.min_share_frac, replacements)


def global_strengths(profiles: SkillProfiles) -> dict[ExpertName, float]:
    """Sum each profile, shift the sums to be positive, square them and normalise.

    The published rule leaves the shift open; here it is 1 - min, as for scores, and only where a sum is not positive.
    """
    totals = {expert: sum(by_skill.values()) for expert, by_skill in profiles.scores.items()}
    if min(totals.values()) <= 0:
        totals = _shifted_to_positive(totals)
    powers = {expert: total**_STRENGTH_EXPONENT for expert, total in totals.items()}
    norm = add_in_order(powers.values())
    return {expert: power / norm for expert, power in powers.items()}


def replace_rare_experts(
    slots: Sequence[Sequence[ExpertName]], min_share_frac: float, rng: np.random.Generator
) -> tuple[tuple[ExpertName, ...], ...]:
    """Replace, slot by slot, the experts with less than a share of all slots by draws from the others' counts.

    If every expert is below the share (a pool of more than 1 / share experts) no expert is left to draw and all stay.
    """
    counts = Counter(expert for of_question in slots for expert in of_question)
    total = counts.total()
    kept = {expert: float(count) for expert, count in counts.items() if count >= min_share_frac * total}
    if not kept or len(kept) == len(counts):
        return tuple(tuple(of_question) for of_question in slots)
    return tuple(
        tuple(expert if expert in kept else _draw(kept, 1, rng)[0] for expert in of_question) for of_question in slots
    )


def _shifted_to_positive(values: Mapping[ExpertName, int]) -> dict[ExpertName, int]:
    shift = 1 - min(values.values())
    return {expert: value + shift for expert, value in values.items()}


def _draw(weights: Mapping[ExpertName, float], num: int, rng: np.random.Generator) -> tuple[ExpertName, ...]:
    """Draw names with replacement in proportion to their weights; a weight of 0 is never drawn."""
    names = [name for name, weight in weights.items() if weight > 0]
    bounds = list(accumulate(weights[name] for name in names))
    # The product can round up to the last bound, hence the limit.
    picks = (min(bisect_right(bounds, u * bounds[-1]), len(names) - 1) for u in rng.random(num).tolist())
    return tuple(names[pick] for pick in picks)
