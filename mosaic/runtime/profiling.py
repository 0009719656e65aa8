"""Fits a profile to records: every price of a measured session is computed here.

The sessions may be a pilot's, a sweep's or those of a saved run. A batch serves an expert in one session, or in a few
of about one size. Each of them then also gives the price of a session with half its calls, predicted from the speed of
its calls.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import groupby
from statistics import median
from typing import TypeAlias

import numpy as np

from mosaic.core.cluster import Cluster
from mosaic.core.errors import DisturbedSweepError
from mosaic.core.plan import Session, prediction_from_sample
from mosaic.core.results import CallRecord, CallStatus, RunResult, SessionRecord
from mosaic.core.workload import Expert, ExpertName, NodeName
from mosaic.planning.length_forecast import Floats, Lengths, Speed, Underway, drain_s
from mosaic.planning.profiles import Profile, ProfileEntry, SweepPoint, fit_session

Waves: TypeAlias = Sequence[Sequence[Session]]
"""Replicas that start together, one wave after the other."""

LEAST_SPAN = 2
"""Least ratio of the largest to the smallest session: a line through closer sizes cannot be extrapolated."""
NUM_ROUNDS = 6
"""Rounds of the fit of a speed: the weight of each moment in a call depends on the speed."""


def fit_run(
    experts: Sequence[Expert],
    cluster: Cluster,
    result: RunResult,
    source: str,
    nodes: Collection[NodeName],
    *,
    in_waves: bool,
) -> Profile:
    """Fit the costs of experts to a finished run, at each degree at which it served them.

    A session counts if it belongs to these nodes and all its calls finished there at the first try. An expert without
    such a session has no entry. A session may have stayed open for calls that did not come: it counts until its last
    call ended.

    Parameters
    ----------
    experts, cluster
        See `fit_entry`.
    result
        The records of the run.
    source
        Source to be written into the profile.
    nodes
        Nodes of the run's first layer, or of the later layers.
    in_waves
        Whether an expert's sessions for a node started together, as replicas above the first layer do.
    """
    records: dict[int, list[CallRecord]] = defaultdict(list)
    for record in result.calls:
        records[record.session].append(record)
    served: dict[tuple[ExpertName, int], list[SessionRecord]] = defaultdict(list)
    for session in result.sessions:
        own = [one for one in records[session.session] if one.status is CallStatus.FINISHED and one.key.node in nodes]
        is_whole = len(own) == len(records[session.session]) == session.num_calls
        if own and is_whole and not any(one.attempt for one in own):
            last_ts = max(one.finished_ts or session.start_ts for one in own)
            served[session.expert, len(session.workers)].append(replace(session, end_ts=last_ts))
    entries = []
    for expert in experts:
        for degree in sorted(degree for name, degree in served if name == expert.name):
            sessions = served[expert.name, degree]
            calls = [record for session in sessions for record in records[session.session]]
            waves: dict[NodeName, list[Session]] = defaultdict(list)
            for one in sessions:
                replica = Session(id=one.session, expert=one.expert, node=one.node, workers=one.workers)
                waves[one.node].append(replica)
            with suppress(DisturbedSweepError):
                shaped, together = replace(expert, tp_degree=degree), [*waves.values()] if in_waves else None
                entries.append(fit_entry(shaped, cluster, calls, sessions, together, adds_halves=True))
    return Profile(source=source, entries=tuple(entries))


def in_waves_of(sessions: Sequence[Session]) -> Waves:
    """Group sessions by the sessions that they wait for."""
    return [tuple(wave) for _, wave in groupby(sessions, key=lambda session: session.after)]


def fit_entry(
    expert: Expert,
    cluster: Cluster,
    calls: Sequence[CallRecord],
    sessions: Sequence[SessionRecord],
    waves: Waves | None = None,
    *,
    adds_halves: bool = False,
) -> ProfileEntry:
    """Fit the costs of one expert to records of its calls and sessions.

    Interrupted sessions are left out: they took longer than their calls need. Waves with such a session, or with a lost
    worker, are left out too. A session stays if its server needed a request twice, since the batch will use the same
    server. The lengths of all calls count.

    Parameters
    ----------
    expert
        With the tensor-parallel degree of the measurement.
    cluster, calls, sessions
        The cluster and the records; those of other experts are left out.
    waves
        Sessions of replicas, which are priced by wave; None: each session is priced separately.
    adds_halves
        Whether sessions of about one size also give prices of sessions with half their calls.

    Raises
    ------
    DisturbedSweepError
        If interrupted sessions leave fewer than two sizes.
    """
    own = [session for session in sessions if session.expert == expert.name]
    records = [record for record in calls if record.expert == expert.name]
    whole = {session.session: session for session in own if not session.num_interruptions}
    groups = [[number] for number in whole] if waves is None else [[one.id for one in wave] for wave in waves]
    points = tuple(_point([whole[number] for number in group]) for group in groups if whole.keys() >= set(group))
    timed = [record for record in records if record.session in whole]
    speed = fit_speed(timed)
    sizes = {point.num_calls for point in points}
    if adds_halves and speed is not None and sizes and min(sizes) >= 2 and max(sizes) < LEAST_SPAN * min(sizes):
        points += tuple(_half(point, speed, timed) for point in points)
        sizes = {point.num_calls for point in points}
    if len(sizes) < 2:
        what = "sessions" if waves is None else "waves"
        raise DisturbedSweepError(
            f"profile of {expert.name}: {what} of two sizes must run undisturbed, {len(sizes)} did"
        )
    sample = tuple(sorted(record.output_tokens for record in records))
    return ProfileEntry(
        expert=expert.name,
        gpu=cluster.select(next(iter(whole.values())).workers)[0].gpu.name,
        tp_degree=expert.tp_degree,
        # NOTE: one disturbed load must not affect all prices, but a wave waits for its longest load.
        load_s=_median_load_s(own) if waves is None else max(session.load_s for session in whole.values()),
        fit=fit_session(points),
        lengths=prediction_from_sample(sample),
        points=points,
        output_tokens=sample,
        speed=speed,
        kv_budget_tokens=expert.kv_budget_tokens,
    )


def _point(wave: Sequence[SessionRecord]) -> SweepPoint:
    """Measure sessions that start together: their time is the longest, and their size the largest number of calls."""
    return SweepPoint(
        num_calls=max(session.num_calls for session in wave),
        session_s=max(session.end_ts - session.start_ts for session in wave),
        output_tokens=sum(session.output_tokens for session in wave),
    )


def _half(point: SweepPoint, speed: Speed, records: Sequence[CallRecord]) -> SweepPoint:
    """Predict a session of half the calls, by the ratio of both predictions from the speed."""
    num_calls = point.num_calls // 2
    lengths = Lengths(tuple(record.output_tokens for record in records))
    prompt_tokens = sum(record.prompt_tokens for record in records) / len(records)

    def predicted_s(number: int) -> float:
        calls = Underway([lengths], np.zeros(number, dtype=np.int64), np.zeros(number), np.full(number, prompt_tokens))
        return speed.read_s * prompt_tokens * number + drain_s(calls, speed)

    session_s = point.session_s * predicted_s(num_calls) / predicted_s(point.num_calls)
    output_tokens = round(point.output_tokens * num_calls / point.num_calls)
    return SweepPoint(num_calls=num_calls, session_s=session_s, output_tokens=output_tokens)


def _median_load_s(sessions: Sequence[SessionRecord]) -> float:
    """Return the median of load times; 0 if the expert was always loaded."""
    loads = [session.load_s for session in sessions if session.load_s > 0]
    return median(loads) if loads else 0.0


def fit_speed(records: Sequence[CallRecord]) -> Speed | None:
    """Fit the speed of one expert's engines to calls of undisturbed sessions; None: no call has enough data.

    A call's seconds per token are the mean seconds of its iterations. Each iteration is linear in the number of running
    calls and in their context. Both means are weighted by the tokens that the call wrote at each moment. The weights
    depend on the speed, so the fit is repeated with its own result. It minimises squares of the relative error per
    token, since long calls form the tails.
    """
    timed = [record for record in records if record.admitted_ts is not None and record.output_tokens > 1]
    sessions = [[one for one in timed if one.session == number] for number in dict.fromkeys(r.session for r in timed)]
    moments = [_Moments(session) for session in sessions]
    if not any(len(one.tokens) for one in moments):
        return None
    step_s, tokens = (np.concatenate([getattr(one, name) for one in moments]) for name in ("step_s", "tokens"))
    terms = np.array([1.0, 0.0, 0.0])
    for _ in range(NUM_ROUNDS):
        terms = _non_negative(np.vstack([one.features(terms) for one in moments]), step_s, tokens)
    reads = [seconds for session in sessions for seconds in _read_s(session)]
    base_s, per_seq_s, per_kv_s = (float(f"{term:.9g}") for term in terms)
    read_s = float(f"{np.median(reads):.9g}") if reads else 0.0
    return Speed(base_s=base_s, per_seq_s=per_seq_s, per_kv_s=per_kv_s, read_s=read_s)


class _Moments:
    """The spans of a session between two changes of its batch, and the spans in which each call was running."""

    def __init__(self, records: Sequence[CallRecord]) -> None:
        starts = np.array([_begin_ts(record) for record in records])
        ends = np.array([record.finished_ts or 0.0 for record in records])
        tokens = np.array([record.output_tokens - 1 for record in records], dtype=float)
        prompts = np.array([record.prompt_tokens for record in records], dtype=float)
        lasted = ends > starts
        starts, ends, tokens, prompts = starts[lasted], ends[lasted], tokens[lasted], prompts[lasted]
        self.tokens: Floats = tokens
        self.step_s: Floats = (ends - starts) / tokens
        rate = tokens / (ends - starts)
        ts = np.unique(np.concatenate([starts, ends]))
        self._first, self._last = np.searchsorted(ts, starts), np.searchsorted(ts, ends)
        self._lasting_s: Floats = np.diff(ts)
        middle_ts = (ts[1:] + ts[:-1]) / 2
        self._num_seqs = self._under_way(np.ones_like(rate), len(ts))
        self._kv_tokens = self._under_way(prompts - rate * starts, len(ts)) + middle_ts * self._under_way(rate, len(ts))

    def _under_way(self, values: Floats, num_ts: int) -> Floats:
        """Sum a value over the calls that run in each span."""
        changes = np.bincount(self._first, values, num_ts) - np.bincount(self._last, values, num_ts)
        return np.asarray(np.cumsum(changes)[:-1])

    def features(self, terms: Floats) -> Floats:
        """Return each call's means per iteration: of 1, of the number of running calls and of their context."""
        step_s = np.maximum(terms[0] + terms[1] * self._num_seqs + terms[2] * self._kv_tokens, 1e-12)
        steps = self._lasting_s / step_s
        sums = [np.concatenate([[0.0], np.cumsum(steps * value)]) for value in (1.0, self._num_seqs, self._kv_tokens)]
        whole, *means = [each[self._last] - each[self._first] for each in sums]
        return np.stack([np.ones_like(whole), *(mean / whole for mean in means)], axis=1)


