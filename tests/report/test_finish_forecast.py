"""The live forecast of a batch's end: what it says of a simulated batch while most calls still write."""

import math

import pytest

import mosaic
from mosaic.config.job import simulated_job
from mosaic.core.events import Finished, Tick
from mosaic.report.finish_forecast import FinishForecast, Forecast, fit_log_normal


class Asked:
    """Asks for the forecast once a share of the calls has ended."""

    reacts = True

    def __init__(self, forecast: FinishForecast, num_calls: float) -> None:
        self.forecast, self.num_calls, self.num_ended = forecast, num_calls, 0
        self.said: Forecast | None = None
        self.ts = math.nan

    def on(self, event, view):
        self.num_ended += isinstance(event, Finished)
        if isinstance(event, Tick) and self.said is None and self.num_ended >= self.num_calls:
            self.said, self.ts = self.forecast.forecast(), event.ts
        return ()


def test_the_calls_that_end_last_are_foreseen() -> None:
    """The calls that have ended are the short ones: resampled alone they predicted 143 to 300 s of 1,030."""
    job, _ = simulated_job(["workload=gpqa", "aggregator=none", "costs=affine", "profile.store=null"])
    forecast = FinishForecast({expert.name: expert.max_output_tokens for expert in job.experts})
    askers = [Asked(forecast, share * len(job.workload.calls)) for share in (0.25, 0.5, 0.75)]
    result = mosaic.run(job, controllers=[forecast, *askers], tick_s=10.0).result
    end_s = max(session.end_ts for session in result.sessions)
    for asked in askers:
        assert asked.ts < end_s / 2
        assert asked.said is not None
        assert end_s <= asked.said.p90_s
        assert 0.9 * end_s < asked.said.p50_s < 1.4 * end_s


def test_lengths_are_found_where_half_of_the_calls_still_write() -> None:
    known = [round(math.exp(6 + 0.7 * z)) for z in [-2 + 4 * i / 400 for i in range(401)]]
    cut = 403
    fitted = fit_log_normal([n for n in known if n < cut], [cut for n in known if n >= cut])
    assert fitted.mean_log == pytest.approx(6, abs=0.15)
    whole = fit_log_normal(known, [])
    assert whole.mean_log == pytest.approx(6, abs=0.01)
