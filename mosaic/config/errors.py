"""Prints a command's errors and notes: for bad input a message that names the field, without a traceback."""

import os
import select
import signal
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ENAMETOOLONG
from pathlib import Path

from mosaic.bundled import BUNDLE
from mosaic.core.errors import InUseError, MosaicError
from mosaic.core.safe_text import printable_output

BAD_INPUT_STATUS = 2
FAILED_CALLS_STATUS = 3
"""The run is complete, except for calls that have no result."""
UNANSWERED_STATUS = 4
"""A batch is complete, but for questions without a text, or with one expert's for what could not be aggregated."""
NOT_REACHED_STATUS = 5
"""The goal cannot be reached: the deadline of a quote, or the bound of an audit (which is still valid)."""
IN_USE_STATUS = 6
"""Another command works in the folder, and continues."""
MISTAKE_STATUS = 1
"""An internal error of mosaic."""
INTERRUPTED_STATUS = 130
CLOSED_OUTPUT_STATUS = 141
"""Exit status that a shell reports for a command that SIGPIPE ended."""
TRACEBACK = "Traceback (most recent call last; from the first line of your own code on):\n"
OUR_FOLDERS = (Path(__file__).resolve().parents[1], *(BUNDLE / name for name in ("sim", "experiments", "tests")))
"""The package, and what stands beside it in a checkout."""


def log(line: str) -> None:
    """Print a line beside the results."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def stoppable(how: str) -> Iterator[None]:
    """Let SIGTERM stop a command as Ctrl-C does, with a line on how to resume it."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt as stopped:
        raise KeyboardInterrupt(f"{stopped or 'stopped'}. {how}") from None
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def exit_with_message() -> Iterator[None]:
    """Turn an error into a message on stderr and an exit; MOSAIC_TRACEBACK=1 shows its traceback.

    All output in the meantime is made printable.
    """
    with printable_output():
        try:
            yield
        except Exception as error:
            if isinstance(error, BrokenPipeError) and _is_output_closed():
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is dropped
                sys.exit(CLOSED_OUTPUT_STATUS)
            if os.environ.get("MOSAIC_TRACEBACK"):
                raise
            print(f"error: {explain_error(error)}", file=sys.stderr)
            is_in_use = isinstance(error, InUseError)
            sys.exit(IN_USE_STATUS if is_in_use else BAD_INPUT_STATUS if is_bad_input(error) else MISTAKE_STATUS)
        except KeyboardInterrupt as stop:
            print(f"interrupted: {stop}" if str(stop) else "interrupted", file=sys.stderr)
            sys.exit(INTERRUPTED_STATUS)


def _is_output_closed() -> bool:
    """Return whether the reader of the output has closed it, as in ``mosaic ... | head``."""
    output = select.poll()
    try:
        output.register(sys.stdout, 0)
    except ValueError:  # no file at all
        return False
    return any(events & select.POLLERR for _, events in output.poll(0))


def is_bad_input(error: BaseException) -> bool:
    """Return whether the user can correct an error: it names a field or a file, or comes from the user's own code.

    Anything else is an internal error.
    """
    return _says_what_to_mend(error) or own_code_traceback(error) is not None


def _says_what_to_mend(error: BaseException) -> bool:
    from mosaic.config.hydra_errors import HYDRA_ERRORS  # the command line does without Hydra

    return isinstance(error, (MosaicError, ValueError, TypeError, OSError, *HYDRA_ERRORS))


def explain_error(error: BaseException) -> str:
    """Describe an error, in mosaic's words if Hydra's or the system's omit the field, the rule or the value.

    If a scheduler, a controller or a rule of the user caused it, its traceback follows.
    """
    own = own_code_traceback(error)
    if own is None:
        return _explain(error)
    return f"{_explain(error) if _says_what_to_mend(error) else 'code of your own has failed'}\n{own}"


def own_code_traceback(error: BaseException) -> str | None:
    """Format the traceback of an error from the first line of the user's own code on; None: no such code is involved.

    Own code is in no file of mosaic's and of no installed package. An error that mosaic describes in its own words has
    the original error as its cause.
    """
    cause: BaseException | None = error
    while cause is not None:
        frames = [frame for frame in traceback.extract_tb(cause.__traceback__) if not frame.filename.startswith("<")]
        first = next((number for number, frame in enumerate(frames) if _is_own_code(frame.filename)), None)
        is_slip = isinstance(cause, SyntaxError) and cause.filename is not None and _is_own_code(cause.filename)
        if first is not None or is_slip:
            shown = [] if first is None else traceback.format_list(frames[first:])
            return "".join([TRACEBACK, *shown, *traceback.format_exception_only(cause)]).rstrip()
        cause = cause.__cause__
    return None


def _is_own_code(filename: str) -> bool:
    path = Path(filename).resolve()
    libraries = (Path(sysconfig.get_paths()[name]) for name in ("stdlib", "purelib", "platlib"))
    is_other = any(path.is_relative_to(folder) for folder in (*OUR_FOLDERS, *libraries))
    return path.is_file() and not is_other and "site-packages" not in path.parts


def _explain(error: BaseException) -> str:
    from mosaic.config.hydra_errors import explain_hydra_error

    if isinstance(error, FileExistsError | NotADirectoryError):
        return f"folder must be one that can be made, got {error.filename!r} where a file is in the way"
    if isinstance(error, OSError) and error.errno == ENAMETOOLONG:
        give = "give one with hydra.run.dir or hydra.sweep.subdir"
        return f"folder must have a shorter name, got {error.filename!r}: {give}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: cannot be used ({error.strerror})"
    if not _says_what_to_mend(error):
        return _explain_mistake(error)
    return explain_hydra_error(error) or str(error)


def _explain_mistake(error: BaseException) -> str:
    """Locate an internal error in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    said = " ".join(f"{type(error).__name__}: {error}".split())
    return f"a mistake of mosaic's own ({said}{place}): MOSAIC_TRACEBACK=1 shows more, please report it"
