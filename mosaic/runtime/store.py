"""Stores measurements by their inputs, so that runs with the same world measure once."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import is_dataclass
from hashlib import sha256
from os import getpid
from pathlib import Path
from typing import TypeVar

import msgspec

_Measured = TypeVar("_Measured")

MOST_KEPT = 32
_digests: dict[int, tuple[object, str]] = {}
"""Digests of dataclasses, by identity: many measurements have the same workload and worlds as inputs."""


class Store:
    """A folder of measurements, one file each; several processes may use it at once.

    Files that cannot be read or written are measured again: a store only saves time.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, decided_by: Sequence[object], kind: type[_Measured]) -> _Measured | None:
        """Read the stored measurement of the same inputs; None: it must be measured.

        Parameters
        ----------
        decided_by
            All inputs of the measurement, and the code that takes it, by ``repr``. Dataclasses must not change.
        kind
            Type of the measurement: a dataclass.
        """
        with suppress(OSError, msgspec.DecodeError):
            return msgspec.json.decode(self._path(decided_by, kind).read_bytes(), type=kind)
        return None

    def write(self, decided_by: Sequence[object], measured: object) -> None:
        """Store a measurement."""
        path = self._path(decided_by, type(measured))
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(f".{getpid()}.part")
            part.write_bytes(msgspec.json.encode(measured))
            part.replace(path)

    def _path(self, decided_by: Sequence[object], kind: type[object]) -> Path:
        key = sha256("\n".join(map(_digest, decided_by)).encode()).hexdigest()[:32]
        return self._folder / f"{kind.__name__}-{key}.json"


def _digest(value: object) -> str:
    if not is_dataclass(value):
        return sha256(repr(value).encode()).hexdigest()
    if id(value) not in _digests:
        if len(_digests) == MOST_KEPT:
            del _digests[next(iter(_digests))]
        _digests[id(value)] = value, sha256(repr(value).encode()).hexdigest()
    return _digests[id(value)][1]


def digest_of(folders: Sequence[Path]) -> str:
    """Digest the code in some folders: another engine model gives another measurement."""
    digest = sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
