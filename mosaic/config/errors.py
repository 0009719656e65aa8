"""What a command says beside its results: of bad input a message that names the field, and no traceback."""

import os
import select
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ENAMETOOLONG
from pathlib import Path

from mosaic.core.errors import InUseError, MosaicError
from mosaic.core.safe_text import printable_output

BAD_INPUT_STATUS = 2
FAILED_CALLS_STATUS = 3
"""The run is complete, but for calls that have no result."""
UNANSWERED_STATUS = 4
"""A batch is complete, but for questions without a text, or with one expert's for what could not be aggregated."""
NOT_REACHED_STATUS = 5
"""What was wanted is out of reach: the deadline of a quote, the bound of an audit, which holds all the same."""
IN_USE_STATUS = 6
"""Another command is at work in the folder, and goes on."""
MISTAKE_STATUS = 1
"""Something that should not happen: our own mistake."""
INTERRUPTED_STATUS = 130
CLOSED_OUTPUT_STATUS = 141
"""What a shell says of a command that SIGPIPE ended."""


def log(line: str) -> None:
    """Print a line beside the results."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def stoppable(how: str) -> Iterator[None]:
    """Let SIGTERM stop a command as Ctrl-C does, and say how it goes on."""

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
    """Turn an error into a message on stderr and an exit; MOSAIC_TRACEBACK=1 shows where it came from.

    All that is printed meanwhile is printable.
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
    """Say whether whoever read the output has enough of it, as in ``mosaic ... | head``."""
    output = select.poll()
    try:
        output.register(sys.stdout, 0)
    except ValueError:  # no file at all
        return False
    return any(events & select.POLLERR for _, events in output.poll(0))


def is_bad_input(error: BaseException) -> bool:
    """Tell whether an error names a field or a file that the user can mend; anything else is our own mistake."""
    from mosaic.config.hydra_errors import HYDRA_ERRORS  # the command line does without Hydra

    return isinstance(error, (MosaicError, ValueError, TypeError, OSError, *HYDRA_ERRORS))


def explain_error(error: BaseException) -> str:
    """Say what is wrong in our words where Hydra's or the system's leave out the field, the rule or the value."""
    from mosaic.config.hydra_errors import explain_hydra_error

    if isinstance(error, FileExistsError | NotADirectoryError):
        return f"folder must be one that can be made, got {error.filename!r} where a file is in the way"
    if isinstance(error, OSError) and error.errno == ENAMETOOLONG:
        give = "give one with hydra.run.dir or hydra.sweep.subdir"
        return f"folder must have a shorter name, got {error.filename!r}: {give}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: cannot be used ({error.strerror})"
    if not is_bad_input(error):
        return _explain_mistake(error)
    return explain_hydra_error(error) or str(error)


def _explain_mistake(error: BaseException) -> str:
    """Say where our own mistake is, in a line."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    said = " ".join(f"{type(error).__name__}: {error}".split())
    return f"a mistake of mosaic's own ({said}{place}): MOSAIC_TRACEBACK=1 shows more, please report it"
