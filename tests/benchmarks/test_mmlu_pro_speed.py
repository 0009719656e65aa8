"""How fast the committed MMLU-Pro run is; ``pytest tests/benchmarks --benchmark-enable -s`` prints it."""

import time

import pytest

import mosaic
from mosaic.config.job import simulated_job
from mosaic.runtime.static_plan import execute


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
