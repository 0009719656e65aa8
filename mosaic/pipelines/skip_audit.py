"""Bounds, without gold labels, how many skipped questions would have another answer if they had been aggregated.

NOTE: the idea. Of N skipped questions an unknown number D would change. They are aggregated one after the other, in an
order that was fixed before any answer: this is sampling without replacement. For every number D, a bettor who believes
in fewer changes bets against it. His prior is a mixture of the numbers below D. His wealth is the likelihood of the
observations under this prior, divided by their likelihood under D. If D is the truth, the wealth is a martingale from
1, and ever reaches 1 / risk with probability at most risk (Ville). So the largest D whose bettor has not reached this
wealth bounds the truth. The bound holds at every moment at once: one may check it after each answer, stop when it is
good enough, or continue later.

References
----------
Waudby-Smith and Ramdas, "Confidence sequences for sampling without replacement", NeurIPS 2020, arXiv 2006.04347.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Annotated, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mosaic.core.checks import AtLeast1, Limit, checked, require

Floats: TypeAlias = NDArray[np.float64]

PRIOR_OFFSET, PRIOR_POWER = 10.0, 1.5
"""The prior of D falls as (D + 10) ** -1.5: most weight on few changes, and some on many."""


@dataclass(slots=True, kw_only=True)
@checked("")
class SkipAudit:
    """The observations of an audit, and its bound."""

    num_skipped: AtLeast1
    """N: all questions that were skipped."""
    risk: Annotated[float, Limit(above=0, below=1)] = 0.05
    """The bound is wrong at any moment with at most this probability."""
    num_audited: int = field(default=0, init=False)
    num_changed: int = field(default=0, init=False)
    bound: int = field(default=0, init=False)
    """Largest number of the skipped questions that would change; it never rises."""

    def __post_init__(self) -> None:
        self.bound = self.num_skipped

    def see(self, changes: Iterable[bool]) -> int:
        """Add the next questions; returns the bound.

        Raises
        ------
        ValueError
            If there are more than were skipped.
        """
        for has_changed in changes:
            require(self.num_audited < self.num_skipped, "changes", f"of {self.num_skipped} questions", "more")
            self.num_audited += 1
            self.num_changed += has_changed
            now = upper_bound(self.num_skipped, self.num_audited, self.num_changed, self.risk)
            self.bound = min(self.bound, now)
        return self.bound

    @property
    def bound_frac(self) -> float:
        """The bound as a share of the skipped questions."""
        return self.bound / self.num_skipped


def upper_bound(num_skipped: int, num_audited: int, num_changed: int, risk: float) -> int:
    """Bound the changes among the skipped questions from the observations of one moment.

    Examples
    --------
    >>> upper_bound(1000, 300, 0, 0.05), upper_bound(1000, 1000, 12, 0.05)
    (10, 12)
    """
    likelihood = log_likelihood(num_skipped, num_audited, num_changed)
    prior = -PRIOR_POWER * np.log(np.arange(num_skipped + 1) + PRIOR_OFFSET)
    weight = np.logaddexp.accumulate(prior)
    believed = np.logaddexp.accumulate(prior + likelihood)
    possible = np.flatnonzero(np.isfinite(likelihood))
    wealth = np.full(num_skipped + 1, -np.inf)
    behind = possible[possible > 0]
    wealth[behind] = believed[behind - 1] - weight[behind - 1] - likelihood[behind]
    alive = possible[wealth[possible] < -np.log(risk)]
    return int(alive[-1])


def log_likelihood(num_skipped: int, num_audited: int, num_changed: int) -> Floats:
    """Log likelihood of the observations, by the number of changes among all questions, shape (num_skipped + 1,).

    Terms that do not depend on that number are left out: the order of the changes does not matter.
    """
    changes = np.arange(num_skipped + 1)
    return _log_choose(num_skipped - num_audited, changes - num_changed) - _log_choose(num_skipped, changes)


def _log_choose(total: int, chosen: NDArray[np.int64]) -> Floats:
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, total + 1)))])
    inside = (chosen >= 0) & (chosen <= total)
    part = np.where(inside, chosen, 0)
    return np.where(inside, logs[total] - logs[part] - logs[total - part], -np.inf)


def num_to_reach(audit: SkipAudit, bound_frac: float) -> int | None:
    """Predict how many audited questions a bound takes if the rate of changes continues; None: all are not enough.

    If no change was observed so far, it counts as a third of one: a larger number is as likely as a smaller one.
    """
    rate = max(audit.num_changed, 1 / 3) / max(audit.num_audited, 1)

    def holds(number: int) -> bool:
        more = round(rate * (number - audit.num_audited)) if audit.num_changed else 0
        changed = min(number, audit.num_changed + more)
        return upper_bound(audit.num_skipped, number, changed, audit.risk) <= bound_frac * audit.num_skipped

    low, high = audit.num_audited, audit.num_skipped
    if not holds(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def audit_order(questions: Sequence[str], seed: str) -> list[str]:
    """Put questions in a random order that depends only on the seed and their ids: answers cannot influence it.

    Examples
    --------
    >>> sorted(audit_order(["a", "b", "c"], "seed")) == ["a", "b", "c"]
    True
    """
    return sorted(questions, key=lambda name: blake2b(f"{seed}|audit|{name}".encode(), digest_size=16).digest())
