"""Finds the known skill whose text is nearest to an unknown one."""

from collections import Counter
from collections.abc import Iterable
from math import sqrt


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
