"""Fork servers that outlive the runs of a test process: vLLM is imported once, which takes ten seconds."""

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from mosaic.config import engines
from mosaic.core.engine_options import Device
from mosaic.engines.launcher import FORK_SERVER_LOG
from mosaic.engines.local_launcher import LocalLauncher
from tests.commands.command_line import Outcome, run_here, store


class KeptLauncher(LocalLauncher):
    """Ends its fork server with this process, or where a run ends early; nothing of it is in a run's folder."""

    def start(self, log: Path) -> None:
        with patch.dict(os.environ, HF_MODULES_CACHE=str(store() / "modules")):  # code that checkpoints bring
            super().start(store() / FORK_SERVER_LOG)

    def started(self) -> "KeptLauncher":
        self.start(store() / FORK_SERVER_LOG)
        return self

    @contextmanager
    def kept(self) -> Iterator["KeptLauncher"]:
        try:
            yield self
        except BaseException:
            self.close()
            raise


_kept: dict[tuple[str, Device | None, Path], KeptLauncher] = {}
"""By what they import, and where: a fork server stays in the folder where it began."""


def kept_launcher(settings: Any, engine_module: str, device: Device | None = Device.GPU) -> KeptLauncher:
    """Return this process's launcher for an engine's module; what is imported depends on no setting but the device."""
    key = engine_module, device, Path.cwd()
    if key not in _kept:
        _kept[key] = KeptLauncher(settings, engine_module, device)
        atexit.register(_kept[key].close)
    return _kept[key]


kept_launchers = patch.object(engines, "LocalLauncher", kept_launcher)


def run_kept(*arguments: str) -> Outcome:
    """Run the whole command in this process, as `run_here` does, on a fork server that is there already."""
    with kept_launchers:
        return run_here(*arguments)
