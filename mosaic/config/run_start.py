"""Checks the start of a run: whether its folder belongs to this command, and whether it can run at all."""

import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from mosaic.config.compose import compose_config
from mosaic.config.errors import log
from mosaic.config.job import backend_from
from mosaic.core.errors import BackendError, RunFolderError
from mosaic.core.results import SERVED
from mosaic.core.workload import Workload
from mosaic.planning.feasibility import TooLongError
from mosaic.report.run_folder import CONFIG, JOURNAL, SUMMARY, begin_run, is_complete, num_failed_calls, read_config
from mosaic.runtime.job import Job
from mosaic.runtime.journal import EndedCall, read_entries

QUOTE = "quote"
"""A quote's folder in that of its batch: both use one journal."""
QUESTIONS_DIGEST, QUESTIONS_LIMIT = "workload.path_sha256", "workload.limit"
LEAST_BYTES = 64 * 2**20
CALL_BYTES = 16 * 2**10
"""Assumed: a response of a thousand tokens, in the journal, in the run folder and in the output, and rows of tables."""


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
        if not (folder / CONFIG).exists() or has_begun(folder, journal):
            raise
        for path in _journals(journal):
            shutil.rmtree(path)
        for name in (SUMMARY, CONFIG):
            (folder / name).unlink(missing_ok=True)
        begin_run(folder, recorded)


def has_failed_calls(folder: Path, journal: Path | None = None) -> bool:
    """Return whether a real run is complete except for failed calls, which are then repeated."""
    return (journal or folder / JOURNAL).exists() and num_failed_calls(folder) > 0


def has_begun(folder: Path, journal: Path | None = None) -> bool:
    """Return whether a run has answers: it is resumed, and may need no engine any more."""
    return (folder / CONFIG).exists() and not is_blank(folder, journal)


def is_blank(folder: Path, journal: Path | None = None) -> bool:
    """Tell whether nothing has been answered in a folder; of a complete run on engines, calls must have failed."""
    journal = folder / JOURNAL if journal is None else journal
    if is_complete(folder) and not has_failed_calls(folder, journal):
        return False
    journals = _journals(journal)
    entries = (entry for path in journals for entry in read_entries(path))
    return not any(isinstance(entry, EndedCall) and entry.record.status in SERVED for entry in entries)


def _journals(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*") if path.is_dir()]


def quote_before(work: Path) -> Mapping[str, int]:
    """Give what is recorded of the quote that came before a batch; empty: there was none."""
    is_there = (work / QUOTE / CONFIG).exists()
    recorded: Mapping[str, int] | None = read_config(work / QUOTE).get(QUOTE) if is_there else None
    return recorded or {}


def check_not_begun(work: Path) -> None:
    """Check that a quote precedes its batch, or is the one that the batch continued.

    Raises
    ------
    RunFolderError
        If it is neither.
    """
    if has_begun(work) and not quote_before(work):
        raise RunFolderError(f"{work}: its batch has begun, and a quote comes before; --work names another folder")


def grown_keys(folder: Path, recorded: Mapping[str, Any]) -> tuple[str, ...]:
    """Name the keys that differ from a folder's because of more questions: in the file, or by a higher limit."""
    if not (folder / CONFIG).exists():
        return ()
    before, now = (config.get("workload") for config in (read_config(folder), recorded))
    if not isinstance(before, Mapping) or not isinstance(now, Mapping):
        return ()
    limit, limit_now = before.get("limit"), now.get("limit")
    grown = [QUESTIONS_LIMIT] if limit is not None and (limit_now is None or limit_now > limit) else []
    digest, digest_now = before.get("path_sha256"), now.get("path_sha256")
    has_changed = None not in (digest, digest_now) and digest != digest_now
    if has_changed and begins_with(Path(now["path"]), str(digest)):
        grown.append(QUESTIONS_DIGEST)
    return tuple(grown)


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


def log_notes(workload: Workload, see: str = "") -> None:
    """Print what was guessed of a file of questions, ignored in it and left out of it, a line each.

    Parameters
    ----------
    workload
        Of the file.
    see
        Where all bad lines are listed.
    """
    for note in workload.notes:
        log(note)
    if bad := workload.bad_lines:
        num_lines = len(workload.questions) + len(bad)
        others = f", and {len(bad) - 1:,} more" if len(bad) > 1 else ""
        log(f"left out of {num_lines:,} questions{see}: {bad[0].reason}{others}")


# What a real run needs is checked before there is a folder, and before anything is sent.


@contextmanager
def naming_all_problems(folders: Sequence[Path], *, is_here: bool) -> Iterator[None]:
    """If checkpoints are missing or contexts too short, add all other reasons that would keep the run from starting.

    Parameters
    ----------
    folders
        Where the run writes, first of all its run folder.
    is_here
        Whether vLLM would run on this machine.

    Raises
    ------
    BackendError
        Instead of the error about checkpoints or contexts.
    """
    from mosaic.engines.checkpoints import CheckpointError  # a simulated run does without

    try:
        yield
    except (CheckpointError, TooLongError) as error:
        if has_begun(folders[0]):
            raise
        _refuse([*str(error).splitlines(), *(engine_problems() if is_here else ()), *disk_problems(folders, 0)])


def check_start(job: Job, folders: Sequence[Path]) -> None:
    """Check a run on real engines without answers before it makes its folder; all problems form one error.

    If another command works in the folder, no engine is started: the lock reports it.

    Raises
    ------
    BackendError
        Naming all that is missing.
    """
    if job.site.kind == "simulated":
        return
    from mosaic.engines.site import EngineSite  # a simulated run does without

    if isinstance(job.site, EngineSite) and not has_begun(folders[0]) and not job.site.is_in_use:
        on_disk = disk_problems(folders, len(job.workload.calls))
        _refuse([*job.site.problems(bool(on_disk)), *on_disk])


def _refuse(found: Sequence[str]) -> None:
    if found:
        raise BackendError(found[0] if len(found) == 1 else "\n  - ".join(("this run cannot start:", *found)))


def engine_problems() -> Sequence[str]:
    """Import vLLM if there is no job yet whose site would do it."""
    from mosaic.config import engines
    from mosaic.engines.local_launcher import LocalLauncher

    backend = compose_config(["backend=vllm"])["backend"]
    options = backend_from(backend).options
    with closing(LocalLauncher(options, engines.VLLM_ENGINE)) as launcher:
        return launcher.problems()


def disk_problems(folders: Sequence[Path], num_calls: int) -> list[str]:
    """List the file systems without enough room for the files of a run with so many calls."""
    needed, found = LEAST_BYTES + num_calls * CALL_BYTES, {}
    for folder in folders:
        there = next(place for place in (folder, *folder.resolve().parents) if place.is_dir())
        free = shutil.disk_usage(there).free
        if free < needed:
            found[there.stat().st_dev] = (
                f"{there}: the disk must have {needed / 2**20:,.0f} MiB free for {num_calls:,} calls, "
                f"got {free / 2**20:,.0f} MiB"
            )
    return [*found.values()]
