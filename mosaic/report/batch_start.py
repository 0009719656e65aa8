"""The start of a batch: when it began, and which output files are its own.

A batch claims its output name before any work, by making the partial file there, which two commands cannot both do. So
none of them writes over results that are not its own.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from mosaic.core.errors import RunFolderError
from mosaic.core.json_file import read_json
from mosaic.report.batch_files import BatchPaths
from mosaic.report.run_folder import write_file

BEGUN = "begun.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchStart:
    """What a batch's run folder keeps of its start."""

    created: int
    """Seconds since 1970 when it began, however often it is interrupted."""
    outputs: tuple[str, ...] = ()
    """Its output files, as seen from the folder."""


def check_outputs(folder: Path, paths: BatchPaths) -> None:
    """Check that a batch's output files are its own, or not there yet.

    Raises
    ------
    RunFolderError
        If one is of another run.
    """
    if _is_own(read_start(folder), folder, paths):
        return
    for path in paths:
        if path.exists():
            raise _of_another(path, folder)


def start_batch(folder: Path, paths: BatchPaths, now: int) -> BatchStart:
    """Claim a batch's output files and write down its start, unless an earlier start of it has.

    Parameters
    ----------
    folder, paths
        The run folder, whose lock is held, and the files.
    now
        Seconds since 1970.

    Raises
    ------
    RunFolderError
        If a file is of another run, or cannot be written; then nothing is claimed.
    """
    check_outputs(folder, paths)
    before = read_start(folder)
    start = before or BatchStart(created=now)
    name = _seen_from(folder, paths)
    if name in start.outputs:
        return start
    start = replace(start, outputs=(*start.outputs, name))
    is_new = not _is_own(before, folder, paths)
    if is_new:
        _make(paths.partial, folder)
    try:
        write_file(folder, BEGUN, msgspec.json.encode(start))
    except RunFolderError:
        if is_new:
            paths.partial.unlink(missing_ok=True)
        raise
    return start


def read_start(folder: Path) -> BatchStart | None:
    """Read what a batch's run folder keeps of its start; None: it has not begun.

    Raises
    ------
    RunFolderError
        If the file cannot be read.
    """
    path = folder / BEGUN
    if not path.exists():
        return None
    return read_json(path, BatchStart, "start of a batch", RunFolderError)


def _is_own(start: BatchStart | None, folder: Path, paths: BatchPaths) -> bool:
    """Tell whether an earlier start has claimed these files; one that kept no names had them beside its input."""
    return start is not None and (not start.outputs or _seen_from(folder, paths) in start.outputs)


def _seen_from(folder: Path, paths: BatchPaths) -> str:
    return os.path.relpath(paths.out, folder)


def _make(path: Path, folder: Path) -> None:
    try:
        path.open("xb").close()
    except FileExistsError:
        raise _of_another(path, folder) from None
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be written ({error.strerror})") from error


def _of_another(path: Path, folder: Path) -> RunFolderError:
    return RunFolderError(
        f"{path}: is there already, and not of the run in {folder}; remove it, or --out names another folder"
    )
