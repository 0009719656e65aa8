"""Defines a profile: sessions of several shard sizes run on calibration questions, and the costs fitted to them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import msgspec

from mosaic.core.addition import add_in_order
from mosaic.core.checks import (
    AtLeast0,
    AtLeast1,
    Name,
    NotNegative,
    Positive,
    checked,
    require,
    require_count,
    require_unique,
)
from mosaic.core.errors import ProfileError
from mosaic.core.json_file import read_json
from mosaic.core.plan import LengthPrediction, prediction_from_sample
from mosaic.core.workload import ExpertName
from mosaic.planning.length_forecast import Speed


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("session fit: ")
class SessionFit:
    """T_m(n) = fixed_s + per_call_s n, least squares on relative error, both terms non-negative."""

    fixed_s: NotNegative
    per_call_s: NotNegative
    min_num_calls: AtLeast1
    """Smallest shard of the sweep; below it the line is extrapolated."""
    max_num_calls: int
    """Largest shard of the sweep; beyond it the line is extrapolated."""
    residual_std_frac: NotNegative

    def __post_init__(self) -> None:
        require_count(self.max_num_calls, "session fit: max_num_calls", at_least=self.min_num_calls)

    def session_s(self, num_calls: int) -> float:
        """Predict the seconds to serve a shard."""
        return self.fixed_s + self.per_call_s * num_calls


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("sweep point: ")
class SweepPoint:
    """One measured session of the sweep."""

    num_calls: AtLeast1
    session_s: Positive
    output_tokens: AtLeast0


@dataclass(frozen=True, slots=True, kw_only=True)
@checked("profile entry {0.expert!r}: ")
class ProfileEntry:
    """Measurements of one expert on one kind of worker."""

    expert: Name
    gpu: Name
    tp_degree: AtLeast1
    load_s: NotNegative
    fit: SessionFit
    lengths: LengthPrediction
    points: tuple[SweepPoint, ...]
    output_tokens: tuple[int, ...] = ()
    """The sample of lengths from which the prediction was made."""
    speed: Speed | None = None
    """Speed of its engine; None: not known, as in older profiles."""
    kv_budget_tokens: int | None = None
    """Budget of the sparse KV cache during the measurement; None: the full cache."""

    @property
    def place(self) -> tuple[ExpertName, str, int, int | None]:
        """Key of the entry: expert, GPU, degree and KV budget."""
        return self.expert, self.gpu, self.tp_degree, self.kv_budget_tokens


@dataclass(frozen=True, kw_only=True)
@checked("profile: ")
class Profile:
    """Entries of one sweep, with their source."""

    source: Name
    entries: tuple[ProfileEntry, ...]

    def __post_init__(self) -> None:
        places = (entry.place for entry in self.entries)
        require_unique(places, f"profile {self.source!r}: expert, gpu, tp_degree and kv_budget_tokens of an entry")

    @cached_property
    def _entry_at(self) -> dict[tuple[ExpertName, str, int, int | None], ProfileEntry]:
        return {entry.place: entry for entry in self.entries}

    def entry(self, expert: ExpertName, gpu: str, tp_degree: int, kv_budget_tokens: int | None = None) -> ProfileEntry:
        """Look up an expert, with its full KV cache or a sparse one.

        Raises
        ------
        ProfileError
            If the sweep did not cover it; a missing measurement is never replaced by a default.
        """
        found = self._entry_at.get((expert, gpu, tp_degree, kv_budget_tokens))
        if found is not None:
            return found
        places = sorted(
            f"{entry.tp_degree} x {entry.gpu}{_with_kv(entry.kv_budget_tokens)}"
            for entry in self.entries
            if entry.expert == expert
        )
        known = sorted({entry.expert for entry in self.entries})
        covers = f"it covers it on {', '.join(places)}" if places else f"it covers {known}"
        raise ProfileError(
            f"profile {self.source!r} has no entry for expert {expert!r} on {tp_degree} x {gpu}"
            f"{_with_kv(kv_budget_tokens)}; {covers}: "
            "without profile.path this pool is measured on this hardware"
        )

    def lengths(self, expert: ExpertName) -> LengthPrediction:
        """Predicted lengths of an expert, measured on any GPU."""
        for entry in self.entries:
            if entry.expert == expert:
                return entry.lengths
        known = sorted({entry.expert for entry in self.entries})
        raise ProfileError(f"profile {self.source!r} has no lengths for expert {expert!r}; it covers {known}")

    def length_sample(self, expert: ExpertName) -> tuple[int, ...]:
        """List the measured lengths of an expert; empty if the profile kept none."""
        return next((entry.output_tokens for entry in self.entries if entry.expert == expert), ())

    def extrapolation_notes(self, num_calls_by_expert: Mapping[ExpertName, int]) -> tuple[str, ...]:
        """Name the experts that have fewer calls than the smallest shard of the sweep, or more than the largest."""
        notes = (
            f"{entry.expert}: {num_calls:,} calls, priced by extrapolating a sweep from {entry.fit.min_num_calls:,} to "
            f"{entry.fit.max_num_calls:,}"
            for entry in self.entries
            if (num_calls := num_calls_by_expert.get(entry.expert, 0))
            and not entry.fit.min_num_calls <= num_calls <= entry.fit.max_num_calls
        )
        return tuple(dict.fromkeys(notes))  # the same for every group where an expert was measured


def _with_kv(budget_tokens: int | None) -> str:
    return "" if budget_tokens is None else f" with a KV budget of {budget_tokens:,} tokens"


def fit_session(points: Sequence[SweepPoint]) -> SessionFit:
    """Fit the affine session cost to a sweep by least squares on the relative error.

    Raises
    ------
    ValueError
        If there are fewer than two shard sizes.
    """
    sizes = sorted({point.num_calls for point in points})
    require(len(sizes) >= 2, "profile sweep: shard sizes", "at least two different sizes", sizes)
    # NOTE: minimise sum (1 - (a + b n) / T)^2, i.e. ordinary least squares with weights 1 / T^2.
    weights = [1.0 / point.session_s**2 for point in points]
    total = add_in_order(weights)
    mean_n = add_in_order(w * p.num_calls for w, p in zip(weights, points, strict=True)) / total
    mean_s = add_in_order(w * p.session_s for w, p in zip(weights, points, strict=True)) / total
    var_n = add_in_order(w * (p.num_calls - mean_n) ** 2 for w, p in zip(weights, points, strict=True))
    cov = add_in_order(
        w * (p.num_calls - mean_n) * (p.session_s - mean_s) for w, p in zip(weights, points, strict=True)
    )
    slope = max(0.0, cov / var_n)
    fixed = mean_s - slope * mean_n
    if fixed < 0:
        fixed = 0.0
        slope = add_in_order(w * p.num_calls * p.session_s for w, p in zip(weights, points, strict=True))
        slope /= add_in_order(w * p.num_calls**2 for w, p in zip(weights, points, strict=True))
    residuals = [(fixed + slope * p.num_calls) / p.session_s - 1 for p in points]
    spread = (add_in_order(r * r for r in residuals) / len(residuals)) ** 0.5
    return SessionFit(
        fixed_s=fixed,
        per_call_s=slope,
        min_num_calls=sizes[0],
        max_num_calls=sizes[-1],
        residual_std_frac=spread,
    )


def convex_pieces(points: Sequence[SweepPoint]) -> tuple[tuple[float, float], ...]:
    """Fit a convex, rising session cost: the greatest one that is nowhere above the mean of a shard size.

    Returns
    -------
    Seconds per session and per call of each piece, slopes rising; the highest of them is the price. The first piece has
    no negative part per session. Below the smallest shard the price falls to it, or to 0 in proportion to the calls.

    Examples
    --------
    >>> sizes = {10: 100.0, 20: 110.0, 40: 200.0}
    >>> convex_pieces([SweepPoint(num_calls=n, session_s=s, output_tokens=1) for n, s in sizes.items()])
    ((90.0, 1.0), (20.0, 4.5))
    """
    by_size: dict[int, list[float]] = {}
    for point in points:
        by_size.setdefault(point.num_calls, []).append(point.session_s)
    means = sorted((size, add_in_order(times) / len(times)) for size, times in by_size.items())
    hull: list[tuple[int, float]] = []
    for number, (size, _) in enumerate(means):
        seconds = min(seconds for _, seconds in means[number:])  # a larger shard may have taken less time
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], (size, seconds)):
            hull.pop()
        hull.append((size, seconds))
    slopes = [_slope(left, right) for left, right in pairwise(hull)]
    pieces = [(seconds - slope * size, slope) for (size, seconds), slope in zip(hull, slopes, strict=False)]
    if not pieces or pieces[0][0] < 0:
        size, seconds = hull[0]
        pieces.insert(0, (0.0, seconds / size))
    return tuple(pieces)


def _slope(left: tuple[int, float], right: tuple[int, float]) -> float:
    return (right[1] - left[1]) / (right[0] - left[0])


def scaled_profile(profile: Profile, scales: Mapping[ExpertName, float]) -> Profile:
    """Return a profile as if experts wrote so many times as many tokens: seconds are proportional to tokens."""
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


def profile_to_json(profile: Profile) -> str:
    """Serialise a profile; keys are sorted, so equal profiles give equal bytes. A full KV cache is left out."""
    values = msgspec.to_builtins(profile)
    for entry in values["entries"]:
        if entry["kv_budget_tokens"] is None:
            del entry["kv_budget_tokens"]
    return json.dumps(values, indent=1, sort_keys=True, allow_nan=False) + "\n"


def write_profile(profile: Profile, path: str | Path) -> None:
    """Write a profile for ``load_profile``; the file is complete or not written at all.

    Raises
    ------
    ProfileError
        If the file cannot be written.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(profile_to_json(profile), encoding="utf-8")
        temporary.replace(target)
    except OSError as error:
        raise ProfileError(f"profile {path}: cannot be written ({error.strerror})") from error


def load_profile(path: str | Path) -> Profile:
    """Read a profile written by ``profile_to_json``.

    Raises
    ------
    ProfileError
        If the file cannot be read or is not a profile.
    """
    return read_json(path, Profile, "profile", ProfileError)
