"""Forecasts the remaining tokens and time of running calls, and the factor between their lengths and a sample's.

NOTE: remaining tokens. The remaining length of a call that has written g tokens is taken from the calls of the sample
that wrote more than g. Each call of a session gets a few of these lengths, at quantiles spread evenly over the
session's calls. Then the session is computed in closed form: an iteration with n running calls takes the time for n,
until the shortest has ended. The mean over the draws includes the tail, which a mean length would hide.

NOTE: the factor. Calls that end first are short, so their mean is biased. Under the right factor c, every call, ended
or not, has used up a part of its hazard. The sum over calls of the cumulative hazard H(tokens / c) is on average the
number of calls that have ended. It is a martingale, with any censoring. That sum falls as c grows, so bisection finds
the c that makes the two equal. If c = 1 is right, the two differ only by chance, which is about the root of the number
that ended.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import sqrt

import numpy as np
import numpy.typing as npt

from mosaic.core.checks import NotNegative, checked

Floats = npt.NDArray[np.float64]
Indexes = npt.NDArray[np.int64]
Chosen = npt.NDArray[np.bool_]

MIN_DRAWS, MAX_DRAWS, NUM_DRAWN = 4, 16, 128
"""Lengths drawn for a session in all, within the least and the most draws per call."""
GOLDEN = 0.6180339887498949
"""Multiples of it are spread evenly over 0..1, for any number of them."""
BEYOND_FRAC = 0.1
"""Remaining length of a call that has written more than the whole sample, as a share of the longest."""
MIN_ENDED = 12
"""Ended calls of an expert; fewer give no information."""
NUM_SIGMAS = 4.0
"""Standard deviations of chance: there are many experts, and the test is repeated often."""
LEAST_SCALE, MOST_SCALE = 0.05, 20.0
"""Range of factors that are searched."""


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("speed: ")
class Speed:
    """An iteration that decodes n sequences with k tokens of context in all takes base_s + per_seq_s n + per_kv_s k."""

    base_s: NotNegative
    per_seq_s: NotNegative
    per_kv_s: NotNegative
    read_s: NotNegative
    """Seconds for a token of a prompt, or a written token of a call that is moved."""

    def step_s(self, num_seqs: float, kv_tokens: float = 0.0) -> float:
        """Predict an iteration."""
        return self.base_s + self.per_seq_s * num_seqs + self.per_kv_s * kv_tokens


@dataclass(frozen=True, slots=True)
class Lengths:
    """The sample of an expert's lengths."""

    sample: tuple[int, ...]
    _sorted: Floats = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.sample:
            raise ValueError("lengths: sample must hold at least one length, got none")
        object.__setattr__(self, "_sorted", np.sort(np.array(self.sample, dtype=float)))

    def left(self, written: Floats, quantiles: Floats) -> Floats:
        """Return the remaining tokens of calls, at quantiles of the sample's calls that wrote more.

        Examples
        --------
        >>> Lengths((10, 20, 30)).left(np.array([0.0, 10.0, 25.0, 40.0]), np.array([0.0, 0.9, 0.5, 0.5])).tolist()
        [10.0, 20.0, 5.0, 3.0]
        """
        known = self._sorted
        first = known.searchsorted(written, side="right")
        num_longer = len(known) - first
        place = np.minimum(first + (quantiles * num_longer).astype(int), len(known) - 1)
        return np.where(num_longer > 0, known[place] - written, BEYOND_FRAC * known[-1])


@dataclass(frozen=True, slots=True)
class Underway:
    """What is known of unended calls: arrays, since they are read often."""

    samples: Sequence[Lengths]
    """Samples of lengths, shared by all that are compared."""
    sample_of: Indexes
    """Index of each call's sample."""
    written: Floats
    prompt_tokens: Floats

    def __len__(self) -> int:
        return len(self.written)

    def part(self, chosen: Indexes | Chosen) -> "Underway":
        """Return some of the calls, by their indexes or by a mask."""
        return Underway(self.samples, self.sample_of[chosen], self.written[chosen], self.prompt_tokens[chosen])

    def joined(self, more: "Underway") -> "Underway":
        """Return these calls followed by others."""
        return Underway(
            self.samples,
            np.concatenate((self.sample_of, more.sample_of)),
            np.concatenate((self.written, more.written)),
            np.concatenate((self.prompt_tokens, more.prompt_tokens)),
        )


