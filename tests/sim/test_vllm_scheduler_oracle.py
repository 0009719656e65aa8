"""The mixed order against vLLM's own scheduler and KV cache manager, step by step, no model: outputs are made up.

``SCHEDULER_ORACLE_SESSIONS=5000 pytest tests/sim/test_vllm_scheduler_oracle.py`` for a longer run.
"""

import json
import os
import random
from collections import Counter, defaultdict
from itertools import count
from math import inf

import pytest

from mosaic.core.engine_options import EngineOptions, Order
from mosaic.core.workload import Prefix
from sim.engine.engine import Engine
from tests.sim.oracle import LinearTime

pytest.importorskip("vllm", exc_type=ImportError)
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

NUM_SESSIONS = int(os.environ.get("SCHEDULER_ORACLE_SESSIONS", "200"))
BLOCK_SIZE = 16
CONTEXT = 4096
# Every iteration takes a second, so that an instant is the number of a step.
ONE_SECOND = LinearTime(base_s=1.0, per_seq_s=0.0, per_kv_token_s=0.0, per_prefill_token_s=0.0, per_prefill_pair_s=0.0)
FIELDS = (
    "admitted_ts", "first_token_ts", "finished_ts", "num_generated",
    "num_preemptions", "cached_tokens", "wasted_tokens",
)  # fmt: skip


@pytest.fixture(scope="module")
def new_scheduler(tmp_path_factory):
    """Makes vLLM's scheduler for settings and a number of KV blocks."""
    import torch
    from vllm.config import CacheConfig, DeviceConfig, ModelConfig, ParallelConfig, SchedulerConfig, VllmConfig
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import init_none_hash
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    init_none_hash(sha256)
    folder = tmp_path_factory.mktemp("model")
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1}
    names = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": CONTEXT}
    (folder / "config.json").write_text(json.dumps({**names, **sizes}))
    model = ModelConfig(model=str(folder), skip_tokenizer_init=True, dtype="float32", max_model_len=CONTEXT)
    spec = FullAttentionSpec(block_size=BLOCK_SIZE, num_kv_heads=1, head_size=1, dtype=torch.float32)

    def make(settings, num_blocks):
        cache = CacheConfig(block_size=BLOCK_SIZE, enable_prefix_caching=settings.caches_prefixes)
        # One block is vLLM's own: the null block.
        cache.num_gpu_blocks = num_blocks + 1
        config = VllmConfig(
            model_config=model,
            cache_config=cache,
            parallel_config=ParallelConfig(),
            device_config=DeviceConfig("cpu"),
            scheduler_config=SchedulerConfig(
                max_num_seqs=settings.max_num_seqs,
                max_num_batched_tokens=settings.batched_tokens(CONTEXT),
                max_model_len=CONTEXT,
                is_encoder_decoder=False,
                async_scheduling=False,
                scheduler_reserve_full_isl=settings.scheduler_reserve_full_isl,
            ),
        )
        groups = [KVCacheGroupSpec(["layer"], spec)]
        blocks = KVCacheConfig(num_blocks=num_blocks + 1, kv_cache_tensors=[], kv_cache_groups=groups)
        return Scheduler(
            vllm_config=config,
            kv_cache_config=blocks,
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK_SIZE,
        )

    return make


