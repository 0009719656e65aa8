"""A batch is planned from the folder of another run: what its records price; and from mean lengths that are off."""

from collections.abc import Sequence
from dataclasses import replace
from math import log2, sqrt
from pathlib import Path
from statistics import fmean

import pytest
from msgspec import structs

import mosaic
from mosaic.config.compose import as_recorded, compose_config
from mosaic.config.job import build_job, simulated_job
from mosaic.core.results import CallStatus, RunResult
from mosaic.core.workload import PROPOSE
from mosaic.planning.profiles import Profile, SweepPoint
from mosaic.report.run_folder import write_run
from mosaic.runtime.job import Outcome
from mosaic.runtime.run import measure
from sim.site import SimSite
from sim.world.lengths import ClippedLognormal
from sim.world.world import mistaken_lengths
from tests.commands.command_line import QUICK, SMALL, write_profiles

GPQA = ("workload=gpqa", "costs=affine")


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    return mosaic.run(build_job(compose_config([*GPQA])).job)


def write(
    folder: Path,
    outcome: Outcome,
    result: RunResult | None = None,
    *,
    overrides: Sequence[str] = (),
    **summary: object,
) -> Path:
    write_run(
        folder,
        config=compose_config([*GPQA, *overrides]),
        plans=outcome.plans,
        result=result or outcome.result,
        summary={"num_workers": 4, "resumptions": []} | summary,
        meta={},
        files={},
    )
    return folder


def profile_from(folder: Path) -> Profile:
    """The profile that a job reads off a run's folder."""
    profile = build_job(compose_config([*GPQA, f"profile.path={folder}"])).job.profile
    assert profile is not None
    return profile


def points_of(profile: Profile, expert: str = "LlamaR1") -> tuple[SweepPoint, ...]:
    return next(entry.points for entry in profile.entries if entry.expert == expert)


def test_another_batch_is_planned_from_a_run_folder_and_takes_what_was_predicted(tmp_path, outcome) -> None:
    folder = write(tmp_path / "run", outcome)
    given = [f"profile.path={folder}", f"profile.aggregator_path={folder}"]
    job = build_job(compose_config([*GPQA, "seed=1", *given])).job
    assert job.profile is not None
    called = {call.expert for call in job.workload.calls}
    assert {entry.expert for entry in job.profile.entries} == called
    again = mosaic.run(job)
    simulated_s = max(session.end_ts for session in again.result.sessions if session.node == "propose")
    predicted_s = again.plans[0].predicted_makespan_s
    print(f"planned from a run's folder: {predicted_s:.0f} s predicted, {simulated_s:.0f} s simulated")
    assert predicted_s == pytest.approx(simulated_s, rel=0.1)


