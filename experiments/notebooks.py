"""Execute the notebooks and keep them with their outputs.

    python experiments/notebooks.py [NOTEBOOK.ipynb ...]     all in notebooks/, into results/multirun/notebooks
    python experiments/notebooks.py --out notebooks          makes the committed files anew

Each runs in a fresh kernel, in an empty folder, with warnings as errors. What is written holds no times, versions or
paths, so that a second execution changes no text.
"""

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # experiments is not an installed package

from mosaic.config.places import own_folder  # noqa: E402

if TYPE_CHECKING:
    from nbformat import NotebookNode

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


def main(
    notebooks: Annotated[list[Path] | None, typer.Argument(help="Notebooks. [default: all in notebooks/]")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to write. [default: results/multirun/notebooks]")
    ] = None,
) -> None:
    """Execute notebooks and keep them with their outputs."""
    import nbformat

    out = out or own_folder("notebooks")
    out.mkdir(parents=True, exist_ok=True)
    for path in notebooks or NOTEBOOKS:
        with TemporaryDirectory() as folder:
            nbformat.write(execute(path, Path(folder)), out / path.name)  # type: ignore[no-untyped-call]
        print(f"executed: {out / path.name}")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