def _non_negative(features: Floats, step_s: Floats, tokens: Floats) -> Floats:
    """Solve least squares on the relative error of every token; a term that would be negative is left out."""
    weights = np.sqrt(tokens)
    scaled = features * (weights / step_s)[:, None]
    kept = [0, 1, 2]
    while True:
        found = np.linalg.lstsq(scaled[:, kept], weights, rcond=None)[0]
        if (found >= 0).all():
            break
        kept.pop(int(np.argmin(found * scaled[:, kept].mean(axis=0))))
    terms = np.zeros(3)
    terms[kept] = found
    return terms


def _begin_ts(record: CallRecord) -> float:
    first_ts = record.first_token_ts if record.first_token_ts is not None else record.admitted_ts
    return first_ts or 0.0


def _read_s(records: Sequence[CallRecord]) -> list[float]:
    """Price a token of the prompts that a session prefilled before its first call ended."""
    timed = [record for record in records if record.first_token_ts is not None]
    if not timed:
        return []
    first_end_ts = min(record.finished_ts or 0.0 for record in timed)
    wave = [record for record in timed if (record.admitted_ts or 0.0) < first_end_ts]
    begin_ts = min(record.admitted_ts or 0.0 for record in wave)
    last_ts = max(min(record.first_token_ts or 0.0, first_end_ts) for record in wave)
    return [(last_ts - begin_ts) / sum(record.prompt_tokens for record in wave)]
