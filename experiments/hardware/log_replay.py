"""Replay of a recorded request log through one simulated engine."""

from math import inf

from mosaic.core.engine_options import EngineOptions
from mosaic.core.results import CallRecord
from mosaic.core.workload import Workload
from sim.engine.engine import Engine
from sim.hardware.iteration_time import IterationTime


def replay(
    workload: Workload,
    *,
    iteration_time: IterationTime,
    settings: EngineOptions,
    kv_tokens: int,
    context_tokens: int,
) -> tuple[CallRecord, ...]:
    """Serve a workload with arrivals and true lengths by one engine that is already loaded.

    Raises
    ------
    ValueError
        If the workload has no true lengths, or a request can never fit.
    """
    lengths = workload.output_tokens
    if lengths is None:
        raise ValueError(f"workload {workload.name}: output_tokens must be given for a replay, got None")
    engine = Engine(
        iteration_time=iteration_time, settings=settings, kv_tokens=kv_tokens, context_tokens=context_tokens
    )
    requests = []
    for index, call in enumerate(workload.calls):
        try:
            requests.append(engine.submit(index, call.prompt_tokens, lengths[call.key], call.ready_s))
        except ValueError as error:
            raise ValueError(f"call {call.key}: {error}") from error
    engine.advance_to(inf)
    return tuple(
        CallRecord(
            key=call.key,
            expert=call.expert,
            session=0,
            workers=(0,),
            prompt_tokens=call.prompt_tokens,
            output_tokens=request.output_tokens,
            queued_ts=request.queued_ts,
            admitted_ts=request.admitted_ts,
            first_token_ts=request.first_token_ts,
            finished_ts=request.finished_ts,
            num_preemptions=request.num_preemptions,
            wasted_tokens=request.wasted_tokens,
            cached_tokens=request.cached_tokens,
        )
        for call, request in zip(workload.calls, requests, strict=True)
    )
