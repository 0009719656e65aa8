"""The fits behind the published workloads recover what they are given."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.calibrate import ASSUMED, PUBLISHED_MEANS, describe, fit_light_means, make_set, reasoning_errors
from experiments.studies.published import ROUND_ROBIN_WORKER_S
from experiments.studies.round_robin_fit import FIT_SEEDS, BaselineSessions, ParameterSet, solve_mean
from mosaic.core.lengths import ClippedLognormal
from mosaic.core.workload import Family

pytestmark = pytest.mark.slow

COMMITTED = make_set(phi=2.0, sigma=1.1, assumed=ASSUMED)


@pytest.fixture(scope="module")
def gpqa() -> BaselineSessions:
    return BaselineSessions("gpqa", (0, 1))


@pytest.fixture(scope="module")
def mmlu_pro() -> BaselineSessions:
    return BaselineSessions("mmlu_pro", (0, 1))


def committed_set(sessions: BaselineSessions) -> ParameterSet:
    """Read the parameters that conf/ holds."""
    lengths = sessions.site.world.lengths
    assert all(isinstance(entry, ClippedLognormal) for entry in lengths.values())
    sigmas = {
        family: {lengths[expert.name].sigma for expert in sessions.job.experts if expert.family is family}  # type: ignore[attr-defined]
        for family in Family
    }
    (reasoning_sigma,), (light_sigma,) = sigmas[Family.REASONING], sigmas[Family.INSTRUCT]
    return ParameterSet(
        cpu_overhead_scale=sessions.site.hardware.cpu_overhead_scale,
        reasoning_sigma=reasoning_sigma,
        light_sigma=light_sigma,
        mean_by_expert={name: entry.mean for name, entry in lengths.items()},
    )


def test_a_set_gives_the_committed_lengths_back(mmlu_pro: BaselineSessions) -> None:
    assert committed_set(mmlu_pro).lengths(mmlu_pro.job.experts) == {
        name: replace(entry, mean_source="assumed", sigma_source="assumed", clip_source="assumed")  # type: ignore[type-var]
        for name, entry in mmlu_pro.site.world.lengths.items()
    }


def test_the_committed_parameters_put_round_robins_workers_where_published(mmlu_pro: BaselineSessions) -> None:
    # This is the fit: 32 worlds within 5%; two other worlds stay within 8%.
    busy_s = mmlu_pro.workers_s(committed_set(mmlu_pro))
    assert busy_s == pytest.approx(ROUND_ROBIN_WORKER_S, rel=0.08)


def test_a_scale_multiplies_every_mean_and_keeps_the_shape(gpqa: BaselineSessions) -> None:
    lengths = COMMITTED.lengths(gpqa.job.experts, 0.5)
    assert {name: entry.mean for name, entry in lengths.items()} == {
        name: mean / 2 for name, mean in COMMITTED.mean_by_expert.items()
    }
    assert {entry.sigma for entry in lengths.values()} == {1.1, 0.8}  # type: ignore[attr-defined]


def test_published_means_are_not_fitted(mmlu_pro: BaselineSessions) -> None:
    means = committed_set(mmlu_pro).mean_by_expert
    assert {name: means[name] for name in PUBLISHED_MEANS} == PUBLISHED_MEANS
    assert means["GLM"] == ASSUMED["GLM"]


def test_fits_see_other_worlds_than_the_reports() -> None:
    assert min(FIT_SEEDS) >= 1000


def test_a_session_is_simulated_once_and_alone(gpqa: BaselineSessions) -> None:
    first = gpqa.busy_s(COMMITTED, "Exaone")
    assert gpqa.busy_s(COMMITTED, "Exaone") is first
    assert first.shape == (2,)
    assert np.all(first > 30), "loading counts as busy"


def test_workers_share_experts_by_turns(mmlu_pro: BaselineSessions) -> None:
    parameters = committed_set(mmlu_pro)
    workers = mmlu_pro.workers_s(parameters)
    for worker, names in enumerate((("Gemma", "Exaone"), ("QwenR1", "GLM"), ("Qwen",), ("LlamaR1",))):
        assert workers[worker] == pytest.approx(sum(mmlu_pro.busy_s(parameters, name).mean() for name in names))


def test_longer_answers_keep_a_worker_longer(gpqa: BaselineSessions) -> None:
    busy_s = [gpqa.busy_s(COMMITTED, "QwenR1", scale).mean() for scale in (0.5, 1.0, 1.5)]
    assert busy_s == sorted(busy_s)
    assert busy_s[0] < 0.9 * busy_s[-1]


def test_a_known_mean_is_recovered(gpqa: BaselineSessions) -> None:
    truth = COMMITTED.with_mean("QwenR1", 1200.0)
    fitted = solve_mean(gpqa, COMMITTED, "QwenR1", float(gpqa.busy_s(truth, "QwenR1").mean()))
    assert fitted.mean_by_expert["QwenR1"] == pytest.approx(1200.0, rel=0.01)
    others = {name: mean for name, mean in fitted.mean_by_expert.items() if name != "QwenR1"}
    assert others == {name: COMMITTED.mean_by_expert[name] for name in others}


def test_a_known_scale_is_recovered(gpqa: BaselineSessions) -> None:
    wall_s = float(np.max([gpqa.busy_s(COMMITTED, name, 1.3) for name in gpqa.order], axis=0).mean())
    scales = gpqa.fit_scales(COMMITTED, wall_s)
    assert list(scales) == [(("Exaone",), ("Gemma",), ("LlamaR1",), ("QwenR1",))], "four experts on four workers"
    assert next(iter(scales.values())) == pytest.approx(1.3, rel=0.03)


def test_a_wall_that_no_scale_gives_is_refused(gpqa: BaselineSessions) -> None:
    with pytest.raises(ValueError, match=r"wall_s must be within \d+ to \d+ s \(scales 0.25 to 3\), got 10$"):
        gpqa.fit_scales(COMMITTED, 10.0)


def test_light_means_put_their_two_workers_where_published(mmlu_pro: BaselineSessions) -> None:
    fitted = fit_light_means(mmlu_pro, committed_set(mmlu_pro))
    workers = mmlu_pro.workers_s(fitted)
    assert workers[[0, 2]] == pytest.approx(np.array(ROUND_ROBIN_WORKER_S)[[0, 2]], rel=0.01)


def test_reasoning_errors_are_those_of_their_workers(mmlu_pro: BaselineSessions) -> None:
    parameters = committed_set(mmlu_pro)
    errors = mmlu_pro.workers_s(parameters) / np.array(ROUND_ROBIN_WORKER_S) - 1
    assert reasoning_errors(mmlu_pro, parameters) == pytest.approx(errors[[1, 3]])
    text = describe(mmlu_pro, parameters)
    assert all(f"({error:+.1%})" in text for error in errors)
