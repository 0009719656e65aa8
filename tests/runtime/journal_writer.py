"""Writes a journal until it is killed: says each number on stdout once its record is on the disk."""

import sys
from contextlib import closing
from pathlib import Path

import msgspec

from mosaic.runtime.journal import FILE_NAME
from mosaic.runtime.log import Log, frame
from mosaic.runtime.run_lock import hold


def write(folder: Path, first: int) -> None:
    with hold(folder), closing(Log(folder / FILE_NAME)) as log:
        number = first
        while True:
            log.append([frame(msgspec.json.encode({"number": number + i, "text": "x" * 3000})) for i in range(3)])
            print(number + 2, flush=True)
            number += 3


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]))
