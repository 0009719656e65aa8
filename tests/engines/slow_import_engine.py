"""The engine without a model, behind an import that takes a second."""

import time

from tests.engines.fake_engine import is_device_lost, open_engine

__all__ = ["is_device_lost", "open_engine", "prepare"]
IMPORT_S = 1.0


def prepare(settings) -> None:
    time.sleep(IMPORT_S)
