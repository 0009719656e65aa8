"""A run on real vLLM: the one that is in the fast suite; test_vllm_backend.py has the others."""

import pytest

from mosaic.core.results import CallStatus
from tests.engines.executor_runs import has_vllm
from tests.engines.test_vllm_backend import host, shared

__all__ = ["host", "shared"]  # fixtures

pytestmark = pytest.mark.skipif(not has_vllm(), reason="vLLM is not installed")


def test_a_live_run_records_what_the_engine_did(shared):
    _, executor, result = shared
    assert all(record.response.token_ids == () for record in result.calls), "the journal alone keeps them"
    for record in executor.records.values():
        assert record.status is CallStatus.FINISHED
        assert record.prompt_tokens == len(f"User: question {record.key.question}\n\nAssistant:")
        assert record.output_tokens == len(record.response.token_ids) == record.visible_tokens
        reason = "length" if record.output_tokens == 48 and record.response.token_ids[-1] else "stop"
        assert record.response.finish_reason == reason
        session = result.sessions[record.session]
        assert session.start_ts <= record.queued_ts <= record.admitted_ts
        assert record.admitted_ts <= record.first_token_ts <= record.finished_ts <= session.end_ts
    reasons = {record.response.finish_reason for record in result.calls}
    assert reasons == {"length", "stop"}, "the model must end some responses by itself"
    assert len(set(executor.tokens.values())) == 48, "responses differ from call to call"
