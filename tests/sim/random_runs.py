"""Random clusters, calls and plans, and the iteration times of the committed hardware."""

from collections import defaultdict
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import pytest
import yaml
from hypothesis import strategies as st

from mosaic.core.engine_options import EngineOptions, Order
from mosaic.core.workload import Prefix
from sim.hardware.hardware import hardware_from_config
from sim.hardware.iteration_time import iteration_time
from tests.factories import make_call, make_cluster, make_expert, make_plan, make_session, make_shape
from tests.sim.cluster_runs import LinearHardware, by_key, make_backend
from tests.sim.oracle import LinearTime

CONF = Path(__file__).resolve().parents[2] / "conf" / "hardware"
seconds = st.floats(0.0, 0.001)
PREFIXES = (None, Prefix(("a",), 128), Prefix(("a", "b"), 128), Prefix(("c",), 500))


@st.composite
def iteration_times(draw):
    return LinearTime(
        base_s=draw(st.floats(0.001, 0.05)),
        per_seq_s=draw(seconds),
        per_kv_token_s=draw(st.floats(0.0, 1e-5)),
        per_prefill_token_s=draw(seconds),
        per_prefill_pair_s=draw(st.floats(0.0, 1e-6)),
    )


@st.composite
def runs(draw, times=None, num_spare=0, kv=None):
    """A maker of backends with a pool, calls with lengths and arrivals, and any plan that serves each call once.

    The plan leaves some workers of the cluster alone: the spare ones, behind its own.
    """
    num_workers = draw(st.integers(1, 4))
    engine_settings = EngineOptions(
        order=draw(st.sampled_from(list(Order))),
        max_num_seqs=draw(st.sampled_from([1, 3, 20])),
        kv_cache_tokens=1500 if kv is None else 1700,
    )
    if kv is not None:
        engine_settings = replace(engine_settings, enable_prefix_caching=False)
    experts, sessions, lengths, calls = [], [], {}, []
    for name in "ABC"[: draw(st.integers(1, 3))]:
        tp_degree = draw(st.integers(1, min(2, num_workers)))
        experts.append(make_expert(name, tp_degree=tp_degree, max_output_tokens=900, max_replicas=1, kv=kv))
        for _ in range(draw(st.integers(1, 2))):
            start = draw(st.integers(0, num_workers - tp_degree))
            shard = []
            for _ in range(draw(st.integers(1, 30))):
                call = make_call(
                    f"q{len(calls)}",
                    expert=name,
                    prompt_tokens=draw(st.integers(1, 500)),
                    ready_s=draw(st.sampled_from([0.0, 0.0, 3.0, 40.0])),
                    prefix=draw(st.sampled_from(PREFIXES)),
                )
                lengths[call.key] = draw(st.sampled_from([1, 2, 40, 300, 900]))
                calls.append(call)
                shard.append(call)
            sessions.append(make_session(len(sessions), shard, workers=range(start, start + tp_degree)))
    make = partial(
        make_backend,
        by_key(defaultdict(lambda: 40, lengths)),
        experts=experts,
        cluster=make_cluster(num_workers + num_spare),
        settings=engine_settings,
        hardware=LinearHardware(draw(st.floats(0.0, 10.0)), draw(iteration_times() if times is None else times)),
    )
    order = draw(st.permutations(sessions))
    return make, make_plan(*order, num_workers=num_workers), calls


@cache
def committed_hardware(stem):
    config = yaml.safe_load((CONF / f"{stem}.yaml").read_text(encoding="utf-8"))
    config.pop("_target_")
    return hardware_from_config(**config)


def committed_time(stem, shape, tp_degree):
    """The iteration time of a model on a kind of GPU in conf/hardware."""
    return iteration_time(committed_hardware(stem), shape, tp_degree)


def committed_times():
    """Llama-3-8B on every kind of GPU in conf/hardware, at tensor-parallel 1 and, where measured, 4."""
    params = []
    for path in sorted(CONF.glob("*.yaml")):
        hardware = committed_hardware(path.stem)
        known = {table.tp_degree for table in hardware.tables} if hardware.tables else {1, *hardware.all_reduce}
        for degree in sorted(known & {1, 4}):
            name = f"{path.stem} x {degree}"
            params.append(pytest.param(name, iteration_time(hardware, make_shape(), degree), id=name))
    return params
