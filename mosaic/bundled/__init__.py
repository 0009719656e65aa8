"""What mosaic's command needs beside the product: the simulator, the commands and their configuration.

A checkout has them as folders at its top. A wheel has the same files here (setup.py puts them there), so that no name
but mosaic's own stands in site-packages, where `sim` and `experiments` could be anybody's.
"""

import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
BUNDLE = _HERE if (_HERE / "experiments").is_dir() else _HERE.parents[1]
"""The folder that holds sim/, experiments/ and conf/."""


def make_importable() -> Path:
    """Let this process import `sim` and `experiments`; gives the folder that they stand in."""
    if str(BUNDLE) not in sys.path:
        sys.path.insert(0, str(BUNDLE))
    return BUNDLE


def command_line(name: str) -> str:
    """Write a command as the user has written this one: through `mosaic`, or as a file of the checkout.

    Examples
    --------
    >>> command_line("compare")
    'python experiments/compare.py'
    """
    return f"mosaic {name}" if sys.argv[0].startswith("mosaic ") else f"python experiments/{name}.py"
