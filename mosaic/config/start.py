"""Starts of real runs: all that they need is checked before there is a folder, and before anything is sent."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from mosaic.config import engines
from mosaic.config.compose import compose_config
from mosaic.config.job import backend_from
from mosaic.config.run_start import is_blank
from mosaic.core.errors import BackendError
from mosaic.engines.checkpoints import CheckpointError
from mosaic.engines.local_launcher import LocalLauncher
from mosaic.engines.site import EngineSite
from mosaic.planning.feasibility import TooLongError
from mosaic.report.run_folder import CONFIG
from mosaic.runtime.job import Job

LEAST_BYTES = 64 * 2**20
CALL_BYTES = 16 * 2**10
"""Assumed: a response of a thousand tokens, in the journal, in the run folder and in the output, and rows of tables."""


@contextmanager
def naming_all_problems(folders: Sequence[Path], *, is_here: bool) -> Iterator[None]:
    """Where checkpoints are missing or contexts too short, say also what else would keep the run from starting.

    Parameters
    ----------
    folders
        Where the run writes, first of all its run folder.
    is_here
        Whether vLLM is to run on this machine.

    Raises
    ------
    BackendError
        Instead of the error about checkpoints or contexts.
    """
    try:
        yield
    except (CheckpointError, TooLongError) as error:
        if has_begun(folders):
            raise
        _refuse([*str(error).splitlines(), *(_engine_problems() if is_here else ()), *_disk_problems(folders, 0)])


def check_start(job: Job, folders: Sequence[Path]) -> None:
    """Check a run on real engines that has no answer yet, before it makes its folder; all that it lacks is one error.

    Where another command works in the folder nothing is started: the lock says so.

    Raises
    ------
    BackendError
        Naming all that is missing.
    """
    if isinstance(job.site, EngineSite) and not has_begun(folders) and not job.site.is_in_use:
        on_disk = _disk_problems(folders, len(job.workload.calls))
        _refuse([*job.site.problems(bool(on_disk)), *on_disk])


def has_begun(folders: Sequence[Path]) -> bool:
    """Tell whether a run has answers: it goes on, and may need no engine any more."""
    return (folders[0] / CONFIG).exists() and not is_blank(folders[0])


def _refuse(found: Sequence[str]) -> None:
    if found:
        raise BackendError(found[0] if len(found) == 1 else "\n  - ".join(("this run cannot start:", *found)))


def _engine_problems() -> Sequence[str]:
    """Import vLLM where there is no job yet whose site would."""
    backend = compose_config(["backend=vllm"])["backend"]
    options = backend_from(backend).options
    with closing(LocalLauncher(options, engines.VLLM_ENGINE)) as launcher:
        return launcher.problems()


def _disk_problems(folders: Sequence[Path], num_calls: int) -> list[str]:
    """Say which file systems have no room for what a run of so many calls leaves."""
    needed, found = LEAST_BYTES + num_calls * CALL_BYTES, {}
    for folder in folders:
        there = next(place for place in (folder, *folder.resolve().parents) if place.is_dir())
        free = shutil.disk_usage(there).free
        if free < needed:
            found[there.stat().st_dev] = (
                f"{there}: the disk must have {needed / 2**20:,.0f} MiB free for {num_calls:,} calls, "
                f"got {free / 2**20:,.0f} MiB"
            )
    return [*found.values()]
