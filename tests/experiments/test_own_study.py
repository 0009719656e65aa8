"""A study of one's own, by its page: run, killed and gone on with."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.readme_blocks import ROOT, blocks_of

pytestmark = pytest.mark.slow


def test_a_study_of_ones_own_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    (block,) = (block for block in blocks_of(ROOT / "docs" / "how-to" / "study.md") if "# my_gpus.py" in block.text)
    (tmp_path / "my_gpus.py").write_text(block.text)
    command = [sys.executable, str(ROOT / "experiments" / "study.py"), "my_gpus.py", "--out", "out"]
    table = tmp_path / "out" / "runs.csv"
    first = subprocess.Popen(command, cwd=tmp_path, start_new_session=True, stdout=subprocess.DEVNULL)
    while first.poll() is None and not (table.exists() and table.read_bytes().count(b"\n") > 3):
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    begun = table.read_bytes().rpartition(b"\n")[0].splitlines()
    assert 3 < len(begun) < 19
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert set(begun) < set(table.read_bytes().splitlines())
    assert f"runs {19 - len(begun)}/{19 - len(begun)}: " in done.stdout
    page = (tmp_path / "out" / "my_gpus.md").read_text()
    assert "`python experiments/study.py my_gpus.py`, 3 seeds." in page
    assert "| 4 | " in page
    assert (tmp_path / "out" / "my_gpus.png").read_bytes().startswith(b"\x89PNG")
