"""How fast the committed MMLU-Pro run is; ``pytest tests/benchmarks --benchmark-enable -s`` prints it."""

import time

from experiments.config.wiring import compose_config, setup_from
from mosaic.runtime.run import make_problem


def test_mmlu_pro_round_robin(benchmark):
    """SimBackend.execute with everything: the world's draws, the engine, the records, the lower bound."""
    setup = setup_from(compose_config(["scheduler=round_robin"]))
    problem = make_problem(
        setup.workload, experts=setup.experts, cluster=setup.cluster, profile=setup.profile(), costs=setup.costs
    )
    plan = setup.scheduler.plan(problem)
    backend = setup.backend(setup.world())
    result = benchmark(backend.execute, plan, setup.workload.calls)
    assert len(result.calls) == 6300
    if benchmark.enabled:
        start = time.process_time()
        for _ in range(5):
            backend.execute(plan, setup.workload.calls)
        print(f"\nMMLU-Pro, round robin: {5 * 6300 / (time.process_time() - start):,.0f} calls per CPU second")
