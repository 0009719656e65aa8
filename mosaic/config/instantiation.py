"""Makes values from groups of the configuration, with errors that name the group."""

from collections.abc import Callable, Mapping
from functools import partial
from pkgutil import resolve_name
from typing import Any, TypeVar

from mosaic.config.compose import FILE_KEYS
from mosaic.core.checks import require, require_name
from mosaic.report.run_folder import flatten

_Made = TypeVar("_Made")

TARGET, PARTIAL = "_target_", "_partial_"
MOST_KEPT = 32
_kept: dict[str, Any] = {}


def make(config: Mapping[str, Any], label: str) -> Any:
    """Call the target of a group with the group's other values; nested groups are made first.

    Values are not changed. Hydra's own ``instantiate`` would resolve ``${...}`` in them once more, but names of models
    and of files are data.

    Raises
    ------
    ValueError, TypeError
        Naming the group, if its target cannot be imported or called with these values.
    """
    target = import_callable(config.get(TARGET), f"{label}.{TARGET}")
    values = {
        key: _make_below(value, f"{label}.{key}") for key, value in config.items() if key not in (TARGET, PARTIAL)
    }
    return partial(target, **values) if config.get(PARTIAL) else call(target, label, **values)


def _make_below(value: Any, label: str) -> Any:
    if isinstance(value, Mapping):
        if TARGET in value:
            return make(value, label)
        return {key: _make_below(entry, f"{label}.{key}") for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_make_below(entry, f"{label}[{number}]") for number, entry in enumerate(value)]
    return value


def import_callable(path: Any, field: str) -> Callable[..., Any]:
    """Import an object that the user names by its dotted path.

    Raises
    ------
    ValueError, TypeError
        If it cannot be imported, or called.
    """
    require_name(path, field)
    try:
        found: Callable[..., Any] = resolve_name(path)
    except Exception as error:  # a module of the user's own may raise anything
        reason = " ".join(str(error).split())
        raise ValueError(f"{field} must be importable, got {path!r} ({reason})") from error
    require(callable(found), field, "something that can be called", path)
    return found


def make_once(config: Mapping[str, Any], label: str) -> Any:
    """Make a value that never changes, or return the one of an equal group: points of a sweep share it."""
    return once(config, label, lambda: make(config, label))


def once(config: Mapping[str, Any], label: str, build: Callable[[], _Made]) -> _Made:
    """Build a value that never changes from a group, or return the one that was built from an equal group.

    From a group that names a file it is built again: the file may have changed.
    """
    leaves = flatten(config).items()
    if any(key.rpartition(".")[2] in FILE_KEYS and isinstance(value, str) for key, value in leaves):
        return build()
    key = f"{label}: {config!r}"
    if key not in _kept:
        if len(_kept) == MOST_KEPT:
            del _kept[next(iter(_kept))]
        _kept[key] = build()
    built: _Made = _kept[key]
    return built


def call(function: Callable[..., Any], label: str, /, **values: Any) -> Any:
    """Call with the values of a group; errors name the group if an argument is missing or unknown."""
    try:
        return function(**values)
    except TypeError as error:
        # Python's own message about arguments names a function that a user never sees.
        _, found, problem = str(error).partition("() ")
        if not found:
            raise
        raise TypeError(f"{label} {problem}") from error
