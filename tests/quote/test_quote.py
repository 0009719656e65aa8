"""Quotes: samples, worlds, plans simulated without a clock, intervals, prices, and the command."""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from math import exp
from random import Random
from statistics import fmean

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mosaic
from experiments.studies.quotes import calibrate_without, conformal_quantile
from mosaic.commands.quote import parse_sizes, quote_batch, simulator_on
from mosaic.config.errors import NOT_REACHED_STATUS
from mosaic.config.job import simulated_job
from mosaic.core.workload import PROPOSE, Call, CallKey
from mosaic.planning.problem import Request
from mosaic.quote import run_quote_pilot
from mosaic.quote.forecast import spread_of
from mosaic.quote.lengths import Lengths, fit_lengths
from mosaic.quote.pilot import merging, num_pilot_calls, second_share
from mosaic.quote.prices import Price, load_prices, parse_duration_s, parse_price
from mosaic.quote.quotation import (
    Calibration,
    Offer,
    Quotation,
    describe,
    p90_of,
    widened,
)
from mosaic.quote.worlds import Batch, PilotQuestion, draw_world, draw_worlds
from mosaic.runtime.profiling import in_waves_of
from mosaic.runtime.static_plan import execute
from tests.commands.command_line import mosaic_status
from tests.factories import make_expert

SMALL = ("workload=gpqa", "aggregator=none", "profile.store=null")


def lengths_of(sample: Sequence[int], limit: int) -> Lengths:
    """Fit the lengths behind one sample alone."""
    return fit_lengths({"": (sample, limit)}, {"": ""})[""]


def lognormal(num: int, location: float, scale: float, seed: int) -> list[int]:
    draw = Random(seed)
    return [round(draw.lognormvariate(location, scale)) for _ in range(num)]


def make_batch(questions: Sequence[PilotQuestion], calls: Sequence[Call]) -> Batch:
    return Batch(questions=tuple(questions), calls=tuple(calls), num_open_questions=len(calls))


def make_offer(num_gpus: int, p50_s: float, **changes) -> Offer:
    given = {
        "kind": "a100", "num_gpus": num_gpus, "p50_s": p50_s, "p90_s": 1.5 * p50_s, "plan": "ilp (affine)",
        "p50_s_by_plan": {"ilp (affine)": p50_s, "round_robin": p50_s}, "aggregator_s": 0.0, "load_frac": 0.1,
        "pilot_spread": 0.1, "hardware_error": 0.0,
    }  # fmt: skip
    return Offer(**(given | changes))


def make_quotation(*offers: Offer, **changes) -> Quotation:
    given = {"workload": "w", "num_calls": 100, "num_pilot_calls": 10, "num_expected_merges": 0.0, "offers": offers}
    return Quotation(**(given | changes))


@pytest.mark.parametrize("scheduler", ["ilp", "data_parallel"])
def test_a_plan_takes_as_long_as_in_the_simulator(scheduler: str) -> None:
    job, site = simulated_job([*SMALL, f"scheduler={scheduler}"])
    planned = mosaic.plan(job)
    result = execute(planned.plan, job.workload.calls, site.backend_in(site.world))
    requests = {r.key: Request(r.prompt_tokens, r.output_tokens) for r in result.calls}
    simulator = simulator_on(job, site.hardware, job.cluster, site.settings)
    end_s = max(session.end_ts for session in result.sessions)
    assert simulator.plan_s(planned.plan, requests) == pytest.approx(end_s)
    slower = replace(simulator, load_factor=2.0, serve_factor=2.0)
    assert slower.plan_s(planned.plan, requests) == pytest.approx(2 * end_s)


def test_a_pilot_runs_the_batchs_own_calls_and_its_answers_are_those_of_the_batch() -> None:
    job, site = simulated_job(["workload=gpqa", "profile.store=null"])
    pilot, batch = run_quote_pilot(job, 20)
    first = job.graph.first_calls(job.workload)
    done = {key for key in pilot.records if key.node == PROPOSE}
    assert len(done) + len(batch.calls) == len(first)
    assert len(done) == pytest.approx(num_pilot_calls(first, 20), abs=12)
    for call in first:
        if call.key in done:
            true = min(site.world.outcome(call, {}).output_tokens, site.experts[0].max_output_tokens)
            assert pilot.records[call.key].output_tokens <= true
    merged = [key for key in pilot.records if key.node != PROPOSE]
    assert len(merged) == len(batch.merged)
    assert 0 < batch.needed_frac < 1


