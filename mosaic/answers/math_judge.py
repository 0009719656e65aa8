"""Asks math-verify in a process of its own whether two expressions are equal; `mosaic.answers.math_equality` says why.

This file is also the program of that process, which is why it imports nothing else of mosaic but the error it raises.
"""

import atexit
import json
import os
import select
import subprocess
import sys
from functools import lru_cache
from threading import Lock
from typing import IO

TIME_LIMIT_S = 5.0
"""Wall seconds for one question; most take a few hundredths of a second."""
_START_LIMIT_S = 120.0
_MEMORY_LIMIT_BYTES = 4 * 2**30


def ask(first: str, second: str) -> bool:
    """Whether math-verify shows two expressions to be equal within the time limit.

    Raises
    ------
    MosaicError
        The process does not start, for instance because math-verify is not installed.
    """
    return _judge_of(os.getpid()).ask(first, second)


@lru_cache(maxsize=1)
def _judge_of(_pid: int) -> "Judge":
    # NOTE: a forked child must not share its parent's pipes, so there is one judge per process id.
    return Judge()


class Judge:
    """Starts the process at its first question, and again after one that it had to be killed for."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._owner = os.getpid()
        self._lock = Lock()
        atexit.register(self.close)

    def ask(self, first: str, second: str) -> bool:
        with self._lock:
            process = self._process = self._process or _start()
            try:
                print(json.dumps([first, second]), file=process.stdin, flush=True)
                reply = _read_line(process, TIME_LIMIT_S)
            except OSError:  # it died since the last question
                reply = ""
            if not reply:
                self.close()
            return reply.strip() == "true"

    def close(self) -> None:
        """End the process; in a forked child it is the parent's, and stays."""
        if self._process is not None and self._owner == os.getpid():
            self._process.kill()
            self._process.communicate()
            self._process = None


def _start() -> subprocess.Popen[str]:
    # NOTE: -P keeps this folder off the path, lest a module of it ever hides one of a library.
    process = subprocess.Popen(
        [sys.executable, "-P", "-W", "ignore", __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    if _read_line(process, _START_LIMIT_S).strip() != "ready":
        process.kill()
        process.communicate()
        from mosaic.core.errors import MosaicError

        raise MosaicError("mathematical answers cannot be compared: math-verify does not start; is it installed?")
    return process


def _read_line(process: subprocess.Popen[str], limit_s: float) -> str:
    """Read one line; empty when none comes in time or the process is gone."""
    assert process.stdout is not None, "it is a pipe"
    ready, _, _ = select.select([process.stdout], [], [], limit_s)
    return process.stdout.readline() if ready else ""


def equivalent(first: str, second: str) -> bool:
    """Ask math-verify in both directions, since it treats its first argument as the gold answer."""
    from math_verify import parse, verify

    one, other = (parse(f"${text}$", parsing_timeout=None) for text in (first, second))
    return any(verify(*pair, timeout_seconds=None) for pair in ((one, other), (other, one)))


def serve(questions: IO[str], replies: IO[str]) -> None:
    """Answer questions, one a line, until there are no more."""
    import logging
    import resource

    import math_verify  # noqa: F401  (before "ready": a missing package must be noticed at the start)

    logging.disable(logging.CRITICAL)
    print("ready", file=replies, flush=True)
    for line in questions:
        used_s = resource.getrusage(resource.RUSAGE_SELF).ru_utime
        # An orphan, whose parent was killed and cannot end it, ends itself.
        resource.setrlimit(resource.RLIMIT_CPU, (int(used_s + 10 * TIME_LIMIT_S), resource.RLIM_INFINITY))
        try:
            equal = equivalent(*json.loads(line))
        except Exception:  # any failure of the parser or of the algebra leaves equality unproven
            equal = False
        print(json.dumps(equal), file=replies, flush=True)


if __name__ == "__main__":
    import resource as limits

    limits.setrlimit(limits.RLIMIT_AS, (_MEMORY_LIMIT_BYTES, limits.RLIM_INFINITY))
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints is no answer
    serve(sys.stdin, answers)
