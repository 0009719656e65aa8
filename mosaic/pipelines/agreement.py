"""Measures how often calibration questions are settled early: the expected effect of an early quorum."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, islice
from typing import TypeAlias

from mosaic.core.results import CallRecord
from mosaic.core.workload import Call, CallKey, ExpertName, Question
from mosaic.pipelines.call_graph import CallGraph
from mosaic.pipelines.walk import walk

_Seen: TypeAlias = tuple[tuple[ExpertName, ...] | int, int]
"""The experts that have voted, in the order of their names, or the number of votes; and the number of missing votes."""

MAX_SUBSETS = 50
"""Subsets of a question's votes, of each size: more would add little information."""
PRIOR_QUESTIONS = 10.0
"""Assumed: observations of all experts have the weight of so many votes of the given experts."""


class Agreement:
    """Counts how often the votes of some experts settle a question while other votes are missing.

    Parameters
    ----------
    graph
        Its gates are to be settled.
    questions, records
        Of calibration only, questions by id; no answers of the batch.
    """

    def __init__(self, graph: CallGraph, questions: Mapping[str, Question], records: Iterable[CallRecord]) -> None:
        self._num_seen: Counter[_Seen] = Counter()
        self._num_settled: Counter[_Seen] = Counter()
        by_question: dict[str, dict[CallKey, CallRecord]] = defaultdict(dict)
        for record in records:
            if record.key.node in graph.first_nodes:
                by_question[record.key.question][record.key] = record
        for name, done in by_question.items():
            self._count(graph, questions[name], done)

    @property
    def is_ever_settled(self) -> bool:
        """Whether any question was settled."""
        return any(self._num_settled.values())

    def settled_frac(self, experts: Sequence[ExpertName], num_missing: int) -> float:
        """Estimate how often these experts' votes settle a question while the given number of votes is missing."""
        of_size: _Seen = len(experts), num_missing
        of_experts: _Seen = tuple(sorted(experts)), num_missing
        if not self._num_seen[of_size]:
            return 0.0
        prior = PRIOR_QUESTIONS * self._num_settled[of_size] / self._num_seen[of_size]
        return (self._num_settled[of_experts] + prior) / (self._num_seen[of_experts] + PRIOR_QUESTIONS)

    def _count(self, graph: CallGraph, question: Question, done: Mapping[CallKey, CallRecord]) -> None:
        first = [Call(record.key, record.expert, record.prompt_tokens) for record in done.values()]
        for size in range(1, len(first)):
            for calls in islice(combinations(first, size), MAX_SUBSETS):
                is_settled = bool(walk(graph, question, first, {call.key: done[call.key] for call in calls}).cancel)
                num_missing = len(first) - size
                seen: tuple[_Seen, _Seen] = (
                    (tuple(sorted(call.expert for call in calls)), num_missing),
                    (size, num_missing),
                )
                self._num_seen.update(seen)
                self._num_settled.update(seen if is_settled else ())
