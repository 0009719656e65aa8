"""The lock of a run's folder: one command at a time works there, from its start to its end."""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mosaic.core.errors import InUseError, RunFolderError

LOCK_NAME = "lock"


@contextmanager
def hold(folder: Path, *, patience_s: float = 10.0) -> Iterator[int]:
    """Make a folder and hold it alone; gives the lock's file descriptor.

    The lock belongs to the open file, so every process that inherits or is sent the descriptor holds it too, and it is
    free only when the last of them is gone: who holds the folder of a killed run knows that none of its processes can
    still write. ``patience_s`` is how long to wait for those that are about to end.

    Raises
    ------
    InUseError
        If another command works there, or processes that one has left do not end.
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
        deadline = time.monotonic() + patience_s
        while not _lock(lock):
            holder = os.pread(lock, 200, 0).decode(errors="replace")
            if _is_alive(holder) or time.monotonic() >= deadline:
                raise InUseError(
                    f"{folder}: another command is at work there ({holder or 'unknown'}) and goes on undisturbed; "
                    "wait for its end, or name another folder"
                )
            time.sleep(0.05)  # flock has no wait with a limit
        with suppress(OSError):  # a full disk: the lock holds all the same
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield lock
    finally:
        os.close(lock)


def is_held(folder: Path) -> bool:
    """Tell whether another command works in a folder, which is not made for that."""
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


def _is_alive(holder: str) -> bool:
    """Tell whether the command that took the lock runs on this machine; one that was killed may leave workers."""
    kind, _, rest = holder.partition(" ")
    number, _, machine = rest.partition(" on ")
    if kind != "process" or not number.isdigit() or machine != socket.gethostname():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
