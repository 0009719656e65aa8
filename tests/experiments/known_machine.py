"""A machine whose coefficients are known: the simulator in the place of engines, for what measures and fits them."""

from experiments.hardware.engine_fit import MeasuredShape, ShapeFit
from experiments.hardware.machine_config import fit_rounds, hardware_config
from experiments.hardware.sweep import SweepSize, measure_round
from mosaic.core.cluster import uniform_cluster
from mosaic.core.engine_options import EngineOptions, Order
from sim.cluster.backend import SimBackend
from sim.engine.engine import Engine
from sim.hardware.curves import Curve
from sim.hardware.hardware import hardware_from_config
from sim.hardware.iteration_time import iteration_time
from tests.factories import make_shape

SETTINGS = EngineOptions(
    order=Order.MIXED, max_num_seqs=16, max_num_batched_tokens=4096, block_size=32,
    kv_cache_tokens=65536, enable_prefix_caching=False,
)  # fmt: skip
SHAPE = make_shape(
    num_parameters=400_000, num_layers=2, hidden_size=128, ffn_size=256, num_query_heads=4, num_kv_heads=4,
    head_dim=32, vocab_size=448, bytes_per_value=4,
)  # fmt: skip
TRUE = ShapeFit(
    shape=SHAPE,
    tp_degree=1,
    context_tokens=512,
    base_s=1.5e-3,
    per_seq_s=5e-5,
    per_session_s=0.0,
    per_request_s=2e-4,
    per_prefill_s=1e-3,
    per_kv_token_s=3e-7,
    per_kv_token_beside_s=6e-7,
    per_token_pair_s=4e-8,
    dense=Curve((0.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 2048.0), (0.0, 1e-4, 2e-4, 5e-4, 3e-3, 1e-2, 2e-2)),
    mape={},
)


def built(config):
    return hardware_from_config(**{key: value for key, value in config.items() if key != "_target_"})


def machine(*fits, loads=(2.0, None), **more):
    return built(hardware_config(fits, loads, name="machine", memory_gib=8.0, source="a test", **more))


def replaying(hardware, experts, num_workers=2, settings=SETTINGS):
    """A machine whose true coefficients are known: the simulator in the place of engines."""
    cluster = uniform_cluster(name="machine", num_workers=num_workers, gpu=hardware.gpu)

    def make(outcomes, name):
        return SimBackend(
            experts=experts,
            cluster=cluster,
            hardware={hardware.gpu.name: hardware},
            settings=settings,
            outcomes=outcomes,
        )

    return cluster, make


def fit_machine(experts, cluster, make, *, size, by_cpu=False):
    """Measure rounds of each shape's sessions and fit the machine to them."""
    rounds = [
        MeasuredShape(
            expert,
            SETTINGS,
            [
                measure_round(expert, cluster, make, SETTINGS, size, number, f"sweep-{place}-{number}", by_cpu=by_cpu)
                for number in range(size.num_rounds)
            ],
        )
        for place, expert in enumerate(experts)
    ]
    return fit_rounds(rounds, name="again", memory_gib=8.0, source="a test")


def fit(hardware, experts, *, size=None, by_cpu=False):
    cluster, make = replaying(hardware, experts)
    return fit_machine(experts, cluster, make, size=size or SweepSize(), by_cpu=by_cpu)


def session_s(hardware, shape, requests, *, settings=SETTINGS, context_tokens=512):
    engine = Engine(
        iteration_time=iteration_time(hardware, shape, 1), settings=settings, kv_tokens=settings.kv_cache_tokens,
        context_tokens=context_tokens,
    )  # fmt: skip
    for number, (prompt, output) in enumerate(requests):
        engine.submit(number, prompt, output, 0.0)
    return max(request.finished_ts for request in engine.advance_to(float("inf")))
