"""Requests to an engine, and the loop that a worker has around it."""

import time
from contextlib import contextmanager

from mosaic.engines.endpoint_engine import open_engine
from mosaic.engines.engine import EngineSpec, Request
from mosaic.engines.vllm_engines import VllmSettings


def make_request(number, **changes):
    changes = {"prompt": f"question {number}", "seed": 1000 + number, "temperature": 0.7} | changes
    return Request(key=number, **{"max_output_tokens": 4096, **changes})


def some_requests(count):
    return [make_request(number) for number in range(count)]


def make_spec(settings):
    return EngineSpec(
        expert="A", context_tokens=32768, num_workers=1, max_num_seqs=256, settings=settings, is_remote=True
    )


def make_vllm_settings(checkpoint, options, **changes):
    return VllmSettings(
        checkpoint=checkpoint, gpu_memory_utilization=0.9, kv_cache_memory_bytes=options.kv_cache_memory_bytes,
        options=options, **({"with_tokenizer": True} | changes),
    )  # fmt: skip


@contextmanager
def opened_engine(spec):
    """An endpoint's engine."""
    engine = open_engine(spec)
    try:
        yield engine
    finally:
        engine.close()


def serve(engine, requests, *, until=None, kept=None, limit_s=60):
    """Serve requests, or as many of them as ``until``; gives the responses by number, also in ``kept`` if it breaks."""
    responses = {} if kept is None else kept
    for request in requests:
        engine.submit(request)
    deadline = time.monotonic() + limit_s
    while len(responses) < (len(requests) if until is None else until):
        for response in engine.step():
            assert response.key not in responses, "told twice"
            responses[response.key] = response
        assert time.monotonic() < deadline, f"{len(responses)} of {len(requests)} ended"
    return responses
