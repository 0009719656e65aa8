"""Measurements that are kept by what decides them, so that runs with the same world measure once."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import sha256
from os import getpid
from pathlib import Path
from typing import TypeVar

import msgspec

_Measured = TypeVar("_Measured")


class Store:
    """A folder of measurements, a file each; several processes may use it at once.

    What cannot be read, or not be written, is measured again: a store saves time and nothing else.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._digests: dict[int, tuple[object, str]] = {}
        """Of values, by identity: several measurements of a run are decided by the same workload and worlds."""

    def get(self, decided_by: Sequence[object], kind: type[_Measured], measure: Callable[[], _Measured]) -> _Measured:
        """Read what the same values have decided before, or measure it.

        Parameters
        ----------
        decided_by
            All that decides the measurement, with the code that takes it; told apart by ``repr``. Values stay as they
            are while the store is in use.
        kind
            Of what is measured: a dataclass.
        measure
            Measures it.
        """
        key = sha256("\n".join(map(self._digest, decided_by)).encode()).hexdigest()[:32]
        path = self._folder / f"{kind.__name__}-{key}.json"
        with suppress(OSError, msgspec.DecodeError):
            return msgspec.json.decode(path.read_bytes(), type=kind)
        measured = measure()
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(f".{getpid()}.part")
            part.write_bytes(msgspec.json.encode(measured))
            part.replace(path)
        return measured

    def _digest(self, value: object) -> str:
        if id(value) not in self._digests:
            self._digests[id(value)] = value, sha256(repr(value).encode()).hexdigest()
        return self._digests[id(value)][1]


def digest_of(folders: Sequence[Path]) -> str:
    """Digest the code in some folders: another engine model measures something else."""
    digest = sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
