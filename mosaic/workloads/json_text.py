"""Reads text and JSON from files that people give; what cannot be taken as it stands is refused with its place."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def read_text(path: str | Path, field: str = "workload.path") -> str:
    """Read a text in UTF-8, with or without a byte order mark.

    Raises
    ------
    ValueError
        Naming the field, the rule and the path.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"{field} must be a readable file, got {str(path)!r} ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{field} must be UTF-8 text, got {str(path)!r} ({error})") from error


def parse_json(text: str, at: str) -> object:
    """Read JSON whose objects have every key once and whose strings can be written as UTF-8.

    Raises
    ------
    ValueError
        Naming the place, the key where there is one, the rule and the value.
    """
    errors: list[str] = []

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entry: dict[str, Any] = {}
        for key, value in pairs:
            if key in entry:
                errors.append(f"{key!a} must be given once, got it twice")
            for string in (key, *(value if isinstance(value, list) else [value])):
                if isinstance(string, str) and _LONE_SURROGATE.search(string):
                    errors.append(f"{key!a} must be text without lone surrogates, got {string!a}")
            entry[key] = value
        return entry

    try:
        value: object = json.loads(text, object_pairs_hook=build)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{at}: must be JSON, got {text[:60]!r} ({error})") from error
    if errors:
        raise ValueError(f"{at}: {errors[0]}")
    return value


def json_object(value: object, at: str) -> dict[str, Any]:
    """Return the value if it is an object; an array is named as such, since it may be the whole file."""
    if isinstance(value, list):
        raise TypeError(f"{at}: must be an object, got an array of {len(value)}; lists are read from .json files")
    if not isinstance(value, dict):
        raise TypeError(f"{at}: must be an object, got {value!r}")
    return value


def json_lines(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read the objects of a file with one a line, each with its place; blank lines are skipped.

    Raises
    ------
    ValueError, TypeError
        Naming the file, the line, the rule and the value.
    """
    text = read_text(path)
    if text.lstrip().startswith("["):
        raise TypeError(f"{path}: must have an object a line, got an array; lists are read from .json files")
    # NOTE: split at newlines only; str.splitlines would also split at separators inside a string.
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            at = f"{path}, line {number}"
            try:
                value = parse_json(line, at)
            except ValueError as error:
                if number < len(lines):
                    raise
                raise ValueError(f"{error}; the line has no end: is the file still being written?") from error
            yield at, json_object(value, at)
