from collections.abc import Sequence

import pytest

from experiments.hardware.recorded_log import replay
from mosaic.core.engine_options import EngineOptions, Order
from mosaic.core.results import CallRecord
from mosaic.core.workload import PROPOSE, Call, CallKey, Question, Workload
from mosaic.figures.replay import replay_errors, replay_table


class OneSecondSteps:
    """Every iteration takes a second."""

    def decode_span_s(self, num_seqs: int, kv_tokens: int, num_steps: int) -> float:
        return float(num_steps)

    def mixed_s(self, chunks: Sequence[tuple[int, int]], num_decodes: int, decode_kv_tokens: int) -> float:
        return 1.0


def make_log(*requests: tuple[float, int, int]) -> Workload:
    """Requests by arrival, prompt and output tokens."""
    keys = [CallKey(f"r{i}", PROPOSE, 0) for i in range(len(requests))]
    return Workload(
        name="log",
        questions=tuple(Question(id=key.question, prompt_tokens=1) for key in keys),
        calls=tuple(Call(key, "A", prompt, ready) for key, (ready, prompt, _) in zip(keys, requests, strict=True)),
        output_tokens={key: output for key, (_, _, output) in zip(keys, requests, strict=True)},
    )


def run(workload: Workload, **settings: int) -> tuple[CallRecord, ...]:
    return replay(
        workload,
        iteration_time=OneSecondSteps(),
        settings=EngineOptions(order=Order.MIXED, **settings),
        kv_tokens=10_000,
        context_tokens=1000,
    )


def test_request_that_arrives_during_an_iteration_waits_for_the_next() -> None:
    first, second = run(make_log((0.0, 10, 4), (1.5, 10, 2)))
    assert (first.admitted_ts, first.first_token_ts, first.finished_ts) == (0.0, 1.0, 4.0)
    assert (second.queued_ts, second.admitted_ts, second.first_token_ts, second.finished_ts) == (1.5, 2.0, 3.0, 4.0)


def test_engine_settings_bind_the_replay() -> None:
    first, second = run(make_log((0.0, 10, 4), (0.0, 10, 4)), max_num_seqs=1, max_num_batched_tokens=5)
    assert first.finished_ts == 5.0  # two chunks, then three steps
    assert second.admitted_ts == 5.0


def test_replay_needs_true_lengths() -> None:
    workload = make_log((0.0, 10, 4))
    bare = Workload(name="bare", questions=workload.questions, calls=workload.calls)
    with pytest.raises(ValueError, match="workload bare: output_tokens must be given"):
        run(bare)


def test_errors_are_relative_to_the_log() -> None:
    measured = run(make_log((0.0, 10, 4), (1.5, 10, 2)))
    slower = [
        record._replace(first_token_ts=record.first_token_ts + 1.0, finished_ts=record.finished_ts + 1.0)
        for record in measured
        if record.first_token_ts is not None and record.finished_ts is not None
    ]
    errors = replay_errors(slower, measured)
    assert list(errors) == [
        "mean_latency_s", "p50_latency_s", "p99_latency_s", "mean_tpot_s", "p50_tpot_s", "mean_ttft_s", "p50_ttft_s",
        "makespan_s",
    ]  # fmt: skip
    assert errors["p50_latency_s"].simulated_s == pytest.approx((5.0 + 3.5) / 2)
    assert errors["mean_latency_s"].measured_s == pytest.approx((4.0 + 2.5) / 2)
    assert errors["mean_latency_s"].error_frac == pytest.approx(1 / 3.25)
    assert errors["mean_ttft_s"].error_frac == pytest.approx(1 / 1.25)
    assert errors["mean_tpot_s"].error_frac == 0.0
    assert errors["p99_latency_s"].simulated_s == pytest.approx(3.5 + 0.99 * 1.5)
    assert errors["makespan_s"].error_frac == pytest.approx(1 / 4)
    assert "mean_latency_s" in replay_table(errors)
    assert "+25.0%" in replay_table(errors).splitlines()[-1]


def test_a_request_that_can_never_fit_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"call r?\S+: prompt_tokens .* at most 10000 .*backend\.kv_cache_tokens.*, got 10010"
    ):
        run(make_log((0.0, 10, 4), (0.0, 10_007, 4)))


def test_makespan_starts_at_the_first_arrival() -> None:
    records = run(make_log((3.0, 10, 2), (3.0, 5, 5)))
    assert replay_errors(records, records)["makespan_s"].simulated_s == pytest.approx(5.0)


def test_undefined_metric_is_refused() -> None:
    records = run(make_log((0.0, 10, 1)))
    with pytest.raises(ValueError, match="mean_tpot_s must be defined"):
        replay_errors(records, records)


def test_other_calls_are_refused() -> None:
    records = run(make_log((0.0, 10, 4), (1.5, 10, 2)))
    with pytest.raises(ValueError, match="replay: calls must be those of the log, got 1"):
        replay_errors(records[:1], records)
