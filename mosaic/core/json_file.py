"""Reads JSON files of mosaic's own values into the dataclasses that they were written from, and checks them."""

from pathlib import Path
from typing import TypeVar

import msgspec

Value = TypeVar("Value")


def read_json(path: str | Path, kind: type[Value], label: str, error: type[Exception]) -> Value:
    """Read a file as a value of a type; an unknown key is refused.

    Parameters
    ----------
    path, kind
        The file, and the type of its content: a dataclass, or containers of dataclasses.
    label
        What the file is, for messages.
    error
        What to raise.

    Raises
    ------
    Exception
        The given one, with a message that names the file, the position in it and the rule.
    """
    try:
        raw = msgspec.json.decode(Path(path).read_bytes())
        value = msgspec.convert(raw, kind)
        _refuse_unknown(raw, msgspec.to_builtins(value), "")
    except OSError as cause:
        raise error(f"{label} {path}: cannot be read ({cause.strerror})") from cause
    except UnicodeDecodeError as cause:
        raise error(f"{label} {path}: not UTF-8 text ({cause.reason} at byte {cause.start})") from cause
    except msgspec.ValidationError as cause:
        rule, _, where = str(cause).partition(" - at `$")
        raise error(f"{label} {path}: {where.strip('`.') or 'the file'}: {rule}") from cause
    except msgspec.DecodeError as cause:
        raise error(f"{label} {path}: not JSON ({cause})") from cause
    return value


def _refuse_unknown(raw: object, known: object, where: str) -> None:
    """Compare a file's content with the value made of it: msgspec skips keys that a dataclass does not have."""
    if isinstance(raw, dict) and isinstance(known, dict):
        for key, value in raw.items():
            if key not in known:
                raise msgspec.ValidationError(f"unknown key {key!r}, known are {sorted(known)} - at `${where}`")
            _refuse_unknown(value, known[key], f"{where}.{key}")
    elif isinstance(raw, list) and isinstance(known, list | tuple):
        for number, value in enumerate(raw):
            if type(value) in (dict, list):
                _refuse_unknown(value, known[number], f"{where}[{number}]")
