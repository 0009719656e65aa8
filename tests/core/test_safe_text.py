"""What servers, models and files say reaches a screen or a log as text."""

import sys
from io import StringIO

import pytest

from mosaic.commands.app import main
from mosaic.config.errors import exit_with_message
from mosaic.core.safe_text import PrintableStream, printable, printable_output

PLAIN = "plain text, \u00e9 \u4e2d \U0001f642 \u2588\n\tnext line"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (PLAIN, PLAIN),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("one\rtwo\x08\x7f", r"one\rtwo\x08\x7f"),
        ("\x9b2J\x85", r"\x9b2J\x85"),
        ("gpj\u202egnp.exe \u2066x\u2069", r"gpj\u202egnp.exe \u2066x\u2069"),
        ("a\u2028b\u200bc\ufeff", r"a\u2028b\u200bc\ufeff"),
        ("half \ud83d pair", r"half \ud83d pair"),
    ],
)  # fmt: skip
def test_characters_that_steer_a_terminal_are_written_out(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


def test_a_stream_takes_lines_and_tells_what_is_below(capsys: pytest.CaptureFixture[str]) -> None:
    below = StringIO()
    stream = PrintableStream(below)
    stream.writelines(["\x1b[1m", "bold"])
    assert (below.getvalue(), stream.isatty()) == (r"\x1b[1mbold", False)
    with printable_output():
        print("\x1b[1m")
        print("\x1b[2m", file=sys.stderr)
    print("\x1b[3m")
    assert capsys.readouterr() == ("\\x1b[1m\n\x1b[3m\n", "\\x1b[2m\n")


def test_commands_print_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), exit_with_message():  # noqa: PT012
        print("said by a server: \x1b[2J")
        raise ValueError("\x1b]52;c;ZXZpbA==\x07")
    for words in (["compare", "no\x1b[2Jthing"], ["\x1b[2J"]):
        with pytest.raises(SystemExit):
            main(words)
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert (out.count(r"\x1b"), err.count(r"\x1b")) == (1, 3)