def draw_session(seed):
    """Settings, blocks and requests (prompt, output, arrival, prefix), from none to extreme pressure."""
    rng = random.Random(seed)
    longest_prompt, longest_output = rng.choice([(40, 60), (150, 40), (30, 200), (250, 120)])
    max_num_seqs = rng.choice([2, 5, 12, 40])
    settings = EngineOptions(
        order=Order.MIXED,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=rng.choice([max(48, max_num_seqs), 96, 300]),
        block_size=BLOCK_SIZE,
        enable_prefix_caching=rng.random() < 0.85,
        scheduler_reserve_full_isl=rng.random() < 0.85,
    )
    gap = rng.choice([0, 0, 3, 25])
    branches = rng.choice([0, 0, 1, 2])
    block_tokens = rng.choice([4, 16, 16, 20, 64])
    requests = []
    for number in range(rng.randint(8, 36)):
        prompt = rng.randint(1, longest_prompt)
        prefix = None
        if branches and rng.random() < 0.8:
            # Whole prompts repeat as well as beginnings, and block boundaries are met exactly.
            num_blocks = -(
                -rng.choice([prompt, min(prompt, 16 * rng.randint(1, 8)), rng.randint(1, prompt)]) // block_tokens
            )
            way = [rng.randrange(branches) * (rng.random() < 0.2) for _ in range(num_blocks)]
            prefix = Prefix(tuple(tuple(way[: i + 1]) for i in range(num_blocks)), block_tokens)
        arrival = rng.randint(0, gap * number)
        requests.append((prompt, rng.randint(1, longest_output), arrival, prefix))
    requests.sort(key=lambda request: request[2])
    largest = max(-(-(prompt + output - 1) // BLOCK_SIZE) for prompt, output, *_ in requests)
    num_blocks = int(largest * rng.choice([1, 1.3, 2, 4, 40])) + rng.randint(0, 5)
    return settings, num_blocks, requests


def run_vllm(scheduler, requests):
    """Drive the scheduler; return what it did to each request, in the fields of a simulated one."""
    from vllm import SamplingParams
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.request import Request

    fresh = count()
    shared_tokens = defaultdict(lambda: next(fresh))
    hasher = get_request_block_hasher(BLOCK_SIZE, sha256)
    lives = [dict.fromkeys(FIELDS[:3]) | dict.fromkeys(FIELDS[3:], 0) for _ in requests]
    living, step, to_come = {}, 0, 0
    while living or to_come < len(requests):
        if not living:
            step = max(step, requests[to_come][2])
        while to_come < len(requests) and requests[to_come][2] <= step:
            prompt, output, _, prefix = requests[to_come]
            named = (
                []
                if prefix is None
                else [(name, place) for name in prefix.blocks for place in range(prefix.block_tokens)]
            )
            tokens = [shared_tokens[name] for name in named[:prompt]]
            tokens += [next(fresh) for _ in range(prompt - len(tokens))]
            sampling = SamplingParams(max_tokens=output, ignore_eos=True)
            request = Request(str(to_come), tokens, sampling, None, block_hasher=hasher)
            living[request.request_id] = request
            scheduler.add_request(request)
            to_come += 1
        computed = {name: request.num_computed_tokens for name, request in living.items()}
        scheduled = scheduler.schedule()
        for name in scheduled.preempted_req_ids or ():
            lives[int(name)]["num_preemptions"] += 1
            lives[int(name)]["wasted_tokens"] += computed[name]
        for admitted in scheduled.scheduled_new_reqs:
            life = lives[int(admitted.req_id)]
            life["admitted_ts"], life["cached_tokens"] = step, admitted.num_computed_tokens
        old = scheduled.scheduled_cached_reqs
        for name, num_computed in zip(old.req_ids, old.num_computed_tokens, strict=True):
            if name in old.resumed_req_ids:
                lives[int(name)]["wasted_tokens"] -= num_computed
        step += 1
        names = list(scheduled.num_scheduled_tokens)
        is_done = [living[name].num_computed_tokens >= living[name].num_tokens for name in names]
        outputs = [[next(fresh)] if done else [] for done in is_done]
        scheduler.update_from_output(
            scheduled,
            ModelRunnerOutput(
                req_ids=names, req_id_to_index={name: i for i, name in enumerate(names)}, sampled_token_ids=outputs
            ),
        )
        for name, output in zip(names, outputs, strict=True):
            life = lives[int(name)]
            life["num_generated"] += len(output)
            if output and life["first_token_ts"] is None:
                life["first_token_ts"] = step
            if living[name].is_finished():
                life["finished_ts"] = step
                del living[name]
    return lives


def run_engine(settings, num_blocks, requests):
    engine = Engine(
        iteration_time=ONE_SECOND, settings=settings, kv_tokens=num_blocks * BLOCK_SIZE, context_tokens=CONTEXT
    )
    submitted = [
        engine.submit(number, prompt, output, float(arrival), prefix=prefix)
        for number, (prompt, output, arrival, prefix) in enumerate(requests)
    ]
    engine.advance_to(inf)
    return [{field: getattr(request, field) for field in FIELDS} for request in submitted]


def test_admissions_preemptions_and_cached_tokens_are_vllms(new_scheduler):
    seen = Counter()
    for seed in range(NUM_SESSIONS):
        settings, num_blocks, requests = draw_session(seed)
        theirs = run_vllm(new_scheduler(settings, num_blocks), requests)
        ours = run_engine(settings, num_blocks, requests)
        for number, (mine, real) in enumerate(zip(ours, theirs, strict=True)):
            assert mine == real, (seed, number, requests[number], settings, num_blocks)
        seen["sessions"] += 1
        seen["preemptions"] += sum(life["num_preemptions"] for life in theirs)
        seen["cached"] += sum(life["cached_tokens"] for life in theirs)
        seen["recomputed"] += sum(life["wasted_tokens"] for life in theirs)
        seen["tight"] += any(life["num_preemptions"] for life in theirs)
    print(dict(seen))
    # Sessions under pressure and sessions without it, and prefixes that others find.
    assert NUM_SESSIONS / 5 < seen["tight"] < NUM_SESSIONS * 0.9
    assert seen["preemptions"] > 4 * NUM_SESSIONS
    assert min(seen["cached"], seen["recomputed"]) > 100 * NUM_SESSIONS
