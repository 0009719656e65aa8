"""Limits of the value types' fields, and checks between fields: each error names field, rule and value."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from functools import cache, partial
from types import MappingProxyType, NoneType, UnionType
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True, slots=True)
class Limit:
    """Limits of a number; a text must not be empty. Used in ``Annotated`` with a field's type."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None


Name: TypeAlias = Annotated[str, Limit()]
AtLeast0: TypeAlias = Annotated[int, Limit(at_least=0)]
AtLeast1: TypeAlias = Annotated[int, Limit(at_least=1)]
NotNegative: TypeAlias = Annotated[float, Limit(at_least=0)]
Positive: TypeAlias = Annotated[float, Limit(above=0)]
Share: TypeAlias = Annotated[float, Limit(at_least=0, at_most=1)]

Kind = TypeVar("Kind")
_Check: TypeAlias = Callable[[Any, str], Any]
"""Refuses a value under the given name, or returns it converted to its type."""
_ITEMS: Mapping[Any, str] = {str: " of strings", int: " of whole numbers", float: " of numbers"}
"""Items of lists, for messages."""


def check_fields(value: object, owner: str, names: Mapping[str, str] = MappingProxyType({})) -> None:
    """Check the fields of a frozen dataclass by their types, and convert them to these types.

    Numbers and text are checked if they have a ``Limit``; bools, enums, literals and tuples always. A name becomes a
    member of its enum. A list becomes a tuple. The entries of a mapping are checked one by one.

    Parameters
    ----------
    value
        A dataclass; ``checked`` does this for its class.
    owner
        Prefix of a field's name in messages, such as ``"engine."``.
    names
        Names of fields in messages, where the source of the value has another name.
    """
    kind: Any = type(value)
    for name, check in _checks_of(kind):
        given = getattr(value, name)
        kept = check(given, owner + (names.get(name, name) if names else name))
        if kept is not given:
            object.__setattr__(value, name, kept)


def checked(owner: str) -> Callable[[type[Kind]], type[Kind]]:
    """Check a dataclass when it is created: first its fields, then the rules of its own ``__post_init__``.

    Used below ``@dataclass``.

    Parameters
    ----------
    owner
        Prefix of a field's name in messages; ``{0.name}`` in it is the value's name.

    Examples
    --------
    >>> @dataclass(frozen=True)
    ... @checked("window.")
    ... class Window:
    ...     size: AtLeast1
    >>> Window(0)
    Traceback (most recent call last):
    ValueError: window.size must be at least 1, got 0
    """

    def decorate(kind: type[Kind]) -> type[Kind]:
        own: Callable[[Kind], None] | None = vars(kind).get("__post_init__")

        def check(value: Kind) -> None:
            check_fields(value, owner.format(value))
            if own is not None:
                own(value)

        kind.__post_init__ = check  # type: ignore[attr-defined]
        return kind

    return decorate


@cache
def _checks_of(kind: Any) -> tuple[tuple[str, _Check], ...]:
    hints = get_type_hints(kind, include_extras=True)
    found = ((field.name, _check_of(hints[field.name])) for field in fields(kind) if field.init)
    return tuple((name, check) for name, check in found if check is not None)


def _check_of(hint: Any) -> _Check | None:
    """Find the check of a type; None: it has no limits."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        limit = next((found for found in arguments[1:] if isinstance(found, Limit)), None)
        inner = _check_of(arguments[0])
        return inner if limit is None else partial(_check_limit, arguments[0], limit)
    if origin in (Union, UnionType) and len(arguments) == 2 and NoneType in arguments:
        inner = _check_of(next(kind for kind in arguments if kind is not NoneType))
        return None if inner is None else partial(_check_optional, inner)
    if origin is Literal:
        return partial(_check_choice, arguments)
    if origin is tuple and arguments[1:] == (...,):
        item = get_args(arguments[0])[0] if get_origin(arguments[0]) is Annotated else arguments[0]
        return partial(_check_sequence, _ITEMS.get(item, ""), _check_of(arguments[0]))
    if origin is Mapping and (inner := _check_of(arguments[1])) is not None:
        return partial(_check_entries, inner)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return partial(_check_member, hint)
    return _check_bool if hint is bool else None


def _check_limit(kind: type, limit: Limit, value: Any, name: str) -> Any:
    if kind is str:
        require_name(value, name)
    elif kind is int:
        require_count(value, name, at_least=limit.at_least, at_most=limit.at_most)
    else:
        require_number(
            value, name, above=limit.above, at_least=limit.at_least, below=limit.below, at_most=limit.at_most
        )
    return value


def _check_optional(check: _Check, value: Any, name: str) -> Any:
    return None if value is None else check(value, name)


def _check_choice(choices: Sequence[object], value: Any, name: str) -> Any:
    require(value in choices, name, f"one of {list(choices)}", value)
    return value


def _check_member(kind: type[Enum], value: Any, name: str) -> Any:
    if isinstance(value, kind):
        return value
    names = [member.value for member in kind]
    require(value in names, name, f"one of {names}", value)
    return kind(value)


def _check_sequence(items: str, check: _Check | None, value: Any, name: str) -> Any:
    if not isinstance(value, tuple):
        if isinstance(value, str | Mapping) or not isinstance(value, Iterable):
            raise TypeError(f"{name} must be a list{items}, got {value!r}")
        value = tuple(value)
    return value if check is None or not value else tuple(check(item, name) for item in value)


def _check_entries(check: _Check, value: Any, name: str) -> Any:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a mapping, got {value!r}")
    for key, entry in value.items():
        check(entry, f"{name}.{key}")
    return value


def _check_bool(value: Any, name: str) -> Any:
    if not isinstance(value, bool):  # a "false" in quotes would count as true
        raise TypeError(f"{name} must be true or false, got {value!r}")
    return value


def require(condition: bool, field: str, rule: str, value: object) -> None:
    """Raise ``ValueError`` naming the field, the rule and the value unless the condition holds."""
    if not condition:
        raise ValueError(f"{field} must be {rule}, got {value!r}")


def require_number(
    value: object,
    field: str,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> None:
    """Check a finite real number (not a bool) against optional limits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{field} must be a number, got {value!r}")
    require(math.isfinite(value), field, "finite", value)
    if above is not None:
        require(value > above, field, f"above {above:g}", value)
    if at_least is not None:
        require(value >= at_least, field, f"at least {at_least:g}", value)
    if below is not None:
        require(value < below, field, f"below {below:g}", value)
    if at_most is not None:
        require(value <= at_most, field, f"at most {at_most:g}", value)


def require_count(value: object, field: str, *, at_least: float | None = 0, at_most: float | None = None) -> None:
    """Check a whole number (not a bool) against a lower limit and, where given, an upper one."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{field} must be a whole number, got {value!r}")
    if at_least is not None:
        require(value >= at_least, field, f"at least {at_least}", value)
    if at_most is not None:
        require(value <= at_most, field, f"at most {at_most}", value)


def require_name(value: object, field: str) -> None:
    """Check a non-empty string."""
    if not isinstance(value, str):
        raise TypeError(f"{field} must be a string, got {value!r}")
    require(bool(value.strip()), field, "a non-empty string", value)


def require_unique(values: Iterable[object], field: str) -> None:
    """Check that no value occurs twice."""
    seen: set[object] = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{field} must be unique, got {value!r} twice")
        seen.add(value)
