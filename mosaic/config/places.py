"""Where commands write; where no place is named, never into what is committed."""

from pathlib import Path

SWEEPS = Path("results/multirun")
"""Git ignores it."""
JOURNAL = "journal"
"""Folder inside a real run's, with what has finished, what workers print, and the run's lock."""


def own_folder(command: str) -> Path:
    """Name the folder of a command's files; committed ones are written where ``--out`` names their folder."""
    return SWEEPS / command
