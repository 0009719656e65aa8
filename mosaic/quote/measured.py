"""How far the machine's seconds are from simulated ones: by the pilot's own sessions, or by what was validated."""

from collections import defaultdict
from collections.abc import Mapping

from mosaic.core.addition import add_in_order
from mosaic.core.cluster import Cluster
from mosaic.core.results import SessionRecord
from mosaic.planning.session_model import Request
from mosaic.quote.forecast import Simulator
from mosaic.runtime.pilot_stages import Pilot

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


def load_factor(pilot: Pilot, simulator: Simulator) -> float:
    """Say by how much the pilot's loads took longer than simulated ones; engines that were loaded already say nothing.

    1: nothing was loaded.
    """
    loaded = [session for session in _undisturbed(pilot) if session.load_s > 0]
    simulated_s = add_in_order(
        simulator.loads.load_s(simulator.experts[session.expert], len(session.workers)) for session in loaded
    )
    return add_in_order(session.load_s for session in loaded) / simulated_s if simulated_s else 1.0


def serve_factor(pilot: Pilot, simulator: Simulator, cluster: Cluster) -> float:
    """Say by how much the pilot's sessions served longer than simulated ones; 1: there were none."""
    requests = defaultdict[int, list[Request]](list)
    for record in pilot.records.values():
        requests[record.session].append(Request(record.prompt_tokens, record.output_tokens))
    served = [session for session in _undisturbed(pilot) if session.session in requests]
    simulated_s = add_in_order(
        simulator.serve_s(simulator.experts[session.expert], requests[session.session], cluster, len(session.workers))
        for session in served
    )
    return add_in_order(session.end_ts - session.start_ts for session in served) / simulated_s if simulated_s else 1.0


def _undisturbed(pilot: Pilot) -> list[SessionRecord]:
    return [session for session in pilot.sessions if session.num_calls and not session.num_interruptions]
