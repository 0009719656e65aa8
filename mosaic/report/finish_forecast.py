"""When the calls that are known will have ended: a forecast that tightens as lengths become known."""

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import exp, inf, log, sqrt
from statistics import NormalDist, fmean, pstdev
from typing import NamedTuple

from mosaic.core.commands import Command
from mosaic.core.events import Closed, Event, Finished, Progress, Ready
from mosaic.core.results import CallRecord, CallStatus
from mosaic.core.workload import CallKey, ExpertName
from mosaic.report.run_status import RunView

MIN_LENGTHS = 5
"""Calls of an expert that must have ended before anything is said of the others."""
NUM_DRAWS = 40
NUM_STEPS = 20
"""Of the fit of lengths."""
NORMAL = NormalDist()
FAST = 0.9
"""Quantile of the speeds of calls that is that of those which write when few others do."""
MAX_DRAWN = 200
"""Calls of a session that are drawn one by one; of more, the mean of so many counts for all."""


class Forecast(NamedTuple):
    """Instants of the run's clock, in seconds."""

    p50_s: float
    p90_s: float


class FinishForecast:
    """A controller that answers nothing and knows what has ended so far.

    Of each expert it resamples the calls that have ended and those that write, and fits lengths to them: the first to
    end are the short ones, and a call that runs will write more than it has. A worker serves its sessions in turn, each
    at the pace of its expert so far, or as long as its longest call takes alone, with the load that was seen or
    predicted. The gate's work is not known before it comes up, so the forecast is of the calls that were submitted.

    Parameters
    ----------
    limits
        The most tokens that each expert may write.
    """

    reacts = False

    def __init__(self, limits: Mapping[ExpertName, int] | None = None) -> None:
        self._limits = limits or {}
        self._speeds: dict[ExpertName, list[float]] = defaultdict(list)
        self._view: RunView | None = None
        self._ts = 0.0
        self._lengths: dict[ExpertName, list[int]] = defaultdict(list)
        self._ready_ts: dict[int, float] = {}
        self._tokens: dict[int, int] = defaultdict(int)
        self._running: dict[int, Mapping[CallKey, int]] = {}
        self._load_s: dict[ExpertName, float] = {}

    def on(self, event: Event, view: RunView) -> tuple[Command, ...]:
        """Take an event in."""
        self._view, self._ts = view, max(self._ts, event.ts)
        match event:
            case Ready(ts=ts, session=number):
                self._ready_ts[number] = ts
            case Finished(record=record) if record.status is CallStatus.FINISHED:
                self._lengths[record.expert].append(record.output_tokens)
                self._note_speed(record)
                if record.session in self._ready_ts:
                    self._tokens[record.session] += record.output_tokens
            case Progress(session=number, tokens=tokens):
                self._running[number] = tokens
            case Closed(record=closed):
                self._load_s[closed.expert] = max(closed.load_s, self._load_s.get(closed.expert, 0.0))
                self._running.pop(closed.session, None)
            case _:
                pass
        return ()

    def _note_speed(self, record: CallRecord) -> None:
        start_ts = record.admitted_ts if record.first_token_ts is None else record.first_token_ts
        if start_ts is not None and record.finished_ts is not None and record.finished_ts > start_ts:
            self._speeds[record.expert].append(record.output_tokens / (record.finished_ts - start_ts))

    def forecast(self, now_s: float | None = None) -> Forecast | None:
        """Say when all calls that were submitted have ended; None: too little is known of an expert."""
        view = self._view
        if view is None:
            return None
        left = self._calls_left(view)
        paces = {number: self._pace(number, view) for number in left}
        if any(
            pace is None or len(self._lengths[view.opened[number].expert]) < MIN_LENGTHS
            for number, pace in paces.items()
        ):
            return None
        now = self._ts if now_s is None else now_s
        draw = random.Random(0)
        ends = sorted(self._one_end(view, left, paces, now, draw) for _ in range(NUM_DRAWS))
        return Forecast(ends[NUM_DRAWS // 2], ends[NUM_DRAWS * 9 // 10])

    def _calls_left(self, view: RunView) -> dict[int, int]:
        counts: dict[int, int] = defaultdict(int)
        queued: dict[ExpertName, int] = defaultdict(int)
        for key, place in list(view.place.items()):
            if key in view.records:
                continue
            if isinstance(place, str):
                queued[place] += 1
            elif place not in view.ended:
                counts[place] += 1
        for expert, count in queued.items():
            sharing = [
                n for n, session in list(view.opened.items()) if session.expert == expert and n not in view.ended
            ]
            for turn, number in enumerate(sharing):
                counts[number] += (count + turn) // len(sharing)
        return {number: counts[number] for number in list(view.opened) if counts[number]}

    def _pace(self, number: int, view: RunView) -> float | None:
        """Tokens a second of a session, or else of the others of its expert."""
        expert = view.opened[number].expert
        same = [n for n in self._ready_ts if view.opened[n].expert == expert]
        mine = [number] if number in self._ready_ts and self._written(number) else same
        tokens = sum(self._written(n) for n in mine)
        seconds = sum(self._end_ts(n, view) - self._ready_ts[n] for n in mine)
        return tokens / seconds if tokens and seconds > 0 else None

    def _written(self, number: int) -> int:
        return self._tokens[number] + sum(self._running.get(number, {}).values())

    def _end_ts(self, number: int, view: RunView) -> float:
        record = view.ended.get(number)
        return self._ts if record is None else record.end_ts

    def _one_end(
        self,
        view: RunView,
        left: Mapping[int, int],
        paces: Mapping[int, float | None],
        now_s: float,
        draw: random.Random,
    ) -> float:
        free: dict[int, float] = defaultdict(lambda: now_s)
        tails = {expert: self._resampled_tail(expert, view, draw) for expert in {view.opened[n].expert for n in left}}
        for number, num_left in left.items():
            session, pace = view.opened[number], paces[number]
            assert pace is not None, "told before"
            tail, written = tails[session.expert], [*self._running.get(number, {}).values()]
            rest = [tail.drawn(draw, tokens) - tokens for tokens in written]
            num_drawn = min(max(0, num_left - len(rest)), MAX_DRAWN)
            waiting = [tail.drawn(draw, 0.0) for _ in range(num_drawn)]
            scale = (num_left - len(rest)) / num_drawn if num_drawn else 0.0
            tokens = sum(rest) + scale * sum(waiting)
            load_s = 0.0 if number in self._ready_ts else self._load_s.get(session.expert, 0.0)
            alone_s = max((max(rest, default=0.0), max(waiting, default=0.0))) / self._speed(session.expert)
            end = max(free[worker] for worker in session.workers) + load_s + max(tokens / pace, alone_s)
            for worker in session.workers:
                free[worker] = end
        return max(free.values(), default=now_s)

    def _speed(self, expert: ExpertName) -> float:
        """Tokens a second of one call: what the longest takes, however few are left beside it."""
        known = sorted(self._speeds[expert])
        return known[int(FAST * len(known))] if known else inf

    def _resampled_tail(self, expert: ExpertName, view: RunView, draw: random.Random) -> "LogNormal":
        """Fit lengths to a resample of the calls that have ended, or still write."""
        running = [
            tokens
            for number, own in self._running.items()
            if view.opened[number].expert == expert
            for tokens in own.values()
            if tokens
        ]
        both = [(tokens, True) for tokens in self._lengths[expert]] + [(tokens, False) for tokens in running]
        drawn = draw.choices(both, k=min(len(both), MAX_DRAWN))
        return fit_log_normal(
            [tokens for tokens, ended in drawn if ended] or self._lengths[expert],
            [tokens for tokens, ended in drawn if not ended],
            self._limits.get(expert, inf),
        )


class LogNormal(NamedTuple):
    """Lengths of an expert's calls, up to its limit."""

    mean_log: float
    std_log: float
    limit: float

    def drawn(self, draw: random.Random, written: float) -> float:
        """Draw the length of a call that has written so much."""
        least = NORMAL.cdf((log(written) - self.mean_log) / self.std_log) if written > 0 else 0.0
        share = min(least + draw.random() * (1 - least), 1 - 1e-9)
        tokens = exp(self.mean_log + self.std_log * NORMAL.inv_cdf(max(share, 1e-9)))
        return max(written, min(tokens, self.limit))


def fit_log_normal(ended: Sequence[int], running: Sequence[int], limit: float = inf) -> LogNormal:
    """Fit lengths to calls that have ended, and to what running calls have written so far: they will write more.

    References
    ----------
    Dempster, Laird, Rubin, Maximum likelihood from incomplete data via the EM algorithm, 1977, section 4.2: a censored
    normal sample.

    Examples
    --------
    >>> fit_log_normal([100, 200, 400], [])[0] < fit_log_normal([100, 200, 400], [900] * 9)[0]
    True
    """
    logs, floors = [log(max(1, tokens)) for tokens in ended], [log(max(1, tokens)) for tokens in running]
    # NOTE: what was cut at the limit would have gone on
    floors += [value for value in logs if value >= log(limit) - 1e-9]
    logs = [value for value in logs if value < log(limit) - 1e-9] or logs
    mean, std = fmean(logs), max(pstdev(logs), 0.1)
    for _ in range(NUM_STEPS):
        first, second = list(logs), [value**2 for value in logs]
        for floor in floors:
            z = (floor - mean) / std
            hazard = NORMAL.pdf(z) / max(1.0 - NORMAL.cdf(z), 1e-12) if z < 6 else z
            first.append(mean + std * hazard)
            second.append(mean**2 + std**2 * (1 + z * hazard) + 2 * mean * std * hazard)
        mean = fmean(first)
        std = sqrt(max(fmean(second) - mean**2, 0.01))
    return LogNormal(mean, std, limit)
