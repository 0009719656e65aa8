"""Parses JSON from users; values that cannot be used are refused with their position."""

import json
import re
from typing import Any

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


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
    """Return the value if it is an object; the error for an array gives only its length.

    Raises
    ------
    TypeError
        Naming the place, the rule and the value.
    """
    if isinstance(value, list):
        raise TypeError(f"{at}: must be an object, got an array of {len(value)}")
    if not isinstance(value, dict):
        raise TypeError(f"{at}: must be an object, got {value!r}")
    return value
