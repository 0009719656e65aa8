"""Executes notebooks; ``python -m tests.notebook_runs`` makes the committed ones anew.

Each runs in a fresh kernel, in an empty folder, with warnings as errors. What is written holds no times, versions or
paths, so that a second execution changes no text.
"""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TIMEOUT_S = 120
"""For one cell."""


def execute(path: Path, folder: Path) -> nbformat.NotebookNode:
    """Execute a notebook with a folder as the working directory; a cell that raises ends it."""
    environment = {
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "error,ignore::PendingDeprecationWarning:ipykernel.kernelbase",  # how ipykernel 7 shuts down
        "IPYTHONDIR": str(folder / ".ipython"),  # not the user's own profile
    }
    notebook = nbformat.read(path, as_version=4)
    metadata = notebook.metadata.copy()
    client = NotebookClient(
        notebook,
        timeout=TIMEOUT_S,
        record_timing=False,
        coalesce_streams=True,
        extra_arguments=["--log-level=ERROR"],  # of the kernel, which warns of its own transport
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env={**os.environ, **environment})
    notebook.metadata = metadata  # the kernel adds its version
    return notebook


if __name__ == "__main__":
    for path in NOTEBOOKS:
        with TemporaryDirectory() as folder:
            nbformat.write(execute(path, Path(folder)), path)
        print(f"executed: {path}")
