"""How fast the simulator is; run with ``pytest tests/benchmarks --benchmark-enable -s`` to see the numbers.

The ratios are printed, not asserted: a shared machine's clock proves nothing.
"""

import time
from math import inf

import pytest

import mosaic
from mosaic.config.job import simulated_job
from mosaic.core.engine_options import EngineOptions
from mosaic.runtime.static_plan import execute
from sim.engine.engine import Engine
from tests.sim.cluster_runs import HYBRID_POOL, round_robin_run
from tests.sim.oracle import LinearTime, Oracle


def cpu_seconds(function, rounds=3):
    best = inf
    for _ in range(rounds):
        start = time.process_time()
        function()
        best = min(best, time.process_time() - start)
    return best


def test_round_robin_on_6300_calls(benchmark):
    """The whole of a run: six sessions shaped like MMLU-Pro's, one of them KV-bound."""
    fresh, plan, calls, _ = round_robin_run()
    result = benchmark(lambda: execute(plan, calls, fresh()))
    assert len(result.calls) == len(calls) == 6300
    assert sum(record.num_preemptions for record in result.calls) > 1000
    if benchmark.enabled:
        print(f"\nround robin: {6300 / cpu_seconds(lambda: execute(plan, calls, fresh())):,.0f} calls per CPU second")


class Listening:
    """Wants to hear of every single event, and answers none."""

    reacts = True

    def on(self, event, view):
        return ()


def test_reacting_beside_not_reacting(benchmark):
    """The same run where a controller hears every event in its turn and may answer it; the aim is 1.15."""
    fresh, plan, calls, _ = round_robin_run()

    def run(*controllers):
        return execute(plan, calls, fresh(), controllers)

    heard = benchmark.pedantic(run, args=(Listening(),), rounds=1)
    assert {record.key: record for record in heard.calls} == {record.key: record for record in run().calls}
    if benchmark.enabled:
        pairs = [(cpu_seconds(lambda: run(Listening()), 1), cpu_seconds(run, 1)) for _ in range(7)]
        ratio = min(heard for heard, _ in pairs) / min(alone for _, alone in pairs)
        print(f"\nlistening: {ratio:.2f} times the CPU seconds of a run that does not react; the aim is at most 1.15")


def test_llama_r1_session_against_the_oracle(benchmark):
    """The named session: LlamaR1's 1,070 calls, KV-bound, prefill first (a dozen of them when nothing is timed)."""
    num_calls = HYBRID_POOL["LlamaR1"][0] if benchmark.enabled else 12
    _, _, calls, outcomes = round_robin_run()
    mine = [call for call in calls if call.expert == "LlamaR1"][:num_calls]
    requests = [(call.prompt_tokens, min(32000, outcomes[call.key].output_tokens), 0.0) for call in mine]
    settings = EngineOptions()

    def jump():
        engine = Engine(iteration_time=LinearTime(), settings=settings, kv_tokens=427_000, context_tokens=32768)
        for number, request in enumerate(requests):
            engine.submit(number, *request)
        return engine.advance_to(inf)

    finished = benchmark(jump)
    oracle = Oracle(LinearTime(), settings, 427_000, 32768)
    start = time.process_time()
    oracle.run(requests)
    oracle_s = time.process_time() - start
    assert abs(finished[-1].finished_ts / oracle.now - 1) < 1e-6
    if benchmark.enabled:
        print(f"\nLlamaR1 session: {oracle_s / cpu_seconds(jump):,.0f} times the speed of the oracle")


@pytest.mark.slow
def test_mmlu_pro_round_robin(benchmark):
    """A plan on the simulator with everything: the world's draws, the engine, the records."""
    job, site = simulated_job(["scheduler=round_robin", "aggregator=none"])
    plan = mosaic.plan(job).plan

    def run():
        return execute(plan, job.workload.calls, site.backend_in(site.world))

    result = benchmark(run)
    assert len(result.calls) == 6300
    if benchmark.enabled:
        start = time.process_time()
        for _ in range(5):
            run()
        print(f"\nMMLU-Pro, round robin: {5 * 6300 / (time.process_time() - start):,.0f} calls per CPU second")
