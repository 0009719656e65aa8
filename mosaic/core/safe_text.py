"""Makes text of servers, models and users safe for screens, logs and file names."""

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO
from urllib.parse import unquote

_STEERS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls beside line ends and tabs
    r"\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # hide or reorder text
    r"\U000e0000-\U000e007f\ud800-\udfff]"  # tags, and halves of pairs, which no stream can encode
)
_NOT_IN_NAMES = re.compile(r"[%/\x00-\x1f\x7f]|^\.{1,2}$")


def printable(text: str) -> str:
    r"""Escape the characters that control a terminal, and those that hide or reorder text; line ends stay.

    Examples
    --------
    >>> print(printable("\x1b]0;title\x07 and \x1b[2J"))
    \x1b]0;title\x07 and \x1b[2J
    """
    return _STEERS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class PrintableStream:
    """Writes text to a stream, with all its characters printable.

    Parameters
    ----------
    stream
        The stream to write to; `terminal` returns it for callers that draw there themselves.
    """

    def __init__(self, stream: "TextIO | PrintableStream") -> None:
        # NOTE: commands nest, and a stream inside a stream would escape the drawings on a terminal.
        self.terminal: TextIO = stream.terminal if isinstance(stream, PrintableStream) else stream

    def write(self, text: str) -> int:
        self.terminal.write(printable(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.terminal, name)


@contextmanager
def printable_output() -> Iterator[None]:
    """Make all output of this process printable."""
    out, err = (stream and PrintableStream(stream) for stream in (sys.stdout, sys.stderr))
    with redirect_stdout(out), redirect_stderr(err):
        yield


def file_name(text: str) -> str:
    """Encode a text as a file name: it contains no path separator, and different texts give different names.

    Examples
    --------
    >>> file_name("workload.path=../mine.jsonl,seed=0"), file_name("..")
    ('workload.path=..%2Fmine.jsonl,seed=0', '%2E%2E')
    """
    return _NOT_IN_NAMES.sub(lambda found: "".join(f"%{ord(letter):02X}" for letter in found[0]), text)


def from_file_name(name: str) -> str:
    """Decode a name from `file_name`."""
    return unquote(name)
