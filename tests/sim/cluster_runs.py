"""Small simulated clusters: experts with linear iteration times, plans written by hand or drawn."""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from mosaic.core.cluster import Cluster, Gpu
from mosaic.core.engine_options import EngineOptions
from mosaic.core.plan import Plan
from mosaic.core.realization import Outcome
from mosaic.core.results import Inputs
from mosaic.core.workload import Call, CallKey, Expert, ModelShape
from sim.cluster.backend import SimBackend
from sim.cluster.expert_on_gpu import GpuUse
from sim.hardware.hardware import Host
from tests.factories import make_call, make_cluster, make_expert, make_gpu, make_plan, make_session, make_shape
from tests.sim.oracle import LinearTime


@dataclass(frozen=True)
class LinearHardware:
    """Loads in constant time, steps in linear time."""

    load: float = 10.0
    time: LinearTime = field(default_factory=LinearTime)
    unload_s: float = 0.0
    host_link_bytes_per_s: float = 1e9
    host: Host | None = None
    gpu: Gpu = field(default_factory=make_gpu)

    def load_s(self, shape: ModelShape, tp_degree: int) -> float:
        return self.load / tp_degree


def linear_times(hardware, shape, tp_degree):
    return hardware.time


def by_key(lengths: Mapping[CallKey, int] | int):
    """Outcomes from a table, or the same length for all; the answer is the question's name."""
    return lambda call, inputs: Outcome(
        lengths if isinstance(lengths, int) else lengths[call.key], answer=f"answer {call.key.question}"
    )


def make_backend(
    outcomes,
    *,
    experts: Sequence[Expert] | None = None,
    cluster: Cluster | None = None,
    settings: EngineOptions | None = None,
    hardware: LinearHardware | None = None,
    earlier: Inputs | None = None,
    use: GpuUse | None = None,
    iteration_times: Callable[..., LinearTime] = linear_times,
) -> SimBackend:
    cluster = cluster or make_cluster(2)
    return SimBackend(
        experts=experts or [make_expert("A"), make_expert("B"), make_expert("T", tp_degree=2)],
        hardware={worker.gpu.name: hardware or LinearHardware() for worker in cluster.workers},
        cluster=cluster,
        outcomes=outcomes,
        settings=settings or EngineOptions(),
        iteration_times=iteration_times,
        earlier=earlier,
        use=use,
    )


HYBRID_POOL = {  # calls, mean length, sigma, cap, layers (set KV bytes per token), context; as on MMLU-Pro
    "Gemma": (1632, 291, 0.8, 4096, 42, 16, 8, 256, 8192),
    "QwenR1": (1428, 3734, 1.05, 32768, 28, 28, 4, 128, 32768),
    "Qwen": (956, 364, 0.8, 4096, 28, 28, 4, 128, 32768),
    "LlamaR1": (1070, 3146, 1.05, 32768, 32, 32, 8, 128, 32768),
    "Exaone": (547, 456, 0.8, 4096, 32, 32, 8, 128, 32768),
    "GLM": (667, 400, 0.8, 4096, 40, 32, 2, 128, 32768),
}


def round_robin_run() -> tuple[Callable[[], SimBackend], Plan, list[Call], dict[CallKey, Outcome]]:
    """Round robin of 6,300 calls on four workers, shaped like MMLU-Pro's: two reasoning experts, one KV-bound.

    Gives what makes a backend, which serves one run, the plan, its calls and what comes of them.
    """
    rng = random.Random(0)
    experts, calls, lengths, sessions = [], [], {}, []
    for number, (name, row) in enumerate(HYBRID_POOL.items()):
        num_calls, mean, sigma, cap, layers, heads, kv_heads, head_dim, context = row
        shape = make_shape(num_layers=layers, num_query_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim)
        experts.append(make_expert(name, shape=shape, max_output_tokens=cap, context_tokens=context))
        mine = [make_call(f"{name}{i}", expert=name, prompt_tokens=rng.randint(150, 350)) for i in range(num_calls)]
        for call in mine:
            lengths[call.key] = Outcome(max(1, int(rng.lognormvariate(math.log(mean) - sigma**2 / 2, sigma))))
        calls += mine
        sessions.append(make_session(number, mine, workers=(number % 4,)))
    cluster = make_cluster(4)
    fresh = lambda: make_backend(lambda call, inputs: lengths[call.key], experts=experts, cluster=cluster)  # noqa: E731
    return fresh, make_plan(*sessions, num_workers=4), calls, lengths
