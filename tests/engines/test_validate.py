"""Real vLLM against the simulator: the same iterations hold the same calls, whatever they take."""

import json
from dataclasses import replace

import pytest

import experiments.validate as validate
from experiments.hardware.engine_sweep import fit_machine, mirrored_settings
from experiments.hardware.sweep_sessions import SweepSize
from mosaic.engines.host_process import VLLM_ENGINE
from sim.hardware.hardware import hardware_from_config
from sim.hardware.iteration_time import iteration_time
from tests.engines.executor_runs import OPTIONS, Runs, has_vllm, make_checkpoint, running_host
from tests.engines.tiny_checkpoint import tiny_expert
from tests.engines.validation_runs import small_validation
from tests.factories import make_cluster

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.skipif(not has_vllm(), reason="vLLM is not installed")]


def test_calls_finish_in_the_order_that_the_simulator_predicts(tmp_path):
    validate.main(small_validation(tmp_path))
    plans = json.loads((tmp_path / "out" / "validation.json").read_text())["plans"]
    sessions = [session for plan in plans for session in plan["sessions"]]
    assert [session["num_calls"] for session in sessions] == [12] * 3 + [6] * 6
    assert all(session["order_tau"] > 0.95 for session in sessions)
    assert all(session["repeat_tau"] > 0.95 for session in sessions)
    assert all(frac > 0 for plan in plans for frac in plan["cpu_frac"])


def test_a_machine_is_fitted_from_sessions_on_it(tmp_path):
    experts = [replace(tiny_expert(name, make_checkpoint(tmp_path, name)), max_output_tokens=400) for name in "AB"]
    with running_host(VLLM_ENGINE) as host:

        def make(outcomes, name):
            return Runs(tmp_path, host, experts=experts, journal=tmp_path / name, outcomes=outcomes).backend()

        config = fit_machine(
            experts,
            make_cluster(2),
            make,
            settings=mirrored_settings(OPTIONS, experts),
            name="here",
            memory_gib=8.0,
            source="a test",
            by_cpu=True,
            size=SweepSize(num_rounds=1, decode_steps=16),
        )
    hardware = hardware_from_config(**{key: value for key, value in config.items() if key != "_target_"})
    (table,) = hardware.tables
    time = iteration_time(hardware, experts[0].shape, 1)
    assert hardware.load_s(experts[0].shape, 1) > 0
    assert 0 < time.decode_span_s(1, 100, 10) <= time.decode_span_s(8, 800, 10)
    assert time.mixed_s([(256, 0)], 0, 0) > time.mixed_s([(16, 0)], 0, 0)
    assert set(table.mape) == {"short_stretches", "long_stretches"}
