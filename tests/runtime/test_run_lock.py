"""The lock of a run's folder: held by one command until its end."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mosaic.core.errors import InUseError, RunFolderError
from mosaic.runtime.run_lock import LOCK_NAME, hold
from tests.commands.command_line import ROOT


def start_writer(folder: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.engines.journal_writer", str(folder), "0"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_a_second_command_is_told_at_once_who_is_there_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    with start_writer(tmp_path) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        who = rf"another command is at work there \(process {writer.pid} on {socket.gethostname()}\)"
        with pytest.raises(InUseError, match=who), hold(tmp_path):
            pass
        assert writer.poll() is None, "it goes on"
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        with hold(tmp_path):
            assert (tmp_path / LOCK_NAME).read_text().startswith(f"process {os.getpid()} on ")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="file/journal/lock: cannot be opened"), hold(tmp_path / "file/journal"):
        pass
