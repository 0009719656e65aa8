"""What a quote leaves to the batch of the same file: the plans of its pilot's stages, beside their journal.

A batch that begins takes what is there then; a quote that comes later would change what it goes on from.
"""

from collections.abc import Sequence
from pathlib import Path

from mosaic.config.places import JOURNAL
from mosaic.core.errors import RunFolderError
from mosaic.core.plan import Plan
from mosaic.planning.plan_file import load_plans, plans_to_json
from mosaic.report.run_folder import write_file

QUOTE = "quote"
"""A quote's folder in that of its batch."""
STAGES = "stages.json"
ASKED = "asked.json"
"""The stages that a batch goes on from; without any, no quote came before it."""


def keep_plans(folder: Path, plans: Sequence[Plan]) -> None:
    """Keep the plans of all stages so far, before the last of them runs."""
    write_file(folder, STAGES, plans_to_json(plans).encode())


def asked_before(work: Path) -> tuple[Plan, ...]:
    """Give the stages that were asked before a batch began.

    Raises
    ------
    PlanError, OSError
        If a file of them cannot be read, or written.
    """
    stages, asked = work / QUOTE / STAGES, work / ASKED
    if not asked.exists():
        if has_begun(work) or not stages.exists():
            return ()
        write_file(work, ASKED, stages.read_bytes())
    return load_plans(asked)


def check_not_begun(work: Path) -> None:
    """Check that a quote comes before its batch, or is the one that the batch went on from.

    Raises
    ------
    RunFolderError
        If it does not.
    """
    if has_begun(work) and not (work / ASKED).exists():
        raise RunFolderError(f"{work}: its batch has begun, and a quote comes before; --work names another folder")


def has_begun(work: Path) -> bool:
    """Tell whether a batch has asked anything of its own."""
    journal = work / JOURNAL
    return any(path.is_dir() and not path.name.startswith(f"{QUOTE}_") for path in journal.glob("*"))
