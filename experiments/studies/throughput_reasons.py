"""Why an expert's throughput depends on the shard size as it does: one sentence, made of what was measured."""

from collections.abc import Sequence
from statistics import fmean

from experiments.studies.throughput import SMALL_SHARD, Relaxed, SizeMean, ThroughputPoint, size_means
from mosaic.comparison.estimate import Estimate, estimate

LEVEL_FRAC = 0.95
"""Share of the peak from which a curve has levelled off."""
MIN_GAIN = 0.01
"""Gain below which a limit that is relaxed does not count."""


class Gain(Estimate):
    """Change of throughput where a limit is relaxed, over the same calls."""

    @property
    def counts(self) -> bool:
        """Whether the limit costs throughput."""
        return self.mean >= MIN_GAIN and (self.low is None or self.low > 0)

    def __str__(self) -> str:
        percent = round(100 * self.mean)
        return f"{percent:+d}%" if percent else "no change"

    def __format__(self, form: str) -> str:
        return str(self)


def gain(points: Sequence[ThroughputPoint], relaxed: Relaxed, shard_size: int) -> Gain:
    """Compare an expert's sessions of a size with and without a limit, pair by pair.

    Raises
    ------
    ValueError
        If no session of that size was measured with the limit relaxed.
    """
    rates = {
        (point.repeat, point.relaxed): point.output_tok_per_s for point in points if point.shard_size == shard_size
    }
    gains = [rate / rates[repeat, Relaxed.NOTHING] - 1 for (repeat, limit), rate in rates.items() if limit is relaxed]
    if not gains:
        raise ValueError(f"throughput: no session of {shard_size} calls was measured with {relaxed.value}")
    return Gain(*estimate(gains))


def explain_curve(points: Sequence[ThroughputPoint]) -> str:
    """State the reason for the shape of one expert's curve in a sentence."""
    means = size_means(points)
    largest = means[-1].shard_size
    plain = [point for point in points if point.shard_size == largest and point.relaxed is Relaxed.NOTHING]
    clauses = [f"{points[0].expert} {_growth(means)}", _limit(points, plain), _lengths(points, plain)]
    small = next((mean for mean in means if mean.shard_size == SMALL_SHARD < largest), None)
    if small is not None:
        clauses.append(_small(points, small, max(mean.rate.mean for mean in means)))
    return "; ".join(clauses) + "."


def _growth(means: Sequence[SizeMean]) -> str:
    """Say where the curve stops growing."""
    peak, last = max(mean.rate.mean for mean in means), means[-1]
    level = next(mean for mean in means if mean.rate.mean >= LEVEL_FRAC * peak)
    reached = f"{last.rate.mean:,.0f} tok/s"
    if level is not last:
        return f"levels off at shards of {level.shard_size:,} calls ({reached} at {last.shard_size:,})"
    if len(means) == 1:
        return f"gives {reached} at shards of {last.shard_size:,} calls"
    more = Gain(last.rate.mean / means[-2].rate.mean - 1)
    return f"still grows at shards of {last.shard_size:,} calls ({reached}, {more} from {means[-2].shard_size:,})"


def _limit(points: Sequence[ThroughputPoint], plain: Sequence[ThroughputPoint]) -> str:
    """Say what bounds the batch while calls wait."""
    size, most, kv_tokens = plain[0].shard_size, plain[0].max_num_seqs, plain[0].kv_capacity_tokens
    held = fmean(point.mean_held_tokens for point in plain)
    cache, limit = f"KV cache of {kv_tokens / 1e3:,.0f}k tokens", f"limit of {most:,} sequences"
    by_kv, by_seqs, by_both = (gain(points, key, size) for key in (Relaxed.KV_CACHE, Relaxed.SEQUENCES, Relaxed.BOTH))
    measured = f"(twice the cache: {by_kv}, twice the sequences: {by_seqs}, both: {by_both})"
    if by_kv.counts and by_kv.mean >= by_seqs.mean:
        return f"the {cache}, {held:,.0f} for a call in flight, bounds the batch before the {limit} {measured}"
    if by_seqs.counts:
        return f"the {limit} bounds the batch before the {cache} {measured}"
    if by_both.counts:
        share = f"{100 * most * held / kv_tokens:.0f}%"
        return f"the {limit} and the {cache} bound the batch together, as so many calls take {share} of it {measured}"
    return f"neither the {limit} nor the {cache} costs measurable throughput {measured}"


def _lengths(points: Sequence[ThroughputPoint], plain: Sequence[ThroughputPoint]) -> str:
    """Say what the spread of the lengths costs, against both limits together."""
    found, limits = (gain(points, key, plain[0].shard_size) for key in (Relaxed.LENGTHS, Relaxed.BOTH))
    cost = "cost more" if found.counts and found.mean > limits.mean else "cost less"
    tail = 100 * fmean(point.tail_frac for point in plain)
    return (
        f"its unequal lengths {cost} (calls of equal length: {found}): "
        f"fewer than a tenth of the calls is left for {tail:.0f}% of the time"
    )


def _small(points: Sequence[ThroughputPoint], small: SizeMean, peak_tok_per_s: float) -> str:
    """Say what a small shard gets of the peak."""
    found = gain(points, Relaxed.LENGTHS, small.shard_size)
    share = f"a shard of {small.shard_size:,} gets {100 * small.rate.mean / peak_tok_per_s:.0f}% of the peak"
    return f"{share}, with {small.mean_in_flight:,.0f} calls in flight on average (of equal length: {found})"
