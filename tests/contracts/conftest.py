"""Every contract of a run is tested on every backend."""

import pytest

from tests.contracts.test_backend_contract import BACKENDS, Kind

REAL = [pytest.mark.slow, pytest.mark.alone]
"""On a busy machine real vLLM loads so late that nothing is left to react to."""


@pytest.fixture(
    params=[pytest.param(name, marks=REAL if name == "vllm" else []) for name in sorted(BACKENDS)], scope="module"
)
def kind(request: pytest.FixtureRequest) -> Kind:
    return BACKENDS[request.param]
