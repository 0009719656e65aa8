"""Reads the header of a safetensors file: eight bytes of length, JSON, data; enough to tell a file that was cut off."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
"""Of the kinds of number; those of another kind are not checked against their shape."""


def read_header(path: Path) -> dict[str, Mapping[str, Any]]:
    """Read the tensors that a file declares, and check that exactly their data follow.

    Returns
    -------
    dict
        By tensor name: dtype, shape and data_offsets, the latter in bytes from the end of the header.

    Raises
    ------
    ValueError
        If the file is cut off or is none of the format; the message says how it is not.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        num_header_bytes = int.from_bytes(file.read(8), "little")
        if size < 8 or num_header_bytes > min(size - 8, MAX_HEADER_BYTES):
            raise ValueError(f"its header of {num_header_bytes} bytes does not fit into its {size} bytes")
        try:
            header = json.loads(file.read(num_header_bytes))
            tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
            spans = sorted(tuple(entry["data_offsets"]) for entry in tensors.values())
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"its header is not that of a safetensors file ({error})") from None
    end = 0
    for start, stop in spans:
        if start != end or stop < start:
            raise ValueError(f"its tensors leave a gap or overlap at byte {start} of the data")
        end = stop
    if 8 + num_header_bytes + end != size:
        raise ValueError(f"it must have {8 + num_header_bytes + end} bytes by its header, it has {size}")
    for name, entry in tensors.items():
        _check_shape(name, entry)
    return tensors


def _check_shape(name: str, entry: Mapping[str, Any]) -> None:
    bits = _BITS.get(entry["dtype"])
    start, stop = entry["data_offsets"]
    if bits is not None and math.prod(entry["shape"]) * bits != (stop - start) * 8:
        raise ValueError(f"tensor {name} of shape {entry['shape']} and type {entry['dtype']} has {stop - start} bytes")