@pytest.mark.parametrize(
    ("num_merges", "sizes"),
    [
        (6, [(2, 2, 1, 1)]),
        (11, [(1,), (3,), (7,)]),
        (15, [(1, 1), (2, 2), (5, 4)]),
        (28, [(1, 1, 1, 1), (2, 2, 2, 2), (4, 4, 4, 4)]),
    ],
)
def test_as_many_places_merge_as_the_merges_price(num_merges: int, sizes: list[tuple[int, ...]]) -> None:
    job, _ = simulated_job([*SMALL, "scheduler=round_robin"])
    (expert, *_), cluster = job.experts, job.cluster
    assert len(job.site.places(expert)) == cluster.num_workers == 4
    merges = [call for call in job.workload.calls if call.expert == expert.name][:num_merges]
    waves = in_waves_of(merging(merges, expert, job.site.places))
    assert [tuple(sorted((len(session.shard) for session in wave), reverse=True)) for wave in waves] == sizes


@given(st.lists(st.integers(1, 4000), min_size=1, max_size=80), st.floats(0.0, 0.999), st.floats(0.0, 0.999))
def test_lengths_are_quantiles_within_the_limit(values: list[int], low: float, high: float) -> None:
    lengths = lengths_of(values, 4096)
    low, high = sorted((low, high))
    assert 1 <= lengths.at(low) <= lengths.at(high) <= 4096


def test_the_tail_of_a_lognormal_is_found_beyond_its_sample() -> None:
    lengths = lengths_of(lognormal(200, 6, 0.8, 3), 100_000)
    true = 403.4 * 2.718281828 ** (0.8 * 2.878)  # the quantile 0.998
    assert lengths.at(0.998) == pytest.approx(true, rel=0.25)


def test_what_was_cut_off_keeps_its_share() -> None:
    lengths = lengths_of([100] * 90 + [1000] * 10, 1000)
    assert [lengths.at((i + 0.5) / 100) for i in (0, 89, 90, 99)] == [100, 100, 1000, 1000]


def test_a_small_sample_has_the_tail_of_its_kin() -> None:
    samples = {"A": lognormal(300, 6, 0.8, 1), "B": lognormal(300, 6, 0.3, 2), "C": lognormal(5, 6, 0.8, 3)}
    fitted = fit_lengths({name: (own, 10**6) for name, own in samples.items()}, {"A": "x", "B": "y", "C": "x"})
    assert fitted["C"].scale == pytest.approx(fitted["A"].scale)
    assert fitted["B"].scale == pytest.approx(0.3, rel=0.2)
    alone = fit_lengths({name: (own, 10**6) for name, own in samples.items()}, {"A": "x", "B": "y", "C": "z"})
    assert fitted["B"].scale < alone["C"].scale < fitted["A"].scale


def test_slopes_of_kin_are_nearer_to_the_truth_together() -> None:
    apart = together = 0.0
    for seed in range(20):
        samples = {name: (lognormal(20, 6, 0.8, 10 * seed + place), 10**6) for place, name in enumerate("ABCDEF")}
        fitted = fit_lengths(samples, dict.fromkeys(samples, ""))
        together += sum((lengths.scale - 0.8) ** 2 for lengths in fitted.values())
        apart += sum((lengths_of(*sample).scale - 0.8) ** 2 for sample in samples.values())
    assert together < 0.6 * apart


def test_an_expert_that_always_writes_the_same_is_not_smoothed_by_others() -> None:
    fitted = fit_lengths({"A": ([7] * 50, 100), "B": (lognormal(50, 4, 0.8, 1), 10**6)}, {"A": "", "B": ""})
    assert [fitted["A"].at(u) for u in (0.0, 0.5, 0.999)] == [7, 7, 7]


def test_a_tail_is_that_of_the_upper_half_where_it_differs_from_the_lower() -> None:
    sample = sorted(lognormal(800, 6, 0.8, 1))
    lengths = lengths_of([3] * 400 + sample[400:], 10**6)
    true = sorted(lognormal(100_000, 6, 0.8, 3))[99_000]
    assert lengths.at(0.99) == pytest.approx(true, rel=0.15)


def test_what_the_tail_explains_is_cut_off_by_its_share() -> None:
    sample = [min(tokens, 1500) for tokens in lognormal(200, 6, 0.6, 1)]
    lengths = lengths_of(sample, 1500)
    assert lengths.cut_frac == lengths.over_frac == pytest.approx(0.0143, abs=0.01)
    assert lengths.at(1 - lengths.cut_frac / 2) == 1500


