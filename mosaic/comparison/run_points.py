"""Reads from run folders the data for a comparison."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mosaic.core.errors import RunFolderError
from mosaic.report.run_folder import CONFIG, SUMMARY, flatten, read_config, read_summary
from mosaic.report.summary_text import describe_disturbances

NEEDED = (
    "workload", "scheduler", "backend", "gate", "costs", "seed", "num_failed_calls", "expert_makespan_s",
    "end_to_end_s", "gpu_idle_frac", "num_loads", "problem_fingerprint",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPoint:
    """One complete run, with the data for a comparison."""

    folder: Path
    summary: dict[str, Any]
    leaves: dict[str, Any]
    """The configuration by dotted key, with the names of costs, backend, gate and aggregator from the summary."""

    @property
    def workload(self) -> str:
        return str(self.summary["workload"])

    @property
    def scheduler(self) -> str:
        return str(self.summary["scheduler"])

    @property
    def seed(self) -> int:
        return int(self.summary["seed"])


def collect_runs(folders: Sequence[Path], *, disturbed: bool = False) -> tuple[list[RunPoint], list[str]]:
    """Read all runs at or below some folders; return them and, by folder and reason, those left out.

    Interrupted runs, and runs that lost workers, are left out unless ``disturbed``: their times are not only due to
    their policy.

    Raises
    ------
    ValueError
        If a folder does not exist, or no run is complete.
    """
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"folder must be an existing multirun or run folder, got '{folder}'")
    runs, skipped = [], []
    for folder in dict.fromkeys(run for root in folders for run in _run_folders(root)):
        try:
            runs.append(_read_run(folder, disturbed))
        except RunFolderError as error:
            skipped.append(str(error))
    if not runs:
        where = ", ".join(f"'{folder}'" for folder in folders)
        reasons = "".join(f"\n  skipped {reason}" for reason in skipped)
        raise ValueError(f"no complete run below {where}{reasons}")
    return runs, skipped


def _run_folders(root: Path) -> Iterator[Path]:
    """Find run folders, and empty ones, whose runs ended before they started."""
    inner = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if (root / CONFIG).exists() or (root / SUMMARY).exists() or not inner:
        yield root.resolve()
        return
    for path in inner:
        yield from _run_folders(path)


def seen_from_here(folder: Path) -> str:
    """Return a path relative to the current folder, if it is below it."""
    here = Path.cwd()
    return str(folder.relative_to(here)) if folder.is_relative_to(here) else str(folder)


def _read_run(folder: Path, disturbed: bool) -> RunPoint:
    name = seen_from_here(folder)
    summary = read_summary(folder)
    if summary is None:
        raise RunFolderError(f"{name}: incomplete, no readable {SUMMARY}")
    missing = [key for key in NEEDED if key not in summary]
    if missing:
        raise RunFolderError(f"{name}: {SUMMARY} lacks {', '.join(missing)}")
    if summary["expert_makespan_s"] is None:
        raise RunFolderError(f"{name}: planned but not run (backend {summary['backend']})")
    if summary["num_failed_calls"]:
        raise RunFolderError(
            f"{name}: {summary['num_failed_calls']} calls failed, so its makespan compares with nothing"
        )
    disturbances = describe_disturbances(summary)
    if disturbances and not disturbed:
        raise RunFolderError(
            f"{name}: {disturbances}, so its times are not its policy's alone; compare.py --disturbed counts it"
        )
    names = {f"{part}.name": summary[part] for part in ("costs", "backend", "gate")}
    if summary.get("aggregator") is not None:
        names["aggregator.name"] = summary["aggregator"]
    return RunPoint(folder=folder, summary=summary, leaves=flatten(read_config(folder)) | names)