def drain_s(calls: Underway, speed: Speed, head_start_s: float = 0.0) -> float:
    """Predict the seconds until the last of some calls has ended, all of them running now.

    Parameters
    ----------
    calls
        The remaining work.
    speed
        Speed of the engine that serves them; it first reads the tokens that no engine has read yet.
    head_start_s
        Time for which each call has continued elsewhere, as if it were alone.

    Examples
    --------
    >>> slow = Speed(base_s=1.0, per_seq_s=0.5, per_kv_s=0.0, read_s=0.0)
    >>> two = Underway([Lengths((10,)), Lengths((30,))], np.arange(2), np.zeros(2), np.full(2, 5.0))
    >>> drain_s(two, slow)
    50.0
    """
    if not len(calls):
        return 0.0
    left = draws_left(calls)
    if head_start_s:
        left = np.maximum(left - head_start_s / speed.step_s(1), 0.0)
    context = calls.prompt_tokens + calls.written
    order, ends = left.argsort(axis=1), np.sort(left, axis=1)
    steps = ends.copy()
    steps[:, 1:] -= ends[:, :-1]
    num_seqs = np.arange(len(context), 0, -1)
    written = ends - steps / 2  # by each call from now on, halfway between two ends
    kv_tokens = context[order[:, ::-1]].cumsum(axis=1)[:, ::-1] + num_seqs * written
    step_s = speed.base_s + speed.per_seq_s * num_seqs + speed.per_kv_s * kv_tokens
    return float((steps * step_s).sum(axis=1).mean())


def draws_left(calls: Underway) -> Floats:
    """Draw the remaining tokens of calls: an array of shape (number of draws, number of calls)."""
    num_calls = len(calls)
    num_draws = min(max(NUM_DRAWN // num_calls, MIN_DRAWS), MAX_DRAWS)
    shifts = np.arange(num_draws)[:, None] / num_draws
    first = calls.sample_of[0]
    if (calls.sample_of == first).all():
        return _draws(calls.samples[first], calls.written, shifts)
    left = np.zeros((num_draws, num_calls))
    for index in set(calls.sample_of.tolist()):
        own = np.flatnonzero(calls.sample_of == index)
        left[:, own] = _draws(calls.samples[index], calls.written[own], shifts)
    return left


def _draws(lengths: Lengths, written: Floats, shifts: Floats) -> Floats:
    """Draw the remaining tokens of calls with the same sample."""
    ranks = np.empty(len(written))
    ranks[written.argsort(kind="stable")] = np.arange(len(written))
    spread = (ranks + 0.5) * GOLDEN + shifts
    return lengths.left(written, spread - np.floor(spread))


def length_scale(sample: Sequence[int], ended: Sequence[int], running: Sequence[int]) -> float:
    """Return the factor by which lengths differ from a sample; 1 if chance explains the difference.

    ``ended`` are tokens of calls that have ended, ``running`` those written so far by running calls.

    Examples
    --------
    >>> sample = [100 + 10 * i for i in range(50)]
    >>> length_scale(sample, sample[::2], ())
    1.0
    >>> length_scale(sample, [3 * n for n in sample], ()) > 2.5
    True
    """
    num_ended = len(ended)
    if num_ended < MIN_ENDED or not sample:
        return 1.0
    known = np.sort(np.array(sample, dtype=float))
    hazard = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(len(known), 0, -1))])
    tokens = np.array([*ended, *running], dtype=float)

    def used(scale: float) -> float:
        # NOTE: half of the last step, since a length lies somewhere within it
        place = np.searchsorted(known, tokens / scale, side="right")
        return float((hazard[place] + hazard[np.searchsorted(known, tokens / scale, side="left")]).sum() / 2)

    if abs(used(1.0) - num_ended) <= NUM_SIGMAS * sqrt(num_ended * (1.0 + num_ended / len(sample))):
        return 1.0
    low, high = LEAST_SCALE, MOST_SCALE
    for _ in range(40):
        middle = sqrt(low * high)
        low, high = (middle, high) if used(middle) > num_ended else (low, middle)
    return sqrt(low * high)
