"""By which factor lengths differ from a sample, seen from calls that have ended and calls that still write.

NOTE: the idea. Calls that end first are the short ones, so their mean says too little. Under the right factor c every
call, ended or not, has used up a share of its hazard, and the sum over calls of the cumulative hazard H(tokens / c)
is on average the number of calls that have ended: a martingale, whatever was censored and when. That sum falls as c
grows, so the c that makes the two equal is found by bisection; where c = 1 is right the two differ by no more than
chance, which is about the root of the number that ended.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import sqrt
from typing import NamedTuple

import numpy as np

from mosaic.core.plan import prediction_from_sample
from mosaic.core.workload import ExpertName
from mosaic.planning.profiles import Profile, ProfileEntry

MIN_ENDED = 12
"""Of an expert's calls; fewer say nothing."""
NUM_SIGMAS = 4.0
"""Of chance: experts are many, and one looks often."""
LEAST, MOST = 0.05, 20.0
"""Factors that are looked for."""


class Seen(NamedTuple):
    """What was seen of an expert's calls, in tokens."""

    ended: Sequence[int]
    running: Sequence[int]
    """Written so far by calls that still write."""


def length_scale(sample: Sequence[int], seen: Seen) -> float:
    """Give the factor by which lengths differ from a sample; 1 where chance explains what was seen.

    Examples
    --------
    >>> sample = [100 + 10 * i for i in range(50)]
    >>> length_scale(sample, Seen(sample[::2], ())), length_scale(sample, Seen([3 * n for n in sample], ())) > 2.5
    (1.0, True)
    """
    num_ended = len(seen.ended)
    if num_ended < MIN_ENDED or not sample:
        return 1.0
    known = np.sort(np.array(sample, dtype=float))
    hazard = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(len(known), 0, -1))])
    tokens = np.array([*seen.ended, *seen.running], dtype=float)

    def used(scale: float) -> float:
        # NOTE: half of the last step, as a length lies somewhere in it
        place = np.searchsorted(known, tokens / scale, side="right")
        return float((hazard[place] + hazard[np.searchsorted(known, tokens / scale, side="left")]).sum() / 2)

    if abs(used(1.0) - num_ended) <= NUM_SIGMAS * sqrt(num_ended * (1.0 + num_ended / len(sample))):
        return 1.0
    low, high = LEAST, MOST
    for _ in range(40):
        middle = sqrt(low * high)
        low, high = (middle, high) if used(middle) > num_ended else (low, middle)
    return sqrt(low * high)


def scaled_profile(profile: Profile, scales: Mapping[ExpertName, float]) -> Profile:
    """Give a profile as it would be if experts wrote so many times as much: seconds follow tokens."""
    entries = [scaled_entry(entry, scales.get(entry.expert, 1.0)) for entry in profile.entries]
    return Profile(source=f"{profile.source}, lengths as seen", entries=tuple(entries))


def scaled_entry(entry: ProfileEntry, scale: float) -> ProfileEntry:
    """Scale the lengths of an expert, and the seconds of its sessions with them."""
    if scale == 1.0:
        return entry
    sample = tuple(max(1, round(scale * tokens)) for tokens in entry.output_tokens)
    fit = replace(entry.fit, fixed_s=scale * entry.fit.fixed_s, per_call_s=scale * entry.fit.per_call_s)
    points = tuple(
        replace(point, session_s=scale * point.session_s, output_tokens=round(scale * point.output_tokens))
        for point in entry.points
    )
    lengths = prediction_from_sample(sample) if sample else entry.lengths
    return replace(entry, output_tokens=sample, fit=fit, points=points, lengths=lengths)