def test_loops_are_counted_and_leave_the_tail_as_it_is() -> None:
    sample = lognormal(190, 5, 0.5, 1)
    lengths = lengths_of([*sample, *[4096] * 10], 4096)
    assert lengths.cut_frac == pytest.approx(0.05)
    assert lengths.scale == pytest.approx(lengths_of(sample, 4096).scale)
    assert lengths_of([*sample, *[4096] * 400], 4096).cut_frac == pytest.approx(400 / 590)


@settings(max_examples=25)
@given(st.integers(1, 300), st.integers(0, 5), st.floats(0, 0.999))
def test_balanced_lengths_have_the_samples_mean_where_nothing_is_smoothed(
    num_calls: int, seed: int, offset: float
) -> None:
    calls = [Call(CallKey(f"q{i}", PROPOSE, 0), "A", 5) for i in range(4 * num_calls)]
    fitted, experts = {"A": lengths_of((10, 20, 30, 40), 100)}, {"A": make_expert("A")}
    world = draw_world(make_batch((), calls), fitted, experts, Random(seed), {"A": offset})
    assert fmean(request.output_tokens for request in world.requests.values()) == 25


def test_the_longest_calls_of_central_worlds_come_from_all_parts_of_their_step() -> None:
    lengths = lognormal(400, 6, 0.8, 4)
    questions = [PilotQuestion(output_tokens={"A": (own,)}) for own in lengths]
    batch = make_batch(questions, [Call(CallKey(f"q{i}", PROPOSE, 0), "A", 5) for i in range(100)])
    central, others = draw_worlds(batch, {"A": make_expert("A")}, num_central=4, num_bootstrap=2)
    assert (len(central), len(others)) == (4, 2)
    longest = sorted(max(request.output_tokens for request in world.requests.values()) for world in central)
    behind = lengths_of(lengths, make_expert("A").max_output_tokens)
    bounds = [behind.at(0.99 + 0.01 * part / 4) for part in range(5)]
    assert all(low <= own <= high for low, own, high in zip(bounds, longest, bounds[1:], strict=False))


def test_a_resampled_pilot_keeps_an_expert_that_was_not_drawn() -> None:
    questions = [PilotQuestion(output_tokens={"A": (1,)}) for _ in range(50)]
    batch = make_batch([*questions, PilotQuestion(output_tokens={"B": (7,)})], ())
    for seed in range(20):
        assert set(batch.resampled(Random(seed)).by_expert) == {"A", "B"}


def test_the_rest_of_a_pilot_goes_where_lengths_spread() -> None:
    calls = [Call(CallKey(f"q{i}", PROPOSE, slot), "AB"[slot], 5) for i in range(200) for slot in range(2)]
    lengths = {
        call.key: (100 * (1 + int(call.key.question[1:]) % 9) if call.expert == "A" else 50) for call in calls[:40]
    }
    more = second_share(calls, lengths, 100)
    assert len(more) == 60
    assert {call.expert for call in more} == {"A"}
    assert not {call.key for call in more} & set(lengths)


def test_conformal_intervals_keep_their_promise_on_fresh_scores() -> None:
    draw, covered = Random(1), 0
    for _ in range(2000):
        scores = [draw.gauss(0, 1) ** 2 for _ in range(40)]
        covered += draw.gauss(0, 1) ** 2 <= conformal_quantile(scores, 0.9)
    assert 0.88 < covered / 2000 < 0.93, "at least 90%, and no more than one in 41 above"


def test_a_p90_by_hand() -> None:
    known = Calibration(1.0, "by hand")
    assert p90_of(100.0, 0.0, known) == pytest.approx(100.0 * exp(widened(0.0)))
    assert p90_of(100.0, 0.2, known, 0.3) > p90_of(100.0, 0.2, known) > p90_of(100.0, 0.0, known)
    assert spread_of([1.0, 1.0]) == 0
    with pytest.raises(ValueError, match="p90_score must be at least 0, got -1"):
        Calibration(-1.0, "by hand")


