"""How far the machine's seconds are from simulated ones: by the pilot's own sessions, or by what was validated."""

from collections.abc import Mapping

from mosaic.core.cluster import Cluster
from mosaic.planning.session_model import Request
from mosaic.quote.asking import Asked
from mosaic.quote.forecast import Factors, Simulator

VALIDATED: Mapping[str, tuple[float, str]] = {
    "cpu_core": (0.082, "results/validation: makespans of three plans on real vLLM, off by 11.0%, 3.6% and 8.3%"),
    "a100_80gb": (0.062, "results/paper: published walls of six expert stages, off by 0.1% to 14.1%"),
}
"""Root mean square of the errors of simulated makespans, by kind."""
NOT_VALIDATED = (0.15, "never compared with a real run: 15% is assumed")
REPEATS = (0.087, "results/validation: a repeat of the same plan differs by 8.7%; scaled by the pilot's own sessions")
"""What is left where the pilot ran on the same machine: its sessions say how fast that is."""


def hardware_error(kind: str, *, is_simulated: bool, is_measured: bool) -> tuple[float, str]:
    """Give the standard deviation of the logarithm of real over simulated seconds, with its source.

    Parameters
    ----------
    kind
        Of GPU.
    is_simulated
        The batch itself is simulated, so that the simulator is right.
    is_measured
        The pilot ran on this kind.
    """
    if is_simulated:
        return 0.0, "the batch is simulated on it, so nothing of it is unknown"
    return REPEATS if is_measured else VALIDATED.get(kind, NOT_VALIDATED)


def factors_of(asked: Asked, simulator: Simulator, cluster: Cluster) -> Factors:
    """Say by how much the pilot's sessions took longer than simulated ones, loads and serving apart.

    Sessions that were interrupted, and engines that were loaded already, say nothing.
    """
    requests: dict[int, list[Request]] = {}
    for record in asked.result.calls:
        requests.setdefault(record.session, []).append(Request(record.prompt_tokens, record.output_tokens))
    serve_s, load_s = [0.0, 0.0], [0.0, 0.0]
    for session in asked.result.sessions:
        if session.num_interruptions or session.session not in requests:
            continue
        expert, degree = simulator.experts[session.expert], len(session.workers)
        serve_s[0] += session.end_ts - session.start_ts
        serve_s[1] += simulator.serve_s(expert, requests[session.session], cluster, degree)
        if session.load_s > 0:
            load_s[0] += session.load_s
            load_s[1] += simulator.loads.load_s(expert, degree)
    return Factors(
        load=load_s[0] / load_s[1] if load_s[1] else 1.0, serve=serve_s[0] / serve_s[1] if serve_s[1] else 1.0
    )
