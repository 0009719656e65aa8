"""The fits to round robin recover what they are given, and the committed sets keep what is published."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from experiments.studies import round_robin
from experiments.studies.calibration import START, open_ranges, parameters_of, read_fits
from experiments.studies.published import PUBLISHED_MEANS, ROUND_ROBIN_WORKER_S, TOKENS_PER_CALL
from experiments.studies.round_robin import FIT_SEEDS, BaselineSessions, committed_set, fit_workers, left_for
from mosaic.config.job import simulated_job


@pytest.fixture(scope="module")
def gpqa() -> BaselineSessions:
    return BaselineSessions("gpqa", (0, 1))


@pytest.fixture(scope="module")
def mmlu_pro() -> BaselineSessions:
    return BaselineSessions("mmlu_pro", (0, 1))


def test_every_set_keeps_what_is_published(mmlu_pro: BaselineSessions) -> None:
    assert min(FIT_SEEDS) >= 1000, "fits see other seeds than the reports"
    for row in read_fits().values():
        means = parameters_of(row).mean_by_expert
        assert {name: means[name] for name in PUBLISHED_MEANS} == PUBLISHED_MEANS
        assert left_for("GLM", TOKENS_PER_CALL, means, mmlu_pro.slots) == pytest.approx(means["GLM"], rel=0.03)
        fitted_s = [row[f"worker_{number}_s"] for number in range(4)]
        assert fitted_s == pytest.approx(ROUND_ROBIN_WORKER_S, rel=0.01)


def test_the_configuration_holds_the_committed_set() -> None:
    assert parameters_of(read_fits()["committed"]) == committed_set()


def test_a_set_as_overrides_is_the_set() -> None:
    row = read_fits()["cap 16,384, 63 streams"]
    parameters, scale, mean = parameters_of(row), row["medmcqa_scale"], row["medmcqa_merged_tokens"]
    job, site = simulated_job(["workload=medmcqa", *parameters.overrides(scale, ("Exaone", mean))])
    by_name = {expert.name: expert for expert in job.experts}
    for name, lengths in site.world.lengths.items():
        wanted = parameters.lengths(by_name[name], scale)
        assert (lengths.mean, lengths.clip_tokens) == pytest.approx((wanted.mean, wanted.clip_tokens)), name
    assert by_name["LlamaR1"].max_output_tokens == parameters.output_cap == 16_384
    assert site.hardware.attention_streams == parameters.attention_streams == 63.0
    assert site.hardware.cpu_per_kv_token_s == parameters.cpu_per_kv_token_s
    assert site.world.aggregator_lengths["Exaone"].mean == mean


def test_a_session_is_simulated_once_and_alone(gpqa: BaselineSessions) -> None:
    first = gpqa.busy_s(START, "Exaone")
    assert gpqa.busy_s(START, "Exaone") is first
    assert first.shape == (2,)


def test_between_the_sessions_of_a_worker_one_is_unloaded() -> None:
    sessions = BaselineSessions("mmlu_pro", (0,))
    sessions.site = replace(sessions.site, hardware=replace(sessions.site.hardware, unload_s=15.0))
    busy = {"A": np.array([100.0]), "B": np.array([50.0])}
    assert sessions.mean_makespan_s((("A", "B"),), busy) == 165.0
    assert sessions.mean_makespan_s((("A",), ("B",)), busy) == 100.0


def test_the_scale_of_a_makespan_is_found_again(gpqa: BaselineSessions) -> None:
    busy = {name: gpqa.busy_s(START, name, 1.5) for name in gpqa.order}
    makespan_s = float(np.max(np.stack(list(busy.values())), axis=0).mean())
    assert gpqa.fit_scales(START, makespan_s) == pytest.approx([1.5], abs=0.01)
    with pytest.raises(ValueError, match="different signs"):
        gpqa.fit_scale(START, 1.0)


@pytest.mark.slow
def test_workers_that_a_set_gives_lead_back_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = BaselineSessions("mmlu_pro", (0,))
    truth = replace(START, cpu_per_kv_token_s=1.2e-8, reasoning_sigma=0.95)
    truth = truth.with_mean("GLM", left_for("GLM", TOKENS_PER_CALL, truth.mean_by_expert, sessions.slots))
    monkeypatch.setattr(round_robin, "ROUND_ROBIN_WORKER_S", tuple(sessions.workers_s(truth).tolist()))
    found = fit_workers(sessions, START)
    assert found.cpu_per_kv_token_s == pytest.approx(1.2e-8, rel=0.05)
    assert found.reasoning_sigma == pytest.approx(0.95, abs=0.02)
    assert found.mean_by_expert == pytest.approx(dict(truth.mean_by_expert), rel=0.03)


def test_ranges_are_ratios_to_the_committed_set() -> None:
    keys = [(name, workload) for name in ("committed", "other") for workload in ("mmlu_pro", "medmcqa", "gpqa")]
    row = {"order": "committed", "expert_s": 100.0, "aggregator_s": 10.0}
    walls = pl.DataFrame([{"workload": workload, **row, "expert_s": 90.0} for _, workload in keys[:3]])
    others = [
        {"workload": workload, "set": name, **row, "expert_s": 100.0 if name == "committed" else 120.0}
        for name, workload in keys
    ]
    found = open_ranges({"walls": walls, "open_walls": pl.DataFrame(others)})[0]
    assert (found["mean"].mean, found["low_s"], found["high_s"]) == pytest.approx((90.0, 90.0, 108.0))