def test_a_calibration_is_a_share_of_the_pilots_in_widened_spreads() -> None:
    errors = (-0.3, 0.1, 0.2, 0.4)
    pilots = pl.DataFrame({
        "workload": [*("others" for _ in errors), "own"], "truth_s": [*(100.0 * exp(error) for error in errors), 900.0],
        "central_s": 100.0, "spread": 0.2,
    })  # fmt: skip
    assert calibrate_without(pilots, "own").p90_score == pytest.approx(0.4 / widened(0.2))
    assert calibrate_without(pilots[:1], "own").p90_score == 0, "P90 is never below P50"
    with pytest.raises(ValueError, match="at least one"):
        calibrate_without(pilots[:4], "others")


def test_a_row_names_its_plan_and_leaves_out_a_baseline_without_one() -> None:
    [line] = [line for line in describe(make_quotation(make_offer(4, 400.0))).splitlines() if line.startswith("4 x")]
    assert line.split()[-5:] == ["min", "-", "ilp", "(affine)", "<"]


def test_prices_are_read_and_a_file_must_date_them(tmp_path) -> None:
    assert parse_price("h100=2.5") == ("h100", Price(2.5))
    for bad in ("h100", "=3", "h100=-1", "h100=x"):
        with pytest.raises(ValueError, match="price must be KIND=DOLLARS_PER_HOUR"):
            parse_price(bad)
    path = tmp_path / "prices.json"
    path.write_text('{"h100": {"dollars_per_hour": 2.5, "as_of": "2026-11-01"}}')
    assert load_prices(path) == {"h100": Price(2.5, date(2026, 11, 1))}
    path.write_text('{"h100": {"dollars_per_hour": 2.5}}')
    with pytest.raises(ValueError, match="h100.as_of must be the date"):
        load_prices(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="prices must be JSON"):
        load_prices(path)
    for bad in ("", "soon", "-3h", "0"):
        with pytest.raises(ValueError, match="duration must be"):
            parse_duration_s(bad)


def test_numbers_of_gpus_are_read() -> None:
    assert parse_sizes("1-3,8,2") == (1, 2, 3, 8)
    for bad in ("", "0-2", "3-1", "a", "1-65"):
        with pytest.raises(ValueError, match="gpus must be"):
            parse_sizes(bad)


def test_the_cheapest_in_time_is_by_price_or_by_gpu_hours() -> None:
    slow, fast = make_offer(1, 1000.0), make_offer(4, 400.0)
    assert make_quotation(slow, fast).cheapest == slow
    assert make_quotation(slow, fast, deadline_s=700.0).cheapest == fast
    assert make_quotation(slow, fast, deadline_s=100.0).cheapest is None
    dear, cheap = make_offer(1, 1000.0, dollars_per_hour=9.0), make_offer(4, 400.0, dollars_per_hour=1.0)
    assert make_quotation(dear, cheap).cheapest == cheap
    assert "nothing meets the deadline of 1:40 min" in describe(make_quotation(slow, fast, deadline_s=100.0))


def test_the_command_quotes_as_text_and_as_json(capsys) -> None:
    arguments = ["--gpus", "2,4", "--pilot", "20", *SMALL]
    assert mosaic_status("quote", *arguments, "--explain", "--price", "a100_80gb=2") == 0
    text = capsys.readouterr().out
    assert "2 x a100_80gb" in text
    assert "who dominates: " in text
    assert "price of a100_80gb: $2 an hour, as given" in text
    assert mosaic_status("quote", *arguments, "--json", "--deadline", "1s") == NOT_REACHED_STATUS
    found = json.loads(capsys.readouterr().out)
    assert found["cheapest"] is None
    assert [offer["num_gpus"] for offer in found["offers"]] == [2, 4]
    for offer in found["offers"]:
        assert 0 < offer["p50_s"] < offer["p90_s"]
        assert offer["p50_dollars"] is None
        assert offer["p50_gpu_hours"] == pytest.approx(offer["num_gpus"] * offer["p50_s"] / 3600)


def test_the_same_pilot_gives_the_same_quote() -> None:
    # The program's time is limited, so a busy machine plans otherwise.
    planned_at_once = [*SMALL, "scheduler=round_robin"]
    made = [quote_batch(planned_at_once, sizes=(2,), per_expert=20).to_json() for _ in range(2)]
    assert made[0] == made[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpus", "0"], "gpus must be"),
        (["--nope"], "No such option: --nope"),
        (["backend=none"], "backend.name must be sim or vllm in a quote"),
        (["--deadline", "never"], "duration must be"),
    ],
)
def test_bad_input_is_refused_in_a_line(arguments, words, capsys) -> None:
    assert mosaic_status("quote", *arguments) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
