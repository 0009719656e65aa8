"""Fork servers that outlive the runs of a test process: vLLM is imported once, which takes ten seconds."""

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

from mosaic.config import engines
from mosaic.core.engine_options import Device
from mosaic.engines.local_launcher import LOG, LocalLauncher
from tests.commands.command_line import Outcome, run_here, store


class KeptLauncher(LocalLauncher):
    """Ends its fork server with this process, or where a run ends early; nothing of it is in a run's folder."""

    def start(self, log: Path) -> None:
        with patch.dict(os.environ, HF_MODULES_CACHE=str(store() / "modules")):  # code that checkpoints bring
            super().start(store() / LOG)

    def started(self) -> "KeptLauncher":
        self.start(store() / LOG)
        return self

    @contextmanager
    def kept(self) -> Iterator["KeptLauncher"]:
        try:
            yield self
        except BaseException:
            self.close()
            raise


@cache
def kept_launcher(settings: Any, engine_module: str, device: Device | None = Device.GPU) -> KeptLauncher:
    """Return the launcher of this process for an engine's module with these settings."""
    launcher = KeptLauncher(settings, engine_module, device)
    atexit.register(launcher.close)
    return launcher


kept_launchers = patch.object(engines, "LocalLauncher", kept_launcher)


def run_kept(*arguments: str) -> Outcome:
    """Run the whole command in this process, as `run_here` does, on a fork server that is there already."""
    with kept_launchers:
        return run_here(*arguments)
