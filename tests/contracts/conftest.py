"""Every contract of a run is tested on every backend."""

import pytest

from tests.contracts.test_backend_contract import BACKENDS, NAMES, Kind


@pytest.fixture(params=NAMES, scope="module")
def kind(request: pytest.FixtureRequest) -> Kind:
    return BACKENDS[request.param]
