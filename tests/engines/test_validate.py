"""Real vLLM against the simulator: the same iterations hold the same calls, whatever they take."""

import json

import pytest

import experiments.validate as validate
from tests.engines.executor_runs import has_vllm
from tests.engines.validation_runs import small_validation

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.skipif(not has_vllm(), reason="vLLM is not installed")]


def test_calls_finish_in_the_order_that_the_simulator_predicts(tmp_path):
    validate.main(small_validation(tmp_path))
    plans = json.loads((tmp_path / "out" / "validation.json").read_text())["plans"]
    sessions = [session for plan in plans for session in plan["sessions"]]
    assert [session["num_calls"] for session in sessions] == [12] * 3 + [6] * 6
    assert all(session["order_tau"] > 0.95 for session in sessions)
    assert all(session["repeat_tau"] > 0.95 for session in sessions)
    assert all(frac > 0 for plan in plans for frac in plan["cpu_frac"])
