"""Prices of loads and sessions, and what fits into memory."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from mosaic.core.cluster import Worker
from mosaic.core.engine_options import EngineOptions
from mosaic.core.errors import ProfileError
from mosaic.core.kv_memory import activation_bytes
from mosaic.planning.costs import (
    AffineCosts,
    CostModel,
    LinearTerms,
    PaperCosts,
    PiecewiseCosts,
    WeightLocation,
    least_terms,
    price_s,
)
from mosaic.planning.profiles import SessionFit, SweepPoint
from tests.factories import make_cluster, make_entry, make_expert, make_gpu, make_profile

WORKER = make_cluster(1).workers
MODELS = (PaperCosts, AffineCosts)


def make_costs(
    model: type = PaperCosts,
    *,
    fixed_s: float = 30.0,
    per_call_s: float = 0.5,
    spread: float = 0.1,
    num_calls: Mapping[str, int] | None = None,
) -> CostModel:
    fit = SessionFit(
        fixed_s=fixed_s, per_call_s=per_call_s, min_num_calls=10, max_num_calls=100, residual_std_frac=spread
    )
    profile = make_profile(replace(make_entry(load_s=40.0), fit=fit))
    return model(profile=profile, num_calls_by_expert={"A": 200} if num_calls is None else num_calls)  # type: ignore[no-any-return]


def session_s(costs: CostModel, num_calls: int) -> float:
    return price_s(costs.pieces(make_expert("A"), WORKER), num_calls)


def test_prices_by_hand() -> None:
    # T(200) = 30 + 0.5 * 200 = 130 s, so tau = 0.65 s.
    assert session_s(make_costs(PaperCosts), 100) == pytest.approx(65.0)
    assert session_s(make_costs(AffineCosts), 100) == pytest.approx(80.0)
    assert session_s(make_costs(AffineCosts), 0) == 0.0
    assert make_costs(PaperCosts).pieces(make_expert(), WORKER) == (LinearTerms(0.0, 0.65),)
    assert make_costs(AffineCosts).pieces(make_expert(), WORKER) == (LinearTerms(30.0, 0.5),)


@pytest.mark.parametrize("model", MODELS)
def test_only_a_resident_expert_is_free_to_load(model: type) -> None:
    costs = make_costs(model)
    assert costs.load_s(make_expert(), WORKER, WeightLocation.COLD) == 40.0
    assert costs.load_s(make_expert(), WORKER, WeightLocation.RESIDENT) == 0.0


@pytest.mark.parametrize("model", MODELS)
def test_what_was_not_measured_is_not_priced(model: type) -> None:
    costs = make_costs(model)
    two = make_cluster(2).workers
    for expert, workers in ((make_expert("B"), WORKER), (make_expert("A", tp_degree=2), two)):
        for price in (
            lambda expert=expert, workers=workers: costs.load_s(expert, workers, WeightLocation.COLD),
            lambda expert=expert, workers=workers: costs.pieces(expert, workers),
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


@pytest.mark.parametrize("model", MODELS)
def test_an_expert_fits_where_its_whole_context_does_beside_what_its_engine_keeps_free(model: type) -> None:
    expert = make_expert(context_tokens=8192)
    for options in (EngineOptions(), EngineOptions(max_num_seqs=16)):
        enough_bytes = expert.shape.weight_bytes + activation_bytes(expert, options) + 8192 * 131_072
        costs = replace(make_costs(model), options=options)  # type: ignore[type-var]
        for memory_bytes, fits in ((enough_bytes, True), (enough_bytes - 1, False)):
            gpu = replace(make_gpu(), memory_bytes=memory_bytes, memory_utilization_frac=1.0)
            assert costs.fits(expert, (Worker(0, gpu),)) is fits


def piecewise_costs(times: Mapping[int, float]) -> CostModel:
    points = tuple(SweepPoint(num_calls=n, session_s=s, output_tokens=1) for n, s in times.items())
    entry = replace(make_costs().profile.entries[0], points=points)  # type: ignore[attr-defined]
    return PiecewiseCosts(profile=make_profile(entry), num_calls_by_expert={"A": 200})


def test_a_piecewise_price_goes_through_the_measured_sizes() -> None:
    costs = piecewise_costs({10: 100.0, 20: 110.0, 40: 200.0})
    assert [session_s(costs, n) for n in (10, 15, 20, 30, 40, 60)] == [100, 105, 110, 155, 200, 290]
    assert session_s(costs, 0) == 0
    assert session_s(costs, 1) == 91


def test_least_terms_of_a_piecewise_price_are_never_above_it() -> None:
    costs = piecewise_costs({10: 100.0, 20: 110.0, 40: 400.0})
    terms = least_terms(costs.pieces(make_expert("A"), WORKER))
    assert terms == LinearTerms(90.0, 1.0), "the steeper piece has a negative part per session"
    for n in (1, 10, 20, 40, 80):
        assert terms.fixed_s + terms.per_call_s * n <= session_s(costs, n)


def test_a_piecewise_price_needs_the_sweeps_points() -> None:
    with pytest.raises(ProfileError, match="costs=piecewise: the profile must keep the points of 'A', got none"):
        session_s(make_costs(PiecewiseCosts), 5)
