"""Whether a run's folder is this command's to go on with, and its beginning."""

import shutil
from collections.abc import Collection, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from mosaic.config.places import JOURNAL
from mosaic.core.errors import RunFolderError
from mosaic.core.results import SERVED
from mosaic.report.run_folder import CONFIG, SUMMARY, begin_run, is_complete, read_config, read_json
from mosaic.runtime.journal import read_journal

QUOTE = "quote"
"""A quote's folder in that of its batch: both go on in one journal."""
QUESTIONS_DIGEST = "workload.path_sha256"


def begin(
    folder: Path, recorded: Mapping[str, Any], journal: Path | None = None, *, may_differ: Collection[str] = ()
) -> None:
    """Write down a run's configuration, whose lock is held; a folder without an answer is any configuration's.

    Parameters
    ----------
    folder, recorded
        Of the run: its folder, and its configuration as it is recorded there.
    journal
        Where its answers are; None: in the folder.
    may_differ
        Dotted keys that may differ from those of an earlier start.

    Raises
    ------
    RunFolderError
        If the folder holds answers of another configuration, or a file cannot be written.
    """
    try:
        begin_run(folder, recorded, may_differ=may_differ)
    except RunFolderError:
        journal = folder / JOURNAL if journal is None else journal
        if not (folder / CONFIG).exists() or not is_blank(folder, journal):
            raise
        for path in _journals(journal):
            shutil.rmtree(path)
        for name in (SUMMARY, CONFIG):
            (folder / name).unlink(missing_ok=True)
        begin_run(folder, recorded)


def is_blank(folder: Path, journal: Path | None = None) -> bool:
    """Tell whether nothing has been answered in a folder; of a complete run on engines, calls must have failed."""
    journal = folder / JOURNAL if journal is None else journal
    if is_complete(folder) and not (journal.exists() and read_json(folder / SUMMARY).get("num_failed_calls")):
        return False
    journals = _journals(journal)
    return not any(record.status in SERVED for path in journals for record in read_journal(path).ended)


def _journals(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*") if path.is_dir()]


class Quoted(NamedTuple):
    """A quote's pilot, which its batch begins with."""

    per_expert: int
    num_workers: int | None
    """Of the first stretch; None: an older quote does not say."""


def quote_before(work: Path) -> Quoted | None:
    """Give the quote that came before a batch; None: there was none."""
    if not (work / QUOTE / CONFIG).exists():
        return None
    recorded = read_config(work / QUOTE).get(QUOTE) or {}
    return Quoted(int(recorded["calls_per_expert"]), recorded.get("num_workers")) if recorded else None


def check_not_begun(work: Path) -> None:
    """Check that a quote comes before its batch, or is the one that the batch went on from.

    Raises
    ------
    RunFolderError
        If it does not.
    """
    if (work / CONFIG).exists() and not is_blank(work) and quote_before(work) is None:
        raise RunFolderError(f"{work}: its batch has begun, and a quote comes before; --work names another folder")


def grown_keys(folder: Path, recorded: Mapping[str, Any]) -> tuple[str, ...]:
    """Name the keys that differ from a folder's because lines were appended to the file of questions."""
    if not (folder / CONFIG).exists():
        return ()
    before, now = (config.get("workload") for config in (read_config(folder), recorded))
    if not isinstance(before, Mapping) or not isinstance(now, Mapping):
        return ()
    digest = before.get("path_sha256")
    if digest in (None, now.get("path_sha256")) or now.get("path_sha256") is None:
        return ()
    return (QUESTIONS_DIGEST,) if begins_with(Path(now["path"]), str(digest)) else ()


def begins_with(path: Path, digest: str) -> bool:
    """Tell whether the first lines of a file have a SHA-256, with or without the last one's end."""
    so_far = sha256()
    with path.open("rb") as file:
        for line in file:
            text = line.rstrip(b"\r\n")
            for part in (text, line[len(text) :]):
                so_far.update(part)
                if so_far.hexdigest() == digest:
                    return True
    return False
