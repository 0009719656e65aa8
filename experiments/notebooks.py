"""Execute the notebooks and keep their outputs in them.

    python experiments/notebooks.py [NOTEBOOK.ipynb ...]      (default: all in notebooks/)

Each runs in a fresh kernel, in an empty folder, with warnings as errors. What is written holds no times, versions or
paths, so that a second execution changes no text.
"""

import argparse
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TIMEOUT_S = 120
"""For one cell."""


def execute(path: Path, folder: Path) -> "NotebookNode":
    """Execute a notebook with a folder as the working directory; a cell that raises ends it."""
    import nbformat
    from nbclient import NotebookClient

    environment = {
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "error,ignore::PendingDeprecationWarning:ipykernel.kernelbase",  # how ipykernel 7 shuts down
        "IPYTHONDIR": str(folder / ".ipython"),  # not the user's own profile
    }
    notebook: NotebookNode = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
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


def main() -> int:
    """Execute the notebooks that the command line names."""
    import nbformat

    parser = argparse.ArgumentParser(prog="notebooks", description="Execute the notebooks and keep their outputs.")
    parser.add_argument("notebooks", type=Path, nargs="*", default=NOTEBOOKS)
    for path in parser.parse_args().notebooks:
        with TemporaryDirectory() as folder:
            nbformat.write(execute(path, Path(folder)), path)  # type: ignore[no-untyped-call]
        print(f"executed: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
