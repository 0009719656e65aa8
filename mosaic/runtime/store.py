"""Measurements that are kept by what decides them, so that runs with the same world measure once."""

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
"""Of dataclasses, by identity: many measurements are decided by the same workload and worlds."""


class Store:
    """A folder of measurements, a file each; several processes may use it at once.

    What cannot be read, or not be written, is measured again: a store saves time and nothing else.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, decided_by: Sequence[object], kind: type[_Measured]) -> _Measured | None:
        """Read what the same values have decided before; None: it must be measured.

        Parameters
        ----------
        decided_by
            All that decides the measurement, with the code that takes it, by its ``repr``. Dataclasses stay as
            they are.
        kind
            Of what is measured: a dataclass.
        """
        with suppress(OSError, msgspec.DecodeError):
            return msgspec.json.decode(self._path(decided_by, kind).read_bytes(), type=kind)
        return None

    def write(self, decided_by: Sequence[object], measured: object) -> None:
        """Keep a measurement."""
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
    """Digest the code in some folders: another engine model measures something else."""
    digest = sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
