"""What the core's values refuse: each message names the field, the rule and the value."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import nan

import pytest
from msgspec import structs

from mosaic.core.chat import Sampling
from mosaic.core.cluster import Cluster, Worker, uniform_cluster
from mosaic.core.engine_options import Device, EngineOptions, ModelLoading
from mosaic.core.plan import LengthPrediction, PredictedTimes, Session, unpriced_plan
from mosaic.core.workload import PROPOSE, CallKey, Question, SparseKv, Workload
from sim.world.lengths import ClippedLognormal, Empirical
from tests.factories import make_call, make_calls, make_expert, make_gpu, make_shape

CPU = ModelLoading(device=Device.CPU, dtype="float32")
KEY = CallKey("q0", PROPOSE, 0)
SESSION = Session(id=0, expert="A", workers=(0,))
ASKED = Question(id="q0", prompt_tokens=100)


def some_workers(ids: list[int]) -> Cluster:
    return Cluster(name="c", workers=[Worker(number, make_gpu()) for number in ids])  # type: ignore[arg-type]


gpu = partial(replace, make_gpu())
cluster = partial(uniform_cluster, name="c", gpu=make_gpu())
lognormal = partial(ClippedLognormal, **{"mean": 300, "sigma": 0.8, "clip_tokens": 4096})
prediction = partial(LengthPrediction, **{"mean": 100, "max": 200, "std": 10})
expert = partial(replace, make_expert())
question = partial(replace, ASKED)
call = partial(structs.replace, make_call())
plan = partial(replace, unpriced_plan([SESSION], num_workers=1))
workload = partial(Workload, **{"name": "w", "questions": (ASKED,), "calls": (make_call(),), "output_tokens": {KEY: 5}})


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (gpu, {"name": ""}, "gpu : name must be a non-empty string, got ''"),
        (gpu, {"memory_bytes": 0}, "gpu gpu: memory_bytes must be at least 1, got 0"),
        (gpu, {"memory_utilization_frac": 0}, "gpu gpu: memory_utilization_frac must be above 0, got 0"),
        (gpu, {"memory_utilization_frac": 1.01}, "gpu gpu: memory_utilization_frac must be at most 1, got 1.01"),
        *((cluster, {"num_workers": number}, "cluster c: num_workers must be ") for number in (0, 2.0)),
        (cluster, {"name": "", "num_workers": 1}, "cluster : name must be a non-empty string"),
        (some_workers, {"ids": []}, "cluster c: workers must be at least one worker, got 0"),
        (some_workers, {"ids": [0, 0]}, r"cluster c: worker ids must be 0 \.\. N-1 in order, got \[0, 0\]"),
        (some_workers, {"ids": [1, 2]}, r"cluster c: worker ids must be 0 \.\. N-1 in order, got \[1, 2\]"),
        (ModelLoading, {"device": "tpu"}, r"engine.device must be one of \['cpu', 'gpu'\], got 'tpu'"),
        (ModelLoading, {"dtype": ""}, "engine.dtype must be a non-empty string"),
        (ModelLoading, {"device": "cpu"}, "engine.dtype must be a type by its name on CPU, got 'auto'"),
        (ModelLoading, {"load_format": "gguf"}, r"engine.load_format must be one of \['auto', 'dummy'\], got 'gguf'"),
        # Running a checkpoint's own code needs a plain consent.
        (ModelLoading, {"trust_remote_code": "false"}, "trust_remote_code must be true or false, got 'false'"),
        (EngineOptions, {"order": "v2"}, r"order must be one of \['prefill_first', 'chunked', 'mixed'\], got 'v2'"),
        (EngineOptions, {"watermark_frac": -0.1}, "watermark_frac must be at least 0, got -0.1"),
        (EngineOptions, {"watermark_frac": 1.0}, "engine.watermark_frac must be below 1"),
        (EngineOptions, {"max_num_seqs": 0}, "engine.max_num_seqs must be at least 1"),
        (EngineOptions, {"block_size": 0}, "engine.block_size must be at least 1, got 0"),
        (EngineOptions, {"max_num_batched_tokens": 0}, "engine.max_num_batched_tokens must be at least 1"),
        (EngineOptions, {"kv_cache_tokens": 0}, "engine.kv_cache_tokens must be at least 1, got 0"),
        (EngineOptions, {"kv_cache_tokens": 15}, "engine.kv_cache_tokens must be at least 16, got 15"),
        (EngineOptions, {"kv_cache_tokens": 16, "kv_cache_memory_bytes": 1}, "kv_cache_tokens must be null where"),
        (EngineOptions, {"loading": CPU, "block_size": 16}, "block_size must be a multiple of 32 on CPU, got 16"),
        (EngineOptions, {"loading": CPU, "block_size": 32}, "kv_cache_memory_bytes must be a number of bytes"),
        (
            EngineOptions,
            {"order": "mixed", "max_num_batched_tokens": 8},
            "engine.max_num_batched_tokens must be at least max_num_seqs=256 when order is mixed, got 8",
        ),
        (Sampling, {"temperature": 2.1}, "temperature must be at most 2, got 2.1"),
        (Sampling, {"top_p": 0}, "top_p must be above 0, got 0"),
        (Sampling, {"top_k": -2}, "top_k must be at least -1, got -2"),
        (Sampling, {"repetition_penalty": 0}, "repetition_penalty must be above 0, got 0"),
        (Sampling, {"max_output_tokens": 0}, "max_output_tokens must be at least 1, got 0"),
        (Sampling, {"stop": [""]}, "stop must be a list of texts that are not empty, got ''"),
        (lognormal, {"mean": 0.5}, "mean must be at least 1, got 0.5"),
        (lognormal, {"mean": 4096}, "mean must be below clip_tokens=4096, got 4096"),
        (lognormal, {"sigma": 0}, "sigma must be above 0"),
        (lognormal, {"sigma": 5}, "sigma must be at most 4"),
        (Empirical, {"sample": ()}, r"sample must be non-empty, got \[\]"),
        (prediction, {"mean": 0}, "length prediction: mean must be above 0, got 0"),
        (prediction, {"max": 99}, "length prediction: max must be at least the mean 100, got 99"),
        (prediction, {"std": -1}, "length prediction: std must be at least 0, got -1"),
        (PredictedTimes, {"start_s": -1.0, "load_s": 0, "end_s": 0}, "predicted times: start_s must be at least 0"),
        (partial(replace, SESSION), {"workers": ()}, "session 0 of 'A': workers must be at least one worker"),
        (partial(replace, SESSION), {"workers": (1, 1)}, "session 0 of 'A': workers must be unique, got 1 twice"),
        (plan, {"sessions": (SESSION, SESSION)}, "session id must be unique, got 0 twice"),
        (plan, {"predicted": ()}, "one entry for each of 1 sessions, got 0"),
        (plan, {"lower_bound_s": -1.0}, "plan: lower_bound_s must be at least 0, got -1.0"),
        (make_shape, {"num_layers": 0}, "shape.num_layers must be at least 1, got 0"),
        (make_shape, {"num_query_heads": 12}, "shape.num_query_heads must be a multiple of num_kv_heads=8, got 12"),
        (
            make_shape,
            {"num_parameters": 10**9},
            "num_parameters must be above those of the embeddings and routed experts, 1050673",
        ),
        (SparseKv, {"policy": "none"}, r"expert.kv: policy must be one of \['flexicache'\], got 'none'"),
        (SparseKv, {"budget_pages": 0}, "expert.kv: budget_pages must be at least 1, got 0"),
        (SparseKv, {"rerank_every": 0}, "expert.kv: rerank_every must be at least 1, got 0"),
        (SparseKv, {"unstable_frac": -0.1}, "expert.kv: unstable_frac must be at least 0, got -0.1"),
        (SparseKv, {"unstable_frac": 1.1}, "expert.kv: unstable_frac must be at most 1, got 1.1"),
        (SparseKv, {"promoted_frac": 2}, "expert.kv: promoted_frac must be at most 1, got 2"),
        (expert, {"name": ""}, "expert : name must be a non-empty string, got ''"),
        (expert, {"shape": "big"}, "expert A: shape must be a ModelShape or null, got 'big'"),
        (expert, {"family": "agent"}, r"expert A: family must be one of \['reasoning', 'instruct'\], got 'agent'"),
        (expert, {"temperature": -0.1}, "expert A: temperature must be at least 0, got -0.1"),
        (expert, {"max_output_tokens": 0}, "expert A: max_output_tokens must be at least 1, got 0"),
        (expert, {"context_tokens": 1}, "expert A: context_tokens must be at least 2, got 1"),
        (expert, {"tp_degree": 0}, "expert A: tp_degree must be at least 1, got 0"),
        (expert, {"tp_degrees": 2}, "expert A: tp_degrees must be a list of whole numbers, got 2"),
        (expert, {"tp_degrees": [0]}, "expert A: tp_degrees must be at least 1, got 0"),
        (expert, {"max_replicas": 0}, "expert A: max_replicas must be at least 1, got 0"),
        (expert, {"kv": "flexicache"}, "expert A: kv must be a SparseKv, its settings or null, got 'flexicache'"),
        (question, {"id": " "}, "question  : id must be a non-empty string"),
        (question, {"prompt_tokens": 0}, "question q0: prompt_tokens must be at least 1, got 0"),
        (question, {"skills": "algebra"}, "question q0: skills must be a list of strings, got 'algebra'"),
        (call, {"prompt_tokens": 0}, "call q0/propose/0: prompt_tokens must be at least 1, got 0"),
        (call, {"ready_s": -1.0}, "call q0/propose/0: ready_s must be at least 0, got -1.0"),
        (workload, {"name": ""}, "workload : name must be a non-empty string"),
        (workload, {"questions": ()}, "workload w: questions must be at least one question, got 0"),
        (workload, {"calls": ()}, "workload w: calls must be at least one call, got 0"),
        (workload, {"questions": (ASKED,) * 2}, "workload w: question id must be unique, got 'q0' twice"),
        (workload, {"calls": make_calls({"A": 1}) * 2}, r"workload w: call key must be unique, got CallKey\("),
        (workload, {"calls": (make_call("q9"),)}, "workload w: call q9/propose/0 must name a question of the workload"),
        (workload, {"output_tokens": {KEY._replace(question="q9"): 5}}, "must be of the workload's calls, got q9"),
        (workload, {"output_tokens": {KEY: 0}}, "workload w: output_tokens of q0/propose/0 must be at least 1, got 0"),
        (workload, {"output_tokens": {KEY: nan}}, "output_tokens of q0/propose/0 must be a whole number, got nan"),
    ],
)
def test_bad_fields_are_refused(make: Callable[..., object], changes: dict[str, object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make(**changes)
