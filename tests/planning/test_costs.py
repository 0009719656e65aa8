"""Prices of loads and sessions, and what fits into memory."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic.core.cluster import Worker
from mosaic.core.errors import ProfileError
from mosaic.core.prediction import LengthPrediction
from mosaic.planning.costs import (
    ACTIVATION_BYTES,
    AffineCosts,
    CostModel,
    LinearTerms,
    PaperCosts,
    Residency,
    ShardSummary,
    fits_memory,
    kv_capacity_tokens,
)
from mosaic.planning.profiles import Profile, ProfileEntry, SessionFit
from tests.factories import make_cluster, make_expert, make_gpu, make_shape

WORKER = make_cluster(1).workers
LENGTHS = LengthPrediction(mean=300, max=4096, std=200)
MODELS = (PaperCosts, AffineCosts)


def make_costs(
    model: type = PaperCosts,
    *,
    fixed_s: float = 30.0,
    per_call_s: float = 0.5,
    spread: float = 0.1,
    num_calls: Mapping[str, int] | None = None,
) -> CostModel:
    entry = ProfileEntry(
        expert="A",
        gpu="gpu",
        tp_degree=1,
        load_s=40.0,
        fit=SessionFit(
            fixed_s=fixed_s, per_call_s=per_call_s, min_num_calls=10, max_num_calls=100, residual_std_frac=spread
        ),
        lengths=LENGTHS,
        points=(),
    )
    profile = Profile(source="test", entries=(entry,))
    return model(profile=profile, num_calls_by_expert={"A": 200} if num_calls is None else num_calls)  # type: ignore[no-any-return]


def session_s(costs: CostModel, num_calls: int) -> float:
    return costs.session_s(make_expert("A"), ShardSummary(num_calls, LENGTHS), WORKER)


def test_prices_by_hand() -> None:
    # T(200) = 30 + 0.5 * 200 = 130 s, so tau = 0.65 s.
    assert session_s(make_costs(PaperCosts), 100) == pytest.approx(65.0)
    assert session_s(make_costs(AffineCosts), 100) == pytest.approx(80.0)
    assert make_costs(PaperCosts).linear_terms(make_expert(), WORKER) == LinearTerms(0.0, 0.65)
    assert make_costs(AffineCosts).linear_terms(make_expert(), WORKER) == LinearTerms(30.0, 0.5)


@given(fixed=st.floats(0, 500), slope=st.floats(0.01, 5), num_calls=st.integers(1, 5000))
def test_the_papers_price_of_all_calls_is_the_fitted_session(fixed: float, slope: float, num_calls: int) -> None:
    costs = make_costs(fixed_s=fixed, per_call_s=slope, num_calls={"A": num_calls})
    assert session_s(costs, num_calls) == pytest.approx(fixed + slope * num_calls)


@given(fixed=st.floats(0.1, 500), slope=st.floats(0.01, 5), num_calls=st.integers(2, 5000), data=st.data())
def test_the_papers_price_undercuts_the_affine_one_for_smaller_shards(
    fixed: float, slope: float, num_calls: int, data: st.DataObject
) -> None:
    shard = data.draw(st.integers(1, num_calls - 1))
    paper, affine = (make_costs(model, fixed_s=fixed, per_call_s=slope, num_calls={"A": num_calls}) for model in MODELS)
    assert session_s(paper, shard) < session_s(affine, shard)


@pytest.mark.parametrize("model", MODELS)
@given(fixed=st.floats(0, 500), slope=st.floats(0, 5), spread=st.floats(0, 3), num_calls=st.integers(0, 5000))
def test_linear_terms_price_a_session(model: type, fixed: float, slope: float, spread: float, num_calls: int) -> None:
    costs = make_costs(model, fixed_s=fixed, per_call_s=slope, spread=spread)
    terms, cost = costs.linear_terms(make_expert(), WORKER), session_s(costs, num_calls)
    expected = terms.fixed_s + terms.per_call_s * num_calls if num_calls else 0.0
    assert cost == pytest.approx(expected)


@pytest.mark.parametrize("model", MODELS)
def test_only_a_resident_expert_is_free_to_load(model: type) -> None:
    costs = make_costs(model)
    assert costs.load_s(make_expert(), WORKER, Residency.COLD) == 40.0
    assert costs.load_s(make_expert(), WORKER, Residency.RESIDENT) == 0.0


@pytest.mark.parametrize("model", MODELS)
def test_what_was_not_measured_is_not_priced(model: type) -> None:
    costs = make_costs(model)
    two = make_cluster(2).workers
    for expert, workers in ((make_expert("B"), WORKER), (make_expert("A", tp_degree=2), two)):
        for price in (
            lambda expert=expert, workers=workers: costs.load_s(expert, workers, Residency.COLD),
            lambda expert=expert, workers=workers: costs.session_s(expert, ShardSummary(1, LENGTHS), workers),
            lambda expert=expert, workers=workers: costs.linear_terms(expert, workers),
        ):
            with pytest.raises(ProfileError, match=rf"has no entry for expert '{expert.name}' on {len(workers)} x gpu"):
                price()


@pytest.mark.parametrize("num_calls", [{}, {"A": 0}])
def test_the_papers_price_needs_the_number_of_calls(num_calls: dict[str, int]) -> None:
    with pytest.raises(ProfileError, match="costs=paper: no number of calls N_m for expert 'A'"):
        session_s(make_costs(num_calls=num_calls), 3)


@pytest.mark.parametrize("model", MODELS)
def test_notes_say_where_the_sweep_began_and_ended(model: type) -> None:
    assert make_costs(model, num_calls={"A": 100}).notes() == ()
    for number in (9, 200):
        notes = make_costs(model, num_calls={"A": number}).notes()
        assert notes == (f"A: {number} calls, priced by extrapolating a sweep from 10 to 100",)


def test_a_llama_8b_on_80_gb_has_the_reported_kv_tokens() -> None:
    gpu = replace(make_gpu("a100_80gb"), memory_bytes=85_899_345_920)
    capacity = kv_capacity_tokens(make_expert(), (Worker(0, gpu),))
    assert capacity == (int(0.9 * 85_899_345_920) - 16_060_000_000 - ACTIVATION_BYTES) // 131_072
    assert capacity == pytest.approx(427_000, rel=0.02)


def test_a_gang_has_the_capacity_of_its_smallest_gpu() -> None:
    big, small = make_gpu("big", memory_gib=80), make_gpu("small", memory_gib=24)
    expert = make_expert(tp_degree=2)
    assert kv_capacity_tokens(expert, (Worker(0, big), Worker(1, small))) == kv_capacity_tokens(
        expert, (Worker(0, small), Worker(1, small))
    )


@given(num_kv_heads=st.sampled_from([2, 4, 8]), degrees=st.sampled_from([(1, 2), (2, 4), (4, 8)]))
def test_more_gpus_never_hold_fewer_kv_tokens(num_kv_heads: int, degrees: tuple[int, int]) -> None:
    expert = make_expert(shape=make_shape(num_kv_heads=num_kv_heads))
    workers = make_cluster(8).workers
    few, many = (kv_capacity_tokens(expert, workers[:degree]) for degree in degrees)
    assert many >= few


def test_a_gang_shares_the_weights() -> None:
    # 16.06 GB of weights: too much for one of these GPUs, half of it on each of two.
    expert, workers = make_expert(), make_cluster(2, gpu=make_gpu(memory_gib=20)).workers
    free = workers[0].gpu.usable_bytes - 8_030_000_000 - ACTIVATION_BYTES
    assert kv_capacity_tokens(expert, workers) == free // (131_072 // 2)
    assert kv_capacity_tokens(expert, workers[:1]) <= 0


@pytest.mark.parametrize("model", MODELS)
def test_an_expert_fits_where_its_whole_context_does(model: type) -> None:
    expert = make_expert(context_tokens=8192)
    enough_bytes = expert.shape.weight_bytes + ACTIVATION_BYTES + 8192 * 131_072
    for memory_bytes, fits in ((enough_bytes, True), (enough_bytes - 1, False)):
        gpu = replace(make_gpu(), memory_bytes=memory_bytes, memory_utilization_frac=1.0)
        assert fits_memory(expert, (Worker(0, gpu),)) is fits
        assert make_costs(model).fits(expert, (Worker(0, gpu),)) is fits


def test_weights_larger_than_the_gpu_leave_no_kv_tokens() -> None:
    workers = make_cluster(1, gpu=make_gpu(memory_gib=12)).workers
    assert kv_capacity_tokens(make_expert(), workers) <= 0
    assert not fits_memory(make_expert(), workers)
