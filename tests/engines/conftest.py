"""One launcher for all tests of engines without a model."""

from collections.abc import Iterator

import pytest

from mosaic.engines.local_launcher import LocalLauncher
from tests.engines.executor_runs import FAKE_ENGINE, running_host


@pytest.fixture(scope="session")
def host() -> Iterator[LocalLauncher]:
    with running_host(FAKE_ENGINE) as running:
        yield running
