"""A file of questions to which lines were appended, and errors that should not happen."""

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from mosaic.config.errors import exit_with_message
from mosaic.config.run_start import begins_with
from mosaic.core.errors import InUseError


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (b"a\nb\n", b"a\nb\nc\n", True),
        (b"a\nb", b"a\nb\nc", True),
        (b"a\r\nb\r\n", b"a\r\nb\r\nc", True),
        (b"a\nb", b"a\nbc\n", False),
        (b"a\nb\n", b"a\nB\nc\n", False),
        (b"a\nb\n", b"b\na\nb\n", False),
        (b"a\nb\n", b"a\n", False),
    ],
)
def test_lines_were_appended_where_the_first_ones_are_the_same(
    before: bytes, now: bytes, expected: bool, tmp_path: Path
) -> None:
    (tmp_path / "q").write_bytes(now)
    assert begins_with(tmp_path / "q", sha256(before).hexdigest()) is expected


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ValueError("seed must be 0"), 2, "error: seed must be 0\n"),
        (InUseError("there"), 6, "error: there\n"),
        (KeyError("x"), 1, "error: a mistake of mosaic's own (KeyError: 'x' at test_run_start.py:"),
        (RecursionError("too\ndeep"), 1, "error: a mistake of mosaic's own (RecursionError: too deep at"),
        (BrokenPipeError(32, "Broken pipe"), 2, "error: [Errno 32] Broken pipe\n"),  # of a process, not of the reader
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (
            KeyboardInterrupt("40 of 180 calls are kept"),
            130,
            "interrupted: 40 of 180 calls are kept\n",
        ),
    ],
)
def test_no_traceback_reaches_a_user(
    error: BaseException, status: int, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MOSAIC_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as stop, exit_with_message():
        raise error
    err = capsys.readouterr().err
    assert (stop.value.code, err.count("\n")) == (status, 1)
    assert err.startswith(said)


def test_a_command_whose_reader_has_gone_ends_without_a_word() -> None:
    code = "from mosaic.config.errors import exit_with_message\nwith exit_with_message(): print('row', flush=True)"
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, b"")
