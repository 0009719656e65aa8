"""Describes how far the times of a simulated run can be trusted, and what was extrapolated, by kind of GPU."""

from collections.abc import Mapping, Sequence

from mosaic.core.cluster import Cluster
from mosaic.core.results import RunResult, SessionRecord
from mosaic.core.workload import Expert
from sim.hardware.hardware import Hardware


def evidence_lines(
    result: RunResult,
    cluster: Cluster,
    hardware_by_gpu: Mapping[str, Hardware],
    experts: Sequence[Expert],
    max_num_seqs: int,
) -> list[str]:
    """Write a line for each kind of GPU that had a session, with what was extrapolated there.

    A batch counts as large as the calls of its session allow, spread over its ranks; a sequence counts as its prompt
    and response together.
    """
    pool = {expert.name: expert for expert in experts}
    most_tokens = dict.fromkeys((session.session for session in result.sessions), 0)
    for call in result.calls:
        tokens = call.prompt_tokens + call.output_tokens
        if tokens > most_tokens.get(call.session, tokens):
            most_tokens[call.session] = tokens
    sessions_by_gpu: dict[str, list[SessionRecord]] = {}
    for session in result.sessions:
        worker, *_ = cluster.select(session.workers)
        sessions_by_gpu.setdefault(worker.gpu.name, []).append(session)
    lines = []
    for gpu, sessions in sessions_by_gpu.items():
        hardware = hardware_by_gpu[gpu]
        beyond: dict[str, tuple[int, int]] = {}
        for session in sessions:
            expert, num_workers = pool[session.expert], len(session.workers)
            degree = expert.attention_degree(num_workers)
            known = hardware.table_for(expert.known_shape, degree).measured
            if known is None:
                continue
            num_calls = -(-session.num_calls // (num_workers // degree))
            reached = {
                "batch": (min(num_calls, max_num_seqs), known.seqs),
                "context": (most_tokens[session.session], known.tokens),
            }
            for axis, (value, limit) in reached.items():
                if value > max(limit, beyond.get(axis, (0, 0))[0]):
                    beyond[axis] = value, limit
        text = f"{gpu}: {hardware.evidence or 'no evidence'}"
        far = ", ".join(f"{axis} {value:,} > {limit:,}" for axis, (value, limit) in beyond.items())
        lines.append(f"{text}; extrapolated: {far}" if far else text)
    return lines
