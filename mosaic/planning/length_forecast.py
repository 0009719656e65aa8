"""What calls under way still write and how long that takes, and by which factor lengths differ from a sample.

NOTE: what is left. A call that has written g tokens writes on as the calls of the sample did that wrote more than g.
Each call of a session is given a few lengths of these, at quantiles that are spread evenly over its calls, and the
session is played through in closed form: n calls under way take an iteration of n, until the shortest has ended. The
mean over the draws knows of the tail that a mean length hides.

NOTE: the factor. Calls that end first are the short ones, so their mean says too little. Under the right factor c every
call, ended or not, has used up a share of its hazard, and the sum over calls of the cumulative hazard H(tokens / c) is
on average the number of calls that have ended: a martingale, whatever was censored and when. That sum falls as c grows,
so the c that makes the two equal is found by bisection; where c = 1 is right the two differ by no more than chance,
which is about the root of the number that ended.
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
"""So many lengths are drawn for a session in all, where that is no fewer or more of each call."""
GOLDEN = 0.6180339887498949
"""Its multiples are spread evenly over 0..1, however many there are."""
BEYOND_FRAC = 0.1
"""A call that has written more than any of the sample goes on for such a share of the longest."""
MIN_ENDED = 12
"""Of an expert's calls; fewer say nothing."""
NUM_SIGMAS = 4.0
"""Of chance: experts are many, and one looks often."""
LEAST_SCALE, MOST_SCALE = 0.05, 20.0
"""Factors that are looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("speed: ")
class Speed:
    """An iteration that decodes n sequences with k tokens of context in all takes base_s + per_seq_s n + per_kv_s k."""

    base_s: NotNegative
    per_seq_s: NotNegative
    per_kv_s: NotNegative
    read_s: NotNegative
    """A token of a prompt, or of what a call that is moved has written."""

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
        """Return the tokens that calls write on, at quantiles of those of the sample that wrote more.

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
    """What is known of calls that have not ended: arrays, as they are read over and over."""

    samples: Sequence[Lengths]
    """Samples of lengths, shared by all that are compared."""
    sample_of: Indexes
    """The index of each call's sample."""
    written: Floats
    prompt_tokens: Floats

    def __len__(self) -> int:
        return len(self.written)

    def part(self, chosen: Indexes | Chosen) -> "Underway":
        """Give some of the calls, by their indexes or by a mask."""
        return Underway(self.samples, self.sample_of[chosen], self.written[chosen], self.prompt_tokens[chosen])

    def joined(self, more: "Underway") -> "Underway":
        """Give these calls and others behind them."""
        return Underway(
            self.samples,
            np.concatenate((self.sample_of, more.sample_of)),
            np.concatenate((self.written, more.written)),
            np.concatenate((self.prompt_tokens, more.prompt_tokens)),
        )


def drain_s(calls: Underway, speed: Speed, head_start_s: float = 0.0) -> float:
    """Predict the seconds until the last of some calls has ended, all of them under way now.

    Parameters
    ----------
    calls
        What is left to do.
    speed
        Of the engine that serves them, which reads first what no engine has read yet.
    head_start_s
        For so long each of them has gone on elsewhere, as if it were alone.

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
    written = ends - steps / 2  # by each call since now, halfway between two ends
    kv_tokens = context[order[:, ::-1]].cumsum(axis=1)[:, ::-1] + num_seqs * written
    step_s = speed.base_s + speed.per_seq_s * num_seqs + speed.per_kv_s * kv_tokens
    return float((steps * step_s).sum(axis=1).mean())


def draws_left(calls: Underway) -> Floats:
    """Draw what calls write on: an array of (number of draws, number of calls) tokens."""
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
    """Draw what calls of one sample write on."""
    ranks = np.empty(len(written))
    ranks[written.argsort(kind="stable")] = np.arange(len(written))
    spread = (ranks + 0.5) * GOLDEN + shifts
    return lengths.left(written, spread - np.floor(spread))


def length_scale(sample: Sequence[int], ended: Sequence[int], running: Sequence[int]) -> float:
    """Return the factor by which lengths differ from a sample; 1 where chance explains what was seen.

    ``ended`` are tokens of calls that have ended, ``running`` those written so far by calls that still write.

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
        # NOTE: half of the last step, as a length lies somewhere in it
        place = np.searchsorted(known, tokens / scale, side="right")
        return float((hazard[place] + hazard[np.searchsorted(known, tokens / scale, side="left")]).sum() / 2)

    if abs(used(1.0) - num_ended) <= NUM_SIGMAS * sqrt(num_ended * (1.0 + num_ended / len(sample))):
        return 1.0
    low, high = LEAST_SCALE, MOST_SCALE
    for _ in range(40):
        middle = sqrt(low * high)
        low, high = (middle, high) if used(middle) > num_ended else (low, middle)
    return sqrt(low * high)
