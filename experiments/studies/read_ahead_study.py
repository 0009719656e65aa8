"""What prefill ahead of time earns: one layer alone, by load, and in whole batches. Equal seeds meet equal texts."""

from collections.abc import Callable, Iterator, Sequence
from math import inf
from typing import NamedTuple

import mosaic
from experiments.studies.read_ahead_runs import (
    AHEAD,
    AHEAD_SHORTEST,
    CHUNKED,
    TWO_ENGINES,
    WHOLE,
    Measured,
    Scene,
    measure,
)
from mosaic.comparison.estimate import Estimate, estimate
from mosaic.config.job import simulated
from mosaic.core.results import RunResult

SEEDS = tuple(range(3))
"""Of one layer alone."""
MORE_SEEDS = tuple(range(6))
"""By load and in batches."""
OUTPUT_TOKENS = (16, 32, 64, 128, 256)
SHAPES = ((3, 1), (9, 1), (9, 3))
"""Texts that a call reads, and calls that an engine serves at once: a tree's; a call that reads all of nine agents;
and three agents of one model in a layer of nine that all read all."""
RATES_PER_S = (0.0, 0.25, 1.0, 2.0, inf)
LOAD_OUTPUT_TOKENS = 256
LOAD_QUESTIONS = 100
BATCHES = ("never", "majority")
"""Gates: every question is aggregated, or few."""
METRICS = ("end_to_end_s", "expert_makespan_s")


class LayerRow(NamedTuple):
    """The time that a method saves of one layer's, against whole prompts on one engine; means and 95% intervals."""

    fan_in: int
    num_readers: int
    output_tokens: int
    method: str
    layer_s: float
    saved_frac: float
    low_frac: float
    high_frac: float


class LoadRow(NamedTuple):
    """What prefill ahead changes at a load, against the same engine without it; fractions, negative is faster."""

    shares_engine: bool
    per_s: float
    metric: str
    without: float
    change_frac: float
    low_frac: float
    high_frac: float


class BatchRow(NamedTuple):
    """What it changes in a whole batch with `pipeline.overlap=true`; tokens are means over the seeds."""

    gate: str
    without_s: float
    change_frac: float
    low_frac: float
    high_frac: float
    first_token_change_frac: float
    first_token_low_frac: float
    first_token_high_frac: float
    computed_tokens: float
    reused_tokens: float


def layer_rows(seeds: Sequence[int] = SEEDS, shapes: Sequence[tuple[int, int]] = SHAPES) -> Iterator[LayerRow]:
    """Measure one layer alone, a question at a time."""
    for fan_in, num_readers in shapes:
        for tokens in OUTPUT_TOKENS:
            yield from _layer(Scene(fan_in=fan_in, num_readers=num_readers, output_tokens=tokens), seeds)


def _layer(scene: Scene, seeds: Sequence[int]) -> Iterator[LayerRow]:
    base = [measure(scene, WHOLE, seed).layer_s for seed in seeds]
    for method in (CHUNKED, TWO_ENGINES, AHEAD, AHEAD_SHORTEST):
        if method is TWO_ENGINES and scene.num_readers == 1:
            continue  # one call has one engine
        mine = [measure(scene, method, seed).layer_s for seed in seeds]
        saved = estimate([1 - one / other for one, other in zip(mine, base, strict=True)])
        place = scene.fan_in, scene.num_readers, scene.output_tokens
        yield LayerRow(*place, method.name, sum(mine) / len(mine), *_three(saved))


def load_rows(seeds: Sequence[int] = MORE_SEEDS, rates_per_s: Sequence[float] = RATES_PER_S) -> Iterator[LoadRow]:
    """Measure by load, from a question at a time to all at once, where the reader has a GPU and where it shares one."""
    metrics: dict[str, Callable[[Measured], float]] = {
        "first token of the reader": lambda measured: measured.first_token_s,
        "layer that reads": lambda measured: measured.layer_s,
        "question": lambda measured: measured.question_s,
        "makespan": lambda measured: measured.makespan_s,
        "prefilled tokens": lambda measured: measured.computed_tokens,
    }
    for shares_engine in (False, True):
        for per_s in rates_per_s:
            scene = Scene(
                per_s=per_s,
                shares_engine=shares_engine,
                output_tokens=LOAD_OUTPUT_TOKENS,
                num_questions=LOAD_QUESTIONS,
            )
            pairs = [(measure(scene, CHUNKED, seed), measure(scene, AHEAD, seed)) for seed in seeds]
            for name, value in metrics.items():
                changes = estimate([value(ahead) / value(without) - 1 for without, ahead in pairs])
                mean = sum(value(without) for without, _ in pairs) / len(pairs)
                yield LoadRow(shares_engine, per_s, name, mean, *_three(changes))


def batch_rows(seeds: Sequence[int] = MORE_SEEDS, workload: str = "gpqa") -> Iterator[BatchRow]:
    """Run a published batch with overlapped aggregation, with and without prefill ahead."""
    for gate in BATCHES:
        runs = [[_batch(workload, gate, seed, is_ahead=is_ahead) for is_ahead in (False, True)] for seed in seeds]
        ends = [[max(session.end_ts for session in result.sessions) for result in pair] for pair in runs]
        firsts = [[_first_token_s(result) for result in pair] for pair in runs]
        prefills = [ahead.prefills for _, ahead in runs]
        reused = [
            sum(record.cached_tokens for record in ahead.calls) - sum(record.cached_tokens for record in without.calls)
            for without, ahead in runs
        ]
        yield BatchRow(
            gate,
            sum(without for without, _ in ends) / len(ends),
            *_three(estimate([ahead / without - 1 for without, ahead in ends])),
            *_three(estimate([ahead / without - 1 for without, ahead in firsts])),
            sum(prefill.computed_tokens for some in prefills for prefill in some) / len(seeds),
            sum(reused) / len(seeds),
        )


def _batch(workload: str, gate: str, seed: int, *, is_ahead: bool) -> RunResult:
    overrides = [f"workload={workload}", f"gate={gate}", f"seed={seed}", "aggregator=dp", "backend.order=mixed"]
    ahead = ["pipeline.prefill_ahead=true"] if is_ahead else []
    job, _ = simulated([*overrides, "pipeline.overlap=true", *ahead])
    return mosaic.run(job).result


def _first_token_s(result: RunResult) -> float:
    """Mean time from when an aggregation was submitted to its first token."""
    merged = [record for record in result.calls if record.key.node not in result.first_nodes]
    waits = [record.first_token_ts - record.queued_ts for record in merged if record.first_token_ts is not None]
    return sum(waits) / len(waits)


def _three(found: Estimate) -> tuple[float, float, float]:
    assert found.low is not None, "there is more than one seed"
    assert found.high is not None, "there is more than one seed"
    return found.mean, found.low, found.high