def test_loads_are_medians_in_the_first_layer_and_the_longest_behind_it(tmp_path, outcome) -> None:
    folder = write(tmp_path / "run", outcome)
    given = [f"profile.path={folder}", f"profile.aggregator_path={folder}"]
    job = build_job(compose_config([*GPQA, *given])).job
    assert job.profile is not None
    assert job.upper_profile is not None
    loads = [one.load_s for one in outcome.result.sessions if (one.expert, one.node) == ("LlamaR1", "propose")]
    entry = next(entry for entry in job.profile.entries if entry.expert == "LlamaR1")
    assert len(loads) > 1
    assert entry.load_s == sorted(loads)[len(loads) // 2]
    merged = [one.load_s for one in outcome.result.sessions if one.node == "aggregate"]
    assert [entry.load_s for entry in job.upper_profile.entries] == [max(merged)]


def test_a_session_in_which_the_run_had_stopped_prices_nothing(tmp_path, outcome) -> None:
    sessions = [one for one in outcome.result.sessions if (one.expert, one.node) == ("LlamaR1", "propose")]
    session = max(sessions, key=lambda one: one.end_ts)
    stopped = write(tmp_path / "run", outcome, resumptions=[{"ts": session.end_ts - 0.001, "pause_s": 1.0}])
    took_s = [point.session_s for point in points_of(profile_from(stopped))]
    assert session.end_ts - session.start_ts not in took_s
    assert all(one.end_ts - one.start_ts in took_s for one in sessions if one != session)


def test_a_session_prices_its_calls_and_not_how_long_it_stayed_open(tmp_path, outcome) -> None:
    folder = write(tmp_path / "run", outcome)
    open_for_longer = [
        replace(one, end_ts=one.end_ts + 1_000) if one.expert == "Gemma" else one for one in outcome.result.sessions
    ]
    open_longer = write(tmp_path / "longer", outcome, replace(outcome.result, sessions=tuple(open_for_longer)))
    assert profile_from(folder).entries == profile_from(open_longer).entries


def test_a_session_with_a_call_that_was_tried_again_or_moved_prices_nothing(tmp_path, outcome) -> None:
    session = min((one for one in outcome.result.sessions if one.expert == "LlamaR1"), key=lambda one: one.end_ts)
    calls = [structs.replace(one, attempt=int(one.session == session.session)) for one in outcome.result.calls]
    folder = write(tmp_path / "run", outcome, replace(outcome.result, calls=tuple(calls)))
    num_sessions = sum((one.expert, one.node) == ("LlamaR1", "propose") for one in outcome.result.sessions)
    num_points = len(points_of(profile_from(folder)))
    assert num_points in (num_sessions - 1, 2 * (num_sessions - 1)), "with halves, or without"


def test_a_run_folder_that_is_made_anew_is_another_configuration(tmp_path, outcome) -> None:
    folder = write(tmp_path / "run", outcome)
    config = compose_config([*GPQA, f"profile.path={folder}"])
    before = as_recorded(config)["profile"]["path_sha256"]
    (folder / "calls.parquet").write_bytes((folder / "calls.parquet").read_bytes() + b" ")
    assert as_recorded(config)["profile"]["path_sha256"] != before


def refusal(*overrides: str) -> str:
    with pytest.raises(ValueError, match=r"profile\.") as refused:
        build_job(compose_config([*GPQA, *overrides]))
    return str(refused.value)


def test_a_folder_without_a_complete_run_of_the_experts_on_this_hardware_is_refused(tmp_path, outcome) -> None:
    folder = write(tmp_path / "run", outcome)
    others = "profile.path must be a run on hardware=rtxpro6000"
    assert refusal("hardware=rtxpro6000", "aggregator=dp", f"profile.path={folder}") == f"{others}, got {str(folder)!r}"
    result = outcome.result
    calls = [structs.replace(one, status=CallStatus.FAILED) if one.expert == "Gemma" else one for one in result.calls]
    lacking = write(tmp_path / "lacking", outcome, replace(result, calls=tuple(calls)))
    rule = "a run with sessions of ['Gemma'] in ['propose'] whose calls all finished"
    assert refusal(f"profile.path={lacking}") == f"profile.path must be {rule}, got {str(lacking)!r}"
    path = f"profile.path={folder}"
    reacting = write(tmp_path / "reacting", outcome, overrides=["pipeline.quorum=true", "pipeline.moves=true"])
    assert "a run without moves, by which calls leave" in refusal(f"profile.path={reacting}")
    served = write(tmp_path / "shared", outcome, overrides=["backend.experts_per_gpu=2"])
    assert "a run with backend.experts_per_gpu=1" in refusal(f"profile.path={served}")
    sparse = "{policy: flexicache, budget_pages: 64, rerank_every: 16, unstable_frac: 0.25}"
    assert "the kv that Gemma has here" in refusal(f"pool.experts.Gemma.kv={sparse}", path)
    ranks = write(tmp_path / "ranks", outcome, overrides=["+pool.experts.Gemma.dp_attention=true"])
    assert "the dp_attention that Gemma has here" in refusal(f"profile.path={ranks}")
    (tmp_path / "reacting" / "config.yaml").write_text("seed: 0\n")
    assert "the folder of a run, whose config.yaml has ['backend'" in refusal(f"profile.path={reacting}")
    (folder / "summary.json").unlink()
    rule = "a profile's file, or the folder of a complete run"
    key = "profile.aggregator_path"
    assert refusal(f"{key}={folder}") == f"{key} must be {rule}, got {str(folder)!r}"


def test_what_files_of_profiles_give_is_not_measured_again(tmp_path) -> None:
    small = ["workload=gpqa", "aggregator=auto", "profile.sweep={shard_sizes: [8, 16], num_repeats: 1}"]
    files = write_profiles(tmp_path, *small)
    job = build_job(compose_config(["workload=gpqa", "aggregator=auto", *files])).job
    assert job.profile is not None
    assert {entry.expert for entry in job.profile.entries} == {"LlamaR1", "QwenR1", "Gemma", "Exaone"}
    assert job.upper_profile is not None
    assert [(entry.expert, entry.tp_degree) for entry in job.upper_profile.entries] == [("QwenR1", 4), ("QwenR1", 1)]
    assert set(measure(job).values()) == {job.profile, job.upper_profile}


def make_site(*overrides: str) -> SimSite:
    return simulated_job(["aggregator=none", *overrides])[1]


def small_profile(*overrides: str) -> Profile:
    return measure(simulated_job(["aggregator=none", *SMALL, *QUICK, *overrides])[0])[PROPOSE]


@pytest.mark.parametrize("seed", range(4))
def test_a_length_error_moves_predicted_means_within_its_factor_and_leaves_the_world(seed: int) -> None:
    right, wrong = (make_site(f"seed={seed}", f"profile.length_error={error}") for error in (1.0, 2.0))
    assert wrong.world == right.world, "the true lengths stay"
    true = right.world.lengths
    factors = [wrong.calibration_world.lengths[name].mean / true[name].mean for name in sorted(true)]
    assert all(0.5 <= factor <= 2 for factor in factors)
    assert len({round(factor, 6) for factor in factors}) == len(factors), "each expert has its own"
    assert min(factors) < 0.9 or max(factors) > 1.1


def test_a_length_error_reaches_what_the_scheduler_is_told() -> None:
    right, wrong = (small_profile(f"profile.length_error={error}") for error in (1.0, 2.0))
    ratio = sum(wrong.entries[0].output_tokens) / sum(right.entries[0].output_tokens)
    assert ratio != pytest.approx(1.0, rel=0.01)
    assert 0.45 <= ratio <= 2.2
    assert "mean lengths off by up to x2" in wrong.source
    assert "off by" not in right.source


def test_the_error_of_an_expert_is_log_uniform() -> None:
    lengths = {f"E{i}": ClippedLognormal(mean=500, sigma=0.8, clip_tokens=4096) for i in range(400)}
    logs = [log2(entry.mean / 500) for entry in mistaken_lengths(lengths, 2.0, seed=0).values()]
    assert abs(fmean(logs)) < 4 / sqrt(12 * 100), "uniform between -1 and 1: standard error 2 / sqrt(12 x 400)"
    assert sum(value**2 for value in logs) / 400 == pytest.approx(1 / 3, abs=0.06)
    half = [log2(entry.mean / 500) for entry in mistaken_lengths(lengths, sqrt(2.0), seed=0).values()]
    assert half == pytest.approx([value / 2 for value in logs]), "the same direction at every error"


def test_a_length_error_that_leaves_the_limits_is_refused() -> None:
    lengths = {"A": ClippedLognormal(mean=4000, sigma=0.8, clip_tokens=4096)}
    with pytest.raises(ValueError, match="profile.length_error=50, expert A: mean must be below clip_tokens=4096, got"):
        mistaken_lengths(lengths, 50, seed=0)
