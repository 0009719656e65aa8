"""Locks a run's folder: one command at a time works there, from its start to its end."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mosaic.core.errors import InUseError, RunFolderError

LOCK_NAME = "lock"


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Make a folder and lock it; the lock of a killed command is released.

    Raises
    ------
    InUseError
        If another command works there.
    RunFolderError
        If the folder or its lock cannot be made.
    """
    path = folder / LOCK_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be opened ({error.strerror})") from error
    try:
        if not _lock(lock):
            holder = os.pread(lock, 200, 0).decode(errors="replace")
            raise InUseError(
                f"{folder}: another command is at work there ({holder or 'unknown'}) and goes on undisturbed; "
                "wait for its end, or name another folder"
            )
        with suppress(OSError):  # a full disk: the lock is valid anyway
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        os.close(lock)


def is_held(folder: Path) -> bool:
    """Return whether another command works in a folder; the folder is not created."""
    try:
        lock = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _lock(lock)
    finally:
        os.close(lock)


def _lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
