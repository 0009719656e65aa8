"""When the calls that are known will have ended: a forecast that tightens as lengths become known."""

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mosaic.core.commands import Command
from mosaic.core.events import Closed, Event, Finished, Progress, Ready
from mosaic.core.results import CallStatus
from mosaic.core.workload import CallKey, ExpertName
from mosaic.report.run_status import RunView

MIN_LENGTHS = 5
"""Calls of an expert that must have ended before anything is said of the others."""
NUM_DRAWS = 100
MAX_DRAWN = 200
"""Calls of a session that are drawn one by one; of more, the mean of so many counts for all."""


class Forecast(NamedTuple):
    """Instants of the run's clock, in seconds."""

    p50_s: float
    p90_s: float


class FinishForecast:
    """A controller that answers nothing and knows what has ended so far.

    Of each expert it resamples the lengths of calls that have ended, first as many as there are (what is not known of
    the mean) and then one for each call that is left. A worker serves its sessions in turn, each at the pace of its
    expert so far, with the load that was seen or foretold. The gate's work is not known before it comes up, so the
    forecast is of the calls that were submitted. It is no promise: a few calls that run on alone are not priced.
    """

    reacts = False

    def __init__(self) -> None:
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
        for key, place in list(view.place.items()):
            if key not in view.records and isinstance(place, int) and place not in view.ended:
                counts[place] += 1
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
        for number, num_left in left.items():
            session, pace = view.opened[number], paces[number]
            assert pace is not None, "told before"
            tokens = _draw_sum(self._lengths[session.expert], num_left, draw)
            tokens = max(0.0, tokens - sum(self._running.get(number, {}).values()))
            load_s = 0.0 if number in self._ready_ts else self._load_s.get(session.expert, 0.0)
            end = max(free[worker] for worker in session.workers) + load_s + tokens / pace
            for worker in session.workers:
                free[worker] = end
        return max(free.values(), default=now_s)


def _draw_sum(lengths: Sequence[int], num_calls: int, draw: random.Random) -> float:
    """Draw the sum of so many lengths, what is not known of their distribution included."""
    known = draw.choices(lengths, k=min(len(lengths), MAX_DRAWN))
    num_drawn = min(num_calls, MAX_DRAWN)
    return sum(draw.choices(known, k=num_drawn)) * num_calls / num_drawn
