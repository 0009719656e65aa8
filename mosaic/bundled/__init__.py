"""What mosaic needs beside itself: the simulator and the files of the configuration.

A checkout has them as folders at its top. A wheel has the same files here (setup.py puts them there), so that
site-packages has no other name than mosaic's own. A name like `sim` could belong to another package.
"""

import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
BUNDLE = _HERE if (_HERE / "conf").is_dir() else _HERE.parents[1]
"""The folder that holds sim/ and conf/."""


def make_importable() -> Path:
    """Let this process import `sim`; gives the folder that it stands in."""
    if str(BUNDLE) not in sys.path:
        sys.path.insert(0, str(BUNDLE))
    return BUNDLE
