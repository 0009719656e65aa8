"""Compares the votes of a batch with those of calibration questions: a promise needs the same distribution.

NOTE: the idea. If questions are drawn alike, chance alone decides which are in the calibration set and which in the
batch. So all of them are divided anew between the two, many times. The p-value is the share of divisions whose vote
patterns differ at least as much as the observed ones. Below 1% the questions count as different.

Only votes that are known on both sides are compared. A call that budgets cut, or might cut, has no reliable vote: it
counts as missing on both sides. A quorum or an exit cancels calls whose votes no longer matter. Then one class on both
sides holds two groups of questions. The gate could decide the first group without one of their votes; the second group
has a cancelled call. Membership in that class depends on the responses, and not on when calls ended.

A test of votes cannot detect a shift that leaves the votes unchanged. Examples are experts that agree as often and are
wrong more often, or another aggregator. Only a simulation, or an audit, shows the loss then.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from mosaic.pipelines.rules.ballot import Ballot
from mosaic.pipelines.rules.rule import Rule

LEVEL = 0.01
"""Probability that questions that are drawn alike count as different."""
NUM_DEALS = 9_999
SEED = 0
"""Fixed, so that the same counts have the same p-value."""
EARLY = "decided early or cut short"
"""The class of questions whose votes need not all be known."""


class PatternTest(NamedTuple):
    """The number of questions per vote pattern, and the probability of such a difference by chance."""

    calibration: Mapping[str, int]
    batch: Mapping[str, int]
    p_value: float

    @property
    def differs(self) -> bool:
        """Whether the questions count as different."""
        return self.p_value < LEVEL

    def largest_differences(self, number: int) -> str:
        """Name the patterns whose shares differ most, with both shares."""
        here, there = (_shares(counts) for counts in (self.batch, self.calibration))
        order = sorted(here | there, key=lambda name: -abs(here.get(name, 0.0) - there.get(name, 0.0)))
        return "; ".join(f"{name} {here.get(name, 0):.1%} (was {there.get(name, 0):.1%})" for name in order[:number])


def vote_pattern(ballot: Ballot) -> str:
    """Describe how a ballot's votes split, without the answers themselves.

    Examples
    --------
    >>> from mosaic.core.workload import Question
    >>> from mosaic.pipelines.rules.ballot import Vote
    >>> def pattern(answers):
    ...     votes = tuple(Vote("A", None if answer == "-" else answer) for answer in answers)
    ...     return vote_pattern(Ballot(question=Question(id="q", prompt_tokens=1), votes=votes, comparable=True))
    >>> [pattern("xxx"), pattern("xyx"), pattern("xyz"), pattern("xx-"), pattern("---")]
    ['3:0', '2:1', '1:1:1', '2:0, 1 missing', '3 missing']
    """
    answers = [vote.answer for vote in ballot.votes if vote.answer is not None]
    sizes = sorted(Counter(answers).values(), reverse=True)
    num_missing = len(ballot.votes) - len(answers)
    split = ":".join(map(str, sizes if len(sizes) != 1 else [*sizes, 0]))
    return ", ".join(part for part in (split, f"{num_missing} missing" if num_missing else "") if part)


def may_be_early(rule: Rule, ballot: Ballot) -> bool:
    """Return whether a rule can decide without one of the votes, whichever comes last."""
    places = range(len(ballot.votes))
    return any(rule.decided_early(replace(ballot.without(place), pending=(place,))) is not None for place in places)


def compare_patterns(calibration: Iterable[str], batch: Iterable[str]) -> PatternTest:
    """Test whether two groups of questions have the same distribution of patterns.

    A permutation test with chi-square as its statistic: valid for any number of questions and patterns.

    Examples
    --------
    >>> compare_patterns(["3:0"] * 80 + ["2:1"] * 20, ["3:0"] * 40 + ["2:1"] * 10).p_value
    1.0
    >>> compare_patterns(["3:0"] * 80 + ["2:1"] * 20, ["3:0"] * 25 + ["2:1"] * 25).differs
    True
    """
    there, here = Counter(calibration), Counter(batch)
    names = sorted(there | here)
    totals = np.array([there[name] + here[name] for name in names], dtype=np.int64)
    seen = np.array([here[name] for name in names], dtype=np.int64)
    if len(names) < 2 or not there or not here:
        return PatternTest(there, here, 1.0)
    deals = np.random.default_rng(SEED).multivariate_hypergeometric(
        totals, int(seen.sum()), size=NUM_DEALS, method="marginals"
    )
    expected = totals * (seen.sum() / totals.sum())
    distances = (np.square(deals - expected) / totals).sum(axis=1)
    distance = (np.square(seen - expected) / totals).sum()
    num_further = int((distances >= distance * (1 - 1e-9)).sum())
    return PatternTest(there, here, (1 + num_further) / (1 + NUM_DEALS))


def _shares(counts: Mapping[str, int]) -> dict[str, float]:
    total = max(1, sum(counts.values()))
    return {name: number / total for name, number in counts.items()}
