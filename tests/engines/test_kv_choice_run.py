"""KV caches chosen by session, on real engines: what a plan chose is what its engine is loaded with."""

from dataclasses import replace

import pytest

from mosaic.core.errors import BackendError
from mosaic.core.sparse_kv import SparseKv
from mosaic.engines.call_specs import is_of_same_engine
from mosaic.engines.host_process import VLLM_ENGINE, HostProcess
from mosaic.engines.vllm_engines import VllmEngines
from tests.engines.executor_runs import (
    FAKE_ENGINE,
    OPTIONS,
    Runs,
    has_vllm,
    make_checkpoint,
    make_plan,
    make_session,
    running_host,
    some_calls,
)
from tests.engines.tiny_checkpoint import tiny_expert
from tests.factories import make_cluster

COST = {"accuracy_cost_frac": 0.01, "low_frac": 0.0, "high_frac": 0.05}
UNCACHED = replace(OPTIONS, enable_prefix_caching=False)
CALLS = some_calls("A", 6)


def choosing_runs(folder, host: HostProcess, journal: str, **changes) -> Runs:
    """An expert that may read 32 tokens, on two workers."""
    expert = replace(tiny_expert("A", make_checkpoint(folder, "A")), kv_variants={32: COST})
    return Runs(folder, host, experts=[expert], options=UNCACHED, journal=folder / journal, **changes)


def sparse_session(*calls, number=0, workers=(0,)):
    return replace(make_session(number, list(calls), workers=workers), kv_budget_tokens=32)


def test_the_chosen_cache_is_in_what_the_engine_is_told(tmp_path):
    expert = replace(tiny_expert("A", make_checkpoint(tmp_path, "A")), kv_variants={32: COST})
    engines, workers = VllmEngines(options=UNCACHED, with_tokenizer=False), make_cluster(1).workers
    full, sparse = (engines.spec(expert.with_kv_budget(budget), workers).settings for budget in (None, 32))
    assert (full.kv, full.unstable) == (None, None)
    assert sparse.kv == SparseKv(budget_pages=2)
    assert sparse.unstable is not None
    assert engines.served(expert).decides != engines.served(expert.with_kv_budget(32)).decides


def test_a_change_of_cache_loads_anew_and_responses_are_of_another_engine(tmp_path):
    with running_host(FAKE_ENGINE) as host:
        runs = choosing_runs(tmp_path, host, "journal")
        plan = make_plan(
            make_session(0, CALLS[:2]), sparse_session(*CALLS[2:4], number=1), sparse_session(*CALLS[4:], number=2)
        )
        result = runs.execute(plan, CALLS)
        assert [session.load_s > 0 for session in result.sessions] == [True, True, False]
        prints = [runs.records[call.key].response.fingerprint for call in CALLS]
        assert is_of_same_engine(prints[2], prints[5])
        assert not is_of_same_engine(prints[0], prints[2])
        again = choosing_runs(tmp_path, host, "journal").execute(make_plan(sparse_session(*CALLS)), CALLS)
        assert sum(session.num_calls for session in again.sessions) == 6
        redone = [record for record in again.calls if record.key in {call.key for call in CALLS[:2]}]
        assert all(is_of_same_engine(record.response.fingerprint, prints[2]) for record in redone)


def test_a_cache_that_the_expert_does_not_have_is_refused(tmp_path):
    plan = make_plan(replace(sparse_session(*CALLS), kv_budget_tokens=64))
    with running_host(FAKE_ENGINE) as host:
        runs = choosing_runs(tmp_path, host, "journal")
        with pytest.raises(BackendError, match="must be one of its kv_variants"):
            runs.execute(plan, CALLS)


@pytest.mark.slow
@pytest.mark.skipif(not has_vllm(), reason="vLLM is not installed")
def test_real_vllm_reads_with_the_cache_that_each_session_chose(tmp_path):
    def prompts(call, inputs):
        start = int(call.key.question[1:])
        return tuple(1 + (7 * start + 13 * i * i) % 255 for i in range(100))

    with running_host(VLLM_ENGINE) as host:
        full = choosing_runs(tmp_path, host, "full", prompts=prompts)
        full.execute(make_plan(make_session(0, CALLS)), CALLS)
        mixed = choosing_runs(tmp_path, host, "mixed", prompts=prompts)
        mixed.execute(make_plan(make_session(0, CALLS[:3]), sparse_session(*CALLS[3:], number=1, workers=(1,))), CALLS)
    same = [mixed.tokens[call.key] == full.tokens[call.key] for call in CALLS]
    assert same[:3] == [True] * 3
    assert not any(same[3:]), "two pages of seven were read"
