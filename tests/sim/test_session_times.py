"""The model of iterations that schedulers price with: a session of known lengths takes the time that it says."""

from mosaic.core.engine_options import EngineOptions
from mosaic.core.plan import Session, unpriced_plan
from mosaic.core.realization import Outcome
from mosaic.planning.problem import Request
from mosaic.runtime.static_plan import execute
from sim.cluster.backend import SimBackend
from sim.cluster.session_times import SimulatedSessions
from tests.factories import make_call, make_cluster, make_expert
from tests.sim.random_runs import committed_hardware


def test_a_session_takes_as_long_as_on_the_simulated_cluster() -> None:
    hardware = committed_hardware("a100_80gb")
    cluster = make_cluster(2, gpu=hardware.gpu)
    expert = make_expert("A", context_tokens=32768)
    requests = [Request(100 + 7 * i, 20 + 13 * (i * i % 101)) for i in range(60)]
    settings = EngineOptions(max_num_seqs=16)
    sessions = SimulatedSessions({hardware.gpu.name: hardware}, cluster, settings)
    seconds = sessions.serve_s(expert, requests, cluster.workers[:1])
    calls = [make_call(f"q{i}", expert="A", prompt_tokens=request.prompt_tokens) for i, request in enumerate(requests)]
    lengths = {call.key: request.output_tokens for call, request in zip(calls, requests, strict=True)}
    backend = SimBackend(
        experts=[expert], cluster=cluster, hardware={hardware.gpu.name: hardware}, settings=settings,
        outcomes=lambda call, inputs: Outcome(lengths[call.key]),
    )  # fmt: skip
    session = Session(id=0, expert="A", workers=(0,), shard=tuple(call.key for call in calls))
    result = execute(unpriced_plan([session], num_workers=2), calls, backend)
    last_ts = max(record.finished_ts or 0.0 for record in result.calls)
    assert abs(result.sessions[0].start_ts + seconds - last_ts) < 1e-6


def test_engines_that_keep_prefixes_are_stepped_without() -> None:
    hardware = committed_hardware("a100_80gb")
    cluster = make_cluster(1, gpu=hardware.gpu)
    requests = [Request(100, 20)] * 3
    served = [
        SimulatedSessions({hardware.gpu.name: hardware}, cluster, EngineOptions(enable_prefix_caching=is_kept)).serve_s(
            make_expert("A"), requests, cluster.workers
        )
        for is_kept in (True, False)
    ]  # in prefill-first order a simulated engine keeps none, and a real one that does has to be planned for
    assert served[0] == served[1]
