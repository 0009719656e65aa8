"""Ten thousand questions in the driver of `mosaic batch`."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands.command_line import ROOT
from tests.engines.fake_batch import batch_line, question, write_batch, write_models

MOST_MIB = 500
MEASURED = """
import pathlib, sys
from tests.engines.fake_batch import fake_hosts, main
with fake_hosts:
    try:
        main()
    finally:
        status = pathlib.Path("/proc/self/status").read_text()  # ru_maxrss also knows the peak of who started it
        print("driver", int(status.split("VmHWM:")[1].split()[0]) // 1024, "MiB")
"""


@pytest.mark.slow
def test_ten_thousand_questions_fit_into_the_driver(tmp_path: Path) -> None:
    """With responses of 400 tokens."""
    models = write_models(tmp_path)
    path = write_batch(tmp_path, [batch_line(number, question(number, "long")) for number in range(10_000)])
    command = [sys.executable, "-c", MEASURED, "batch", str(path), *models]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "10,000 questions answered, 0 errors" in done.stdout
    found = re.search(r"driver (\d+) MiB", done.stdout)
    assert found is not None
    print(found[0])
    assert int(found[1]) < MOST_MIB
