"""Makes values from groups of the configuration, with errors that name the group."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from experiments.config.compose import FILE_KEYS
from mosaic.core.checks import require_name

_Made = TypeVar("_Made")

MOST_KEPT = 32
_kept: dict[str, Any] = {}


def make(config: Mapping[str, Any], label: str) -> Any:
    """Instantiate a group, showing the cause of a failure and not Hydra's way to it."""
    require_name(config.get("_target_"), f"{label}._target_")
    try:
        return instantiate(config, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, ImportError | AttributeError):
            reason = " ".join(str(cause).split())
            raise ValueError(f"{label}._target_ must be importable, got {config['_target_']!r} ({reason})") from error
        raise _labelled(cause, label) from error


def make_once(config: Mapping[str, Any], label: str) -> Any:
    """Make a value that never changes, or give the one that an equal group has made: points of a sweep share it."""
    return once(config, label, lambda: make(config, label))


def once(config: Mapping[str, Any], label: str, build: Callable[[], _Made]) -> _Made:
    """Build a value that never changes from a group, or give the one that was built from an equal group.

    Of a group that names a file it is built anew: the file may have changed.
    """
    if _names_a_file(config):
        return build()
    key = f"{label}: {config!r}"
    if key not in _kept:
        if len(_kept) == MOST_KEPT:
            del _kept[next(iter(_kept))]
        _kept[key] = build()
    built: _Made = _kept[key]
    return built


def call(function: Callable[..., Any], label: str, /, **values: Any) -> Any:
    """Call with the values of a group, naming the group where an argument is missing or unknown."""
    try:
        return function(**values)
    except TypeError as error:
        raise _labelled(error, label) from error


def _labelled(error: BaseException, label: str) -> BaseException:
    """Name the group in Python's own message about arguments, which names a function that a user never sees."""
    _, found, problem = str(error).partition("() ")
    if isinstance(error, TypeError) and found:
        return TypeError(f"{label} {problem}")
    return error


def _names_a_file(config: Mapping[str, Any]) -> bool:
    return any(
        _names_a_file(value) if isinstance(value, Mapping) else key in FILE_KEYS and isinstance(value, str)
        for key, value in config.items()
    )
